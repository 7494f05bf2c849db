//! A reward model from preference pairs (Bradley-Terry; PF-PPO, arXiv 2409.06957, Eqs. 1 and 2).
//!
//! The folder's `config.json` stores mean and standard deviation of the scores under [`REWARD_MEAN_KEY`] and
//! [`REWARD_STD_KEY`], by which the reward server makes scores comparable: `(score − mean) / std`.

use algo::Moments;
use model::ScalarInit;
use serde_json::json;

use super::config::RewardModelConfig;
use super::examples::{Pair, Reader};
use super::objective::Objective;
use super::report::{Progress, Report, ScoreStatistics};
use super::source::{Source, TextEncoder};
use super::training::{Course, Items, Sections, Set, on_ranks_with_progress};
use crate::error::{Error, Result};
use crate::microbatch::Sequence;
use crate::trainee::Request;

/// The key of `config.json` under which the mean of the scores is stored.
pub const REWARD_MEAN_KEY: &str = "sluice_reward_mean";

/// The key of `config.json` under which the standard deviation of the scores is stored.
pub const REWARD_STD_KEY: &str = "sluice_reward_std";

/// Least standard deviation that is stored: equal scores have none, and the reward server divides by it.
const LEAST_STD: f64 = 1e-6;

/// Trains a network with a scalar head to score chosen responses above rejected ones, and writes its folder. The same seed
/// gives the same weights.
///
/// # Errors
/// The configuration's problems; a folder, a file or a line that cannot be used; training that diverged. Then nothing is at
/// `output`.
pub fn train_rm(config: &RewardModelConfig, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(Error::Config { problems });
    }
    let encoder = TextEncoder::load(&config.model, config.training.append_eos)?;
    let reader = Reader { encoder: encoder.as_ref(), training: &config.training };
    let found = reader.pairs(&config.data)?;
    let held = config.eval_data.as_deref().map(|path| reader.pairs(path)).transpose()?;
    let (items, objective) = items(&found.examples);
    let held = held.map(|held| self::items(&held.examples));
    let sections =
        Sections { training: &config.training, optimizer: &config.optimizer, execution: &config.execution };
    let (taught, scores) = on_ranks_with_progress(&config.execution, progress, |ranks, say| {
        let mut source = Source::load(&config.model)?;
        let init = ScalarInit::Normal { seed: config.training.seed };
        (source.config, source.weights) = source.weights.with_scalar_head(&source.config, init);
        let mut course = Course::new("reward model", (ranks, &source), Request::Scalars, sections);
        let set = Set { items: &items, objective: &objective };
        let evaluation = match &held {
            Some((items, objective)) => (Set { items, objective }, true),
            None => (set, false),
        };
        let taught = course.teach(set, Some(evaluation), say)?;
        let scores = statistics(&taught.scores);
        course.save(&source, &config.output, |config| {
            config.source.insert(REWARD_MEAN_KEY.to_owned(), json!(scores.mean));
            config.source.insert(REWARD_STD_KEY.to_owned(), json!(scores.std));
        })?;
        Ok((taught, scores))
    })?;
    Ok(Report::of(taught, (found.examples.len(), found.too_long), Some(scores)))
}

fn statistics(scores: &Moments) -> ScoreStatistics {
    ScoreStatistics { mean: scores.mean(), std: scores.variance().sqrt().max(LEAST_STD) }
}

fn items(pairs: &[Pair]) -> (Items, Objective) {
    let last = |answer: &super::examples::Answer| {
        Sequence::last([answer.prompt.as_slice(), &answer.response].concat())
    };
    let sequences = pairs.iter().flat_map(|pair| [last(&pair.chosen), last(&pair.rejected)]).collect();
    let margins = pairs.iter().map(|pair| pair.margin).collect();
    (Items { sequences, per_item: 2 }, Objective::Scores { margins })
}
