//! What is said of training on examples at its end.

use std::fmt;

use algo::Moments;
use serde::{Deserialize, Serialize};

/// The objective on a set of examples, without training on them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Optimizer steps before it.
    pub step: u64,
    /// Passes over the training data before it.
    pub epoch: usize,
    /// Whether the examples are others than those trained on.
    pub held_out: bool,
    /// The loss, aggregated over all of them.
    pub loss: f64,
    /// Share of pairs (or labelled responses) on the right side, for objectives that have one.
    pub accuracy: Option<f64>,
    /// Mean of how far the right side is ahead: score difference, or difference of log-ratios.
    pub margin: Option<f64>,
    /// Mean reward of chosen responses of pairs: their scores, or their log-ratios to the reference.
    #[serde(default)]
    pub reward_chosen: Option<f64>,
    /// The same of rejected ones.
    #[serde(default)]
    pub reward_rejected: Option<f64>,
}

/// Mean and standard deviation of a reward model's scores over chosen and rejected responses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ScoreStatistics {
    /// Mean of the scores.
    pub mean: f64,
    /// The standard deviation (biased), never 0.
    pub std: f64,
}

/// What came of training.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainingReport {
    /// Examples or pairs trained on.
    pub examples: usize,
    /// Examples or pairs of the data that were longer than allowed.
    pub too_long: usize,
    /// Tokens of the examples.
    pub data_tokens: usize,
    /// Those of them that the objective is about: what the assistant says, its ends of turn included.
    pub learnt_tokens: usize,
    /// Optimizer steps, those included that were skipped.
    pub steps: u64,
    /// Steps that were not made, because the loss or the gradient was no finite number.
    pub skipped_steps: u64,
    /// Tokens that the network was trained on, prompts included.
    pub tokens: u64,
    /// Seconds of training, without reading and writing.
    pub seconds: f64,
    /// Mean loss over the minibatches of the last pass.
    pub loss: f64,
    /// Measured after each pass, and as often as was asked for, where there is something to measure on.
    pub evaluations: Vec<Evaluation>,
    /// What a reward model's folder stores.
    pub scores: Option<ScoreStatistics>,
}

/// What training measured.
#[derive(Debug, Clone)]
pub(crate) struct TrainingResult {
    pub(crate) steps: u64,
    pub(crate) skipped_steps: u64,
    pub(crate) tokens: u64,
    pub(crate) seconds: f64,
    /// Mean over the minibatches of the last pass.
    pub(crate) loss: f64,
    pub(crate) evaluations: Vec<Evaluation>,
    /// Moments of the scores in the last evaluation.
    pub(crate) scores: Moments,
}

/// What became of the examples of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExampleCounts {
    /// Examples that are trained on.
    pub(crate) used: usize,
    /// Examples that were left out because they are longer than allowed.
    pub(crate) too_long: usize,
    /// Tokens of those that are used.
    pub(crate) tokens: usize,
    /// Those of them that the objective is about.
    pub(crate) learnt: usize,
}

impl TrainingReport {
    pub(crate) fn new(
        result: TrainingResult,
        counts: ExampleCounts,
        scores: Option<ScoreStatistics>,
    ) -> Self {
        let TrainingResult { steps, skipped_steps, tokens, seconds, loss, evaluations, .. } = result;
        let ExampleCounts { used: examples, too_long, tokens: data_tokens, learnt: learnt_tokens } = counts;
        Self {
            examples,
            too_long,
            data_tokens,
            learnt_tokens,
            steps,
            skipped_steps,
            tokens,
            seconds,
            loss,
            evaluations,
            scores,
        }
    }
}

impl fmt::Display for TrainingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { examples, steps, loss, data_tokens, learnt_tokens, .. } = self;
        let rate = self.tokens as f64 / self.seconds.max(1e-9);
        write!(
            f,
            "{examples} examples, {learnt_tokens} of {data_tokens} tokens learnt, {steps} steps, loss {loss:.4}"
        )?;
        if let Some(last) = self.evaluations.last() {
            let on = if last.held_out { "held-out" } else { "training-set" };
            write!(f, ", {on} loss {:.4}", last.loss)?;
            if let Some(accuracy) = last.accuracy {
                write!(f, ", accuracy {:.1} %", 100.0 * accuracy)?;
            }
        }
        if let Some(ScoreStatistics { mean, std }) = self.scores {
            write!(f, ", scores {mean:.3} ± {std:.3}")?;
        }
        if self.skipped_steps > 0 {
            write!(f, ", {} steps skipped", self.skipped_steps)?;
        }
        if self.too_long > 0 {
            write!(f, ", {} too long", self.too_long)?;
        }
        write!(f, ", {:.1} s, {rate:.0} tokens/s", self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_matters() {
        let evaluation = Evaluation {
            step: 5,
            epoch: 1,
            held_out: true,
            loss: 0.51,
            accuracy: Some(0.8),
            margin: Some(1.0),
            reward_chosen: None,
            reward_rejected: None,
        };
        let report = TrainingReport {
            examples: 10,
            too_long: 2,
            data_tokens: 400,
            learnt_tokens: 60,
            steps: 5,
            skipped_steps: 1,
            tokens: 1000,
            seconds: 2.0,
            loss: 0.5,
            evaluations: vec![evaluation],
            scores: Some(ScoreStatistics { mean: 0.25, std: 2.0 }),
        };
        assert_eq!(
            report.to_string(),
            "10 examples, 60 of 400 tokens learnt, 5 steps, loss 0.5000, held-out loss 0.5100, accuracy 80.0 %, scores 0.250 ± 2.000, \
             1 steps skipped, 2 too long, 2.0 s, 500 tokens/s"
        );
    }
}
