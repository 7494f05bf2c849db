//! What a ring has come to, from its steps file: figures of a run among others.

use std::path::Path;

use anyhow::Context as _;
use coordinator::state::StepRecord;
use serde::Serialize;
use service::{BadInput, jsonl};

/// Steps at an end of a run that figures are means of: one in so many, at least one.
const END_SHARE: usize = 10;

/// Means over the last tenth of the steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Results {
    /// Batches trained.
    pub(crate) batches: u64,
    /// Mean score of all responses.
    pub(crate) score: f64,
    /// Their mean outcome, where they have one.
    pub(crate) outcome: Option<f64>,
    /// KL to the reference, where there is one.
    pub(crate) kl: Option<f64>,
    /// Response tokens.
    pub(crate) length: f64,
    /// Share of responses cut off.
    pub(crate) truncated: f64,
    /// Entropy, nats, where a step was made.
    pub(crate) entropy: Option<f64>,
    /// Seconds of a step.
    pub(crate) step_seconds: f64,
}

impl Results {
    /// Those of the ring in a folder; none before its first step.
    ///
    /// # Errors
    /// When the steps cannot be read.
    pub(crate) fn of(ring: &Path) -> anyhow::Result<Option<Self>> {
        Ok(Self::of_steps(&steps_of(&ring.join("steps.jsonl"))?))
    }

    fn of_steps(steps: &[StepRecord]) -> Option<Self> {
        let last = &steps[steps.len() - end_count(steps)..];
        Some(Self {
            batches: steps.last()?.batch.0,
            score: mean(last, |step| Some(step.score_mean))?,
            outcome: mean(last, |step| step.outcome_mean),
            kl: mean(last, |step| step.metrics.kl_to_ref),
            length: mean(last, |step| Some(step.response_tokens_mean))?,
            truncated: mean(last, |step| Some(step.truncated))?,
            entropy: mean(last, |step| step.metrics.entropy),
            step_seconds: mean(last, |step| Some(step.metrics.step_seconds))?,
        })
    }
}

/// The steps in a file; none where there is no file.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn steps_of(path: &Path) -> anyhow::Result<Vec<StepRecord>> {
    let mut steps = Vec::new();
    if path.exists() {
        for line in jsonl::read(path)? {
            // A coordinator that writes may be in the middle of the last line.
            steps.extend(line?.parse::<StepRecord>());
        }
    }
    Ok(steps)
}

/// How many steps at an end of a run its figures are means of.
pub(crate) fn end_count(steps: &[StepRecord]) -> usize {
    steps.len().div_ceil(END_SHARE)
}

/// The mean over the steps that have the figure.
pub(crate) fn mean(steps: &[StepRecord], figure: impl Fn(&StepRecord) -> Option<f64>) -> Option<f64> {
    let figures: Vec<f64> = steps.iter().filter_map(figure).collect();
    (!figures.is_empty()).then(|| figures.iter().sum::<f64>() / figures.len() as f64)
}

/// Refuses a folder that no run has written.
///
/// # Errors
/// Names the folder.
pub(crate) fn check_run(output: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(output).with_context(|| format!("read {}", output.display()))?;
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    if names.any(|name| name == "ring" || name == "stages") {
        return Ok(());
    }
    Err(BadInput(format!("{} is no run's output folder: it has no ring/", output.display())).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(batch: u64) -> serde_json::Value {
        serde_json::json!({
            "batch": batch, "time": 0, "prompts": 1, "responses": 1, "score_mean": batch, "outcome_mean": null,
            "response_tokens_mean": 3.0, "truncated": 0.0, "metrics": {"entropy": 0.5},
            "reliability": {"unfiltered": null, "filtered": null}
        })
    }

    #[test]
    fn figures_are_means_of_the_last_tenth() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Results::of(folder.path()).unwrap(), None);
        let text: String = (1..=20).map(|batch| format!("{}\n", step(batch))).collect();
        std::fs::write(folder.path().join("steps.jsonl"), text + "{\"batch\": 2").unwrap();
        let results = Results::of(folder.path()).unwrap().unwrap();
        assert_eq!((results.batches, results.score), (20, 19.5));
        assert_eq!((results.outcome, results.kl), (None, None));
    }
}
