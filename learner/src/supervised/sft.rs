//! Supervised fine-tuning: the negative log-likelihood of responses, prompts given.

use super::config::SftConfig;
use super::examples::{Answer, Reader};
use super::objective::Objective;
use super::report::{Progress, Report};
use super::source::{Source, TextEncoder};
use super::training::{Course, Items, Sections, Set, on_ranks_with_progress};
use crate::error::{Error, Result};
use crate::microbatch::Sequence;
use crate::trainee::Request;
use model::LogprobOptions;

/// Trains a policy to give the responses of the data, and writes its folder. The same seed gives the same weights.
///
/// # Errors
/// The configuration's problems; a folder, a file or a line that cannot be used; training that diverged. Then nothing is at
/// `output`.
pub fn sft(config: &SftConfig, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let problems = config.problems();
    let tokenizer = match (&config.model, &config.init) {
        (Some(model), None) if problems.is_empty() => model,
        (None, Some(init)) if problems.is_empty() => &init.tokenizer,
        _ => return Err(Error::Config { problems }),
    };
    let encoder = TextEncoder::load(tokenizer, config.training.append_eos)?;
    let reader = Reader { encoder: encoder.as_ref(), training: &config.training };
    let found = reader.answers(&config.data)?;
    let held = config.eval_data.as_deref().map(|path| reader.answers(path)).transpose()?;
    let items = items(&found.examples);
    let held = held.map(|held| self::items(&held.examples));
    let objective = Objective::Likelihood { aggregation: config.loss_aggregation };
    let sections =
        Sections { training: &config.training, optimizer: &config.optimizer, execution: &config.execution };
    let taught = on_ranks_with_progress(&config.execution, progress, |ranks, say| {
        let source = match (&config.model, &config.init) {
            (None, Some(init)) => Source::new(init, config.training.seed)?,
            (folder, _) => Source::policy(folder.as_deref().unwrap_or(tokenizer))?,
        };
        let request = Request::Logprobs(LogprobOptions::default());
        let mut course = Course::new("policy", (ranks, &source), request, sections);
        let evaluation = held.as_ref().map(|items| (Set { items, objective: &objective }, true));
        let taught = course.teach(Set { items: &items, objective: &objective }, evaluation, say)?;
        course.save(&source, &config.output, |_| {})?;
        Ok(taught)
    })?;
    Ok(Report::of(taught, (found.examples.len(), found.too_long), None))
}

fn items(answers: &[Answer]) -> Items {
    let sequences =
        answers.iter().map(|answer| Sequence::response(&answer.prompt, &answer.response)).collect();
    Items { sequences, per_item: 1 }
}
