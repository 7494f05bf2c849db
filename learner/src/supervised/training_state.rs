//! Where a training on examples stands, and where its steps lie in the passes.

use algo::Moments;
use serde::{Deserialize, Serialize};

use super::report::{Evaluation, TrainingResult};

/// Where training stands: with the network and its optimizer all that the next step depends on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct TrainingState {
    /// Optimizer steps done, those that were skipped included.
    pub(crate) step: u64,
    /// Mean loss of the minibatches of this pass so far.
    pub(crate) loss: f64,
    /// How many minibatches that is.
    pub(crate) made: u64,
    pub(crate) skipped_steps: u64,
    pub(crate) tokens: u64,
    pub(crate) evaluations: Vec<Evaluation>,
    /// Scores in the last evaluation.
    pub(crate) scores: ScoreSums,
    /// Evaluations since the one with the lowest loss.
    pub(crate) without_gain: u64,
    /// Whether there were too many of them.
    pub(crate) is_over: bool,
}

/// [`Moments`] of scores as they are stored.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct ScoreSums {
    count: f64,
    sum: f64,
    sum_of_squares: f64,
}

impl From<Moments> for ScoreSums {
    fn from(Moments { count, sum, sum_of_squares }: Moments) -> Self {
        Self { count, sum, sum_of_squares }
    }
}

impl TrainingState {
    pub(crate) fn into_result(self, seconds: f64) -> TrainingResult {
        let ScoreSums { count, sum, sum_of_squares } = self.scores;
        TrainingResult {
            steps: self.step,
            seconds,
            skipped_steps: self.skipped_steps,
            tokens: self.tokens,
            loss: self.loss,
            evaluations: self.evaluations,
            scores: Moments { count, sum, sum_of_squares },
        }
    }
}

/// Optimizer steps in all, and of a pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepPlan {
    pub(crate) steps: u64,
    pub(crate) steps_per_pass: u64,
}

impl StepPlan {
    /// The pass that a step belongs to, from 1, and its place there, from 0.
    pub(crate) fn place(self, step: u64) -> (usize, usize) {
        let Self { steps_per_pass, .. } = self;
        ((step / steps_per_pass) as usize + 1, (step % steps_per_pass) as usize)
    }
}

/// An evaluation as a line of `steps.jsonl`.
#[derive(Serialize)]
pub(crate) struct EvaluationLine {
    pub(crate) step: u64,
    pub(crate) evaluation: Evaluation,
}
