//! Scored rollouts, and the samples and batches that the learner trains on.

use crate::rollout::logprobs_problem;
use crate::{BatchId, Invalid, Rollout};

/// A rollout with everything that the frozen models and the tests say about it.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredRollout {
    /// What was scored.
    pub rollout: Rollout,
    /// The one scalar that the learner maximises, normalised by the reward model's stored statistics.
    pub score: f32,
    /// `[response]` log-probs under the reference policy; empty when the run has no reference.
    pub ref_logprobs: Vec<f32>,
    /// Share of hidden tests passed, in 0..=1: the yardstick, never the reward, unless a recipe says so.
    pub outcome: Option<f32>,
}

impl ScoredRollout {
    /// Checks that the numbers are finite and the lengths fit; the rollout itself is checked as well.
    ///
    /// # Errors
    /// Names the rollout and the field. A score that is not finite is an error here, never a number further on.
    pub fn validated(self) -> Result<Self, Invalid> {
        let Self { rollout, score, ref_logprobs, outcome } = self;
        let rollout = rollout.validated()?;
        let what = || format!("scored rollout {}", rollout.id);
        if !score.is_finite() {
            return Err(Invalid::new(what(), format!("score is {score}, must be finite")));
        }
        if let Some(outcome) = outcome
            && !(0.0..=1.0).contains(&outcome)
        {
            return Err(Invalid::new(what(), format!("outcome is {outcome}, must be in 0..=1")));
        }
        if !ref_logprobs.is_empty()
            && let Some(problem) =
                logprobs_problem("ref_logprobs", &ref_logprobs, rollout.response_tokens.len())
        {
            return Err(Invalid::new(what(), problem));
        }
        Ok(Self { rollout, score, ref_logprobs, outcome })
    }
}

/// A scored rollout on its way into a training step.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The rollout and its score.
    pub scored: ScoredRollout,
    /// The filtration's weight in the policy loss: 0 for a response that only the critic or the whitening sees.
    pub weight: f32,
}

/// The samples of one learner step, ordered by rollout id.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Its number, counted from 1; training it makes the policy version of the same number.
    pub id: BatchId,
    /// Group by group, siblings in order.
    pub samples: Vec<Sample>,
}

impl Batch {
    /// A batch with its samples put in order.
    ///
    /// # Errors
    /// When it is empty, holds a response twice, or holds a weight that is negative or not finite.
    pub fn new(id: BatchId, mut samples: Vec<Sample>) -> Result<Self, Invalid> {
        samples.sort_by_key(|sample| sample.scored.rollout.id);
        let what = || format!("batch {id}");
        if samples.is_empty() {
            return Err(Invalid::new(what(), "has no samples"));
        }
        for pair in samples.windows(2) {
            if pair[0].scored.rollout.id == pair[1].scored.rollout.id {
                return Err(Invalid::new(what(), format!("holds {} twice", pair[0].scored.rollout.id)));
            }
        }
        if let Some(bad) = samples.iter().find(|s| !s.weight.is_finite() || s.weight < 0.0) {
            let problem =
                format!("weight of {} is {}, must be at least 0", bad.scored.rollout.id, bad.weight);
            return Err(Invalid::new(what(), problem));
        }
        Ok(Self { id, samples })
    }

    /// Response tokens that the policy loss counts (weight above zero).
    pub fn response_tokens(&self) -> usize {
        let trained = self.samples.iter().filter(|sample| sample.weight > 0.0);
        trained.map(|sample| sample.scored.rollout.response_tokens.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::tests::rollout;

    fn scored(sibling: u16) -> ScoredRollout {
        let mut rollout = rollout(3);
        rollout.id.sibling = sibling;
        ScoredRollout { rollout, score: 0.25, ref_logprobs: vec![-1.0; 3], outcome: Some(1.0) }
    }

    #[test]
    fn a_score_that_is_no_number_is_an_error() {
        for score in [f32::NAN, f32::INFINITY] {
            let error = ScoredRollout { score, ..scored(0) }.validated().unwrap_err();
            assert!(error.problem.contains("score"), "{error}");
        }
        assert!(ScoredRollout { outcome: Some(1.5), ..scored(0) }.validated().is_err());
        assert!(ScoredRollout { ref_logprobs: vec![-1.0; 2], ..scored(0) }.validated().is_err());
        assert!(ScoredRollout { ref_logprobs: Vec::new(), ..scored(0) }.validated().is_ok());
    }

    #[test]
    fn a_batch_is_ordered_and_free_of_doubles() {
        let sample = |sibling| Sample { scored: scored(sibling), weight: 1.0 };
        let batch = Batch::new(BatchId(1), vec![sample(2), sample(0)]).unwrap();
        assert_eq!(batch.samples[0].scored.rollout.id.sibling, 0);
        assert_eq!(batch.response_tokens(), 6);
        assert!(Batch::new(BatchId(1), vec![sample(2), sample(2)]).is_err());
        assert!(Batch::new(BatchId(1), Vec::new()).is_err());
        let negative = Sample { scored: scored(0), weight: -1.0 };
        assert!(Batch::new(BatchId(1), vec![negative]).is_err());
    }
}
