//! A reward model from preference pairs (Bradley-Terry; PF-PPO, arXiv 2409.06957, Eqs. 1 and 2).
//!
//! The folder's `config.json` stores mean and standard deviation of the scores under [`REWARD_MEAN_KEY`] and
//! [`REWARD_STD_KEY`], by which the reward server makes scores comparable: `(score − mean) / std`.

use algo::Moments;
use std::ops::ControlFlow;

use model::{ModelConfig, ScalarInit};
use serde_json::json;

use super::config::RewardModelConfig;
use super::dataset::{Dataset, ExampleSequences};
use super::examples::{Answer, ExampleReader, Examples, PreferencePair};
use super::mixture::ExampleSource;
use super::objective::Objective;
use super::progress::{Progress, on_ranks_with_progress};
use super::report::{ScoreStatistics, TrainingReport};
use super::text_encoder::TextEncoder;
use super::training::{EvaluationSet, SupervisedTrainer};
use super::work_folder::WorkFolder;
use crate::error::{Error, Result};
use crate::microbatch::Sequence;
use crate::model_folder::StartModel;
use crate::trainable_model::HeadRequest;

/// The key of `config.json` under which the mean of the scores is stored.
pub const REWARD_MEAN_KEY: &str = "sluice_reward_mean";

/// The key of `config.json` under which the standard deviation of the scores is stored.
pub const REWARD_STD_KEY: &str = "sluice_reward_std";

/// The smallest standard deviation that is stored: equal scores have none, and the reward server divides by
/// it.
const STD_LIMIT: f64 = 1e-6;

/// Pairs of a file and what is learnt from them.
struct PairSet {
    examples: ExampleSequences,
    objective: Objective,
}

/// Trains a network with a scalar head to score chosen responses above rejected ones, and writes its folder.
/// The same seed gives the same weights.
///
/// # Errors
/// The configuration's problems; a folder, a file or a line that cannot be used; training that diverged. Then
/// nothing is at `output`.
pub fn train_rm(
    config: &RewardModelConfig,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<TrainingReport> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(Error::Config { problems });
    }
    let encoder = TextEncoder::load(&config.model, config.training.append_eos)?;
    let reader = ExampleReader::new(encoder.as_ref(), &config.training);
    let pairs = reader.read::<PreferencePair>(config.source())?;
    let held_out = match &config.eval_data {
        Some(path) => Some(PairSet::new(&reader.read(ExampleSource::file(path))?)),
        None => None,
    };
    let set = PairSet::new(&pairs);
    let result = on_ranks_with_progress(&config.execution, progress, |ranks, sink| {
        let init = ScalarInit::Normal { seed: config.training.seed };
        let start = StartModel::open(&config.model)?.with_scalar_head(init);
        let request = HeadRequest::Scalars;
        let trainer = SupervisedTrainer::new("reward model", ranks, &start, request, config.sections())?;
        let mut trainer = trainer.amended_by(store_statistics);
        let evaluation = match &held_out {
            Some(held_out) => EvaluationSet::HeldOut(held_out.dataset()),
            None => EvaluationSet::TrainingSet(set.dataset()),
        };
        let folder = WorkFolder::of(&config.output, config);
        let result = trainer.train(set.dataset(), Some(evaluation), &folder, sink)?;
        trainer.save(&config.output, &start.path, |config| store_statistics(&result.scores, config))?;
        if ranks.rank() == 0 {
            folder.finish(&config.output)?;
        }
        Ok(result)
    })?;
    let scores = statistics(&result.scores);
    Ok(TrainingReport::new(result, pairs.counts(), Some(scores)))
}

/// Writes mean and deviation of the scores into a reward model's configuration.
fn store_statistics(scores: &Moments, config: &mut ModelConfig) {
    let ScoreStatistics { mean, std } = statistics(scores);
    config.source.insert(REWARD_MEAN_KEY.to_owned(), json!(mean));
    config.source.insert(REWARD_STD_KEY.to_owned(), json!(std));
}

fn statistics(scores: &Moments) -> ScoreStatistics {
    ScoreStatistics { mean: scores.mean(), std: scores.variance().sqrt().max(STD_LIMIT) }
}

impl PairSet {
    fn new(pairs: &Examples<PreferencePair>) -> Self {
        let Examples { examples: pairs, portions, .. } = pairs;
        let sequences = pairs.iter().flat_map(|pair| [whole(&pair.chosen), whole(&pair.rejected)]).collect();
        let margins = pairs.iter().map(|pair| pair.margin).collect();
        Self {
            examples: ExampleSequences { sequences, per_example: 2, portions: portions.clone() },
            objective: Objective::BradleyTerry { margins },
        }
    }

    fn dataset(&self) -> Dataset<'_> {
        Dataset { examples: &self.examples, objective: &self.objective }
    }
}

/// Prompt and response, of which the last row is scored.
fn whole(answer: &Answer) -> Sequence {
    Sequence::last([answer.prompt.as_slice(), &answer.response].concat())
}
