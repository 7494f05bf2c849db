//! Scored rollouts, and the samples and batches that the learner trains on.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::rollout::logprobs_problem;
use crate::{BatchId, FinishReason, Invalid, Remarks, Rollout};

/// Everything that the frozen models and the tests say about a rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// The one finite number that the learner maximises, normalised by the reward model's stored statistics.
    pub score: f32,
    /// `[response]` log-probs under the reference policy; empty when the run has no reference.
    pub ref_logprobs: Vec<f32>,
    /// How right it is, in 0..=1, by hidden tests or the scorer that is the yardstick: never the reward,
    /// unless a recipe says so.
    pub outcome: Option<f32>,
    /// What a reward that the environment gives for a turn ([`Observation::reward`]) weighs in the score; 0
    /// where the score says nothing of single turns.
    ///
    /// [`Observation::reward`]: crate::Observation::reward
    pub turn_weight: f32,
}

/// A rollout and its scores, which fit it in length.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredRollout {
    rollout: Rollout,
    scores: Scores,
    remarks: Box<Remarks>,
}

impl ScoredRollout {
    /// A rollout with its scores.
    ///
    /// # Errors
    /// Names the rollout and the number. A score that is not finite is an error here, never a number further
    /// on.
    pub fn new(rollout: Rollout, scores: Scores) -> Result<Self, Invalid> {
        match problem(&rollout, &scores) {
            Some(problem) => Err(Invalid::new(format!("scored rollout {}", rollout.id()), problem)),
            None => Ok(Self { rollout, scores, remarks: Box::default() }),
        }
    }

    /// What was scored.
    pub fn rollout(&self) -> &Rollout {
        &self.rollout
    }

    /// The one finite number that the learner maximises.
    pub fn score(&self) -> f32 {
        self.scores.score
    }

    /// `[response]` log-probs under the reference policy; empty when the run has no reference.
    pub fn ref_logprobs(&self) -> &[f32] {
        &self.scores.ref_logprobs
    }

    /// How right it is, in 0..=1, where there are hidden tests or a scorer that is the yardstick.
    pub fn outcome(&self) -> Option<f32> {
        self.scores.outcome
    }

    /// `[turns]` the parts of the score that its turns brought: what the environment gave for each, and all
    /// else behind the last one, so that their sum is the score.
    pub fn turn_scores(&self) -> Vec<f32> {
        turn_scores(&self.rollout, &self.scores)
    }

    /// What the scorers say for people.
    pub fn remarks(&self) -> &Remarks {
        &self.remarks
    }

    /// The same with what the scorers say for people.
    ///
    /// # Errors
    /// Names the rollout and the number that is not finite.
    pub fn with_remarks(self, remarks: Remarks) -> Result<Self, Invalid> {
        match remarks.problem() {
            Some(problem) => Err(Invalid::new(format!("scored rollout {}", self.rollout.id()), problem)),
            None => Ok(Self { remarks: Box::new(remarks), ..self }),
        }
    }

    /// Takes out what the scorers say for people.
    pub fn take_remarks(&mut self) -> Remarks {
        std::mem::take(&mut *self.remarks)
    }

    /// The rollout and its scores, to take them or to make another scored rollout of them.
    pub fn into_parts(self) -> (Rollout, Scores) {
        (self.rollout, self.scores)
    }

    /// The same without the prompt's fields and the remarks: the learner needs tokens and numbers only.
    #[must_use]
    pub fn for_training(self) -> Self {
        Self { rollout: self.rollout.without_fields(), remarks: Box::default(), ..self }
    }
}

fn turn_scores(rollout: &Rollout, scores: &Scores) -> Vec<f32> {
    let observations = rollout.observations().iter();
    let mut parts: Vec<f32> = observations.map(|given| scores.turn_weight * given.reward).collect();
    let before: f64 = parts.iter().copied().map(f64::from).sum();
    parts.push((f64::from(scores.score) - before) as f32);
    parts
}

fn problem(rollout: &Rollout, scores: &Scores) -> Option<String> {
    let Scores { score, ref_logprobs, outcome, turn_weight } = scores;
    for (name, number) in [("score", score), ("turn_weight", turn_weight)] {
        if !number.is_finite() {
            return Some(format!("{name} is {number}, must be finite"));
        }
    }
    if let Some(part) = turn_scores(rollout, scores).into_iter().find(|part| !part.is_finite()) {
        return Some(format!("a turn's part of the score is {part}, must be finite"));
    }
    if let Some(outcome) = outcome
        && !(0.0..=1.0).contains(outcome)
    {
        return Some(format!("outcome is {outcome}, must be in 0..=1"));
    }
    if ref_logprobs.is_empty() {
        return None;
    }
    logprobs_problem("ref_logprobs", ref_logprobs, rollout.response_tokens().len())
}

/// What the baselines of a group need to know of one of its responses, whether or not it trains.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GroupScore {
    /// Which of the group's responses it is.
    pub sibling: u16,
    /// Its score.
    pub score: f32,
    /// Its response tokens.
    pub tokens: u32,
    /// Whether it was cut off by the length limit.
    pub truncated: bool,
}

impl GroupScore {
    /// What a scored rollout is to its siblings.
    pub fn of(scored: &ScoredRollout) -> Self {
        let rollout = scored.rollout();
        Self {
            sibling: rollout.id().sibling,
            score: scored.score(),
            tokens: u32::try_from(rollout.response_tokens().len()).unwrap_or(u32::MAX),
            truncated: rollout.finish_reason() == FinishReason::Length,
        }
    }
}

/// A scored rollout on its way into a training step.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    scored: ScoredRollout,
    weight: f32,
    group: Arc<[GroupScore]>,
}

impl Sample {
    /// A scored rollout that trains with this weight; `group` are all responses to its prompt that have a
    /// score, it among them.
    ///
    /// # Errors
    /// When the weight is negative or not finite, or the group is not in the order of siblings, has a score
    /// that is not finite, or lacks this one.
    pub fn new(
        scored: ScoredRollout,
        weight: f32,
        group: impl Into<Arc<[GroupScore]>>,
    ) -> Result<Self, Invalid> {
        let group = group.into();
        let problem = if !weight.is_finite() || weight < 0.0 {
            Some(format!("weight is {weight}, must be at least 0"))
        } else {
            group_problem(&group, &GroupScore::of(&scored))
        };
        match problem {
            Some(problem) => Err(Invalid::new(format!("sample {}", scored.rollout.id()), problem)),
            None => Ok(Self { scored, weight, group }),
        }
    }

    /// The rollout and its scores.
    pub fn scored(&self) -> &ScoredRollout {
        &self.scored
    }

    /// The rollout that was scored.
    pub fn rollout(&self) -> &Rollout {
        &self.scored.rollout
    }

    /// The filtration's weight in the policy loss: 0 for a response that only the critic or the whitening
    /// sees.
    pub fn weight(&self) -> f32 {
        self.weight
    }

    /// All responses of its group that have a score, in the order of siblings: what baselines are taken over,
    /// whatever the filtration kept (`docs/decisions.md`, D19).
    pub fn group(&self) -> &Arc<[GroupScore]> {
        &self.group
    }

    /// The rollout and its scores, by value.
    pub fn into_scored(self) -> ScoredRollout {
        self.scored
    }
}

fn group_problem(group: &[GroupScore], own: &GroupScore) -> Option<String> {
    if !group.is_sorted_by(|one, next| one.sibling < next.sibling) {
        return Some("its group is not in the order of siblings".to_owned());
    }
    if let Some(bad) = group.iter().find(|member| !member.score.is_finite()) {
        return Some(format!("the score of sibling {} is {}, must be finite", bad.sibling, bad.score));
    }
    (!group.contains(own)).then(|| "is not among the responses of its group".to_owned())
}

/// The samples of one learner step: at least one, and no response twice.

#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    id: BatchId,
    samples: Vec<Sample>,
}

impl Batch {
    /// A batch with its samples in the order of their ids: group by group, siblings in order.
    ///
    /// # Errors
    /// When it is empty or holds a response twice.
    pub fn new(id: BatchId, mut samples: Vec<Sample>) -> Result<Self, Invalid> {
        samples.sort_by_key(|sample| sample.rollout().id());
        Self::in_recorded_order(id, samples)
    }

    /// A batch of recorded samples, which train in the order in which they were recorded.
    ///
    /// # Errors
    /// When it is empty or holds a response twice.
    pub fn in_recorded_order(id: BatchId, samples: Vec<Sample>) -> Result<Self, Invalid> {
        let mut seen = HashSet::with_capacity(samples.len());
        let twice = samples.iter().map(|sample| sample.rollout().id()).find(|id| !seen.insert(*id));
        if let Some(twice) = twice {
            return Err(Invalid::new(format!("batch {id}"), format!("holds {twice} twice")));
        }
        if samples.is_empty() {
            return Err(Invalid::new(format!("batch {id}"), "has no samples"));
        }
        Ok(Self { id, samples })
    }

    /// Its number, counted from 1; training it makes the policy version of the same number.
    pub fn id(&self) -> BatchId {
        self.id
    }

    /// The samples, in the order in which they train.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The samples, by value.
    pub fn into_samples(self) -> Vec<Sample> {
        self.samples
    }

    /// Response tokens that the policy loss counts (weight above zero).
    pub fn response_tokens(&self) -> usize {
        let trained = self.samples.iter().filter(|sample| sample.weight > 0.0);
        trained.map(|sample| sample.rollout().response_tokens().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::tests::parts;
    use crate::{Observation, RolloutParts};

    fn rollout(sibling: u16) -> Rollout {
        let mut parts = parts(3);
        parts.id.sibling = sibling;
        Rollout::new(parts).unwrap()
    }

    fn sound() -> Scores {
        Scores { score: 0.25, ref_logprobs: vec![-1.0; 3], outcome: Some(1.0), turn_weight: 0.0 }
    }

    fn sample(sibling: u16) -> Sample {
        let scored = ScoredRollout::new(rollout(sibling), sound()).unwrap();
        let own = GroupScore::of(&scored);
        Sample::new(scored, 1.0, [own]).unwrap()
    }

    #[test]
    fn a_score_that_is_no_number_is_an_error() {
        for score in [f32::NAN, f32::INFINITY] {
            let error = ScoredRollout::new(rollout(0), Scores { score, ..sound() }).unwrap_err();
            assert!(error.problem.contains("score"), "{error}");
        }
        let made = |scores| ScoredRollout::new(rollout(0), scores);
        assert!(made(Scores { outcome: Some(1.5), ..sound() }).is_err());
        assert!(made(Scores { turn_weight: f32::NAN, ..sound() }).is_err());
        assert!(made(Scores { ref_logprobs: vec![-1.0; 2], ..sound() }).is_err());
        assert!(made(Scores { ref_logprobs: Vec::new(), ..sound() }).is_ok());
    }

    #[test]
    fn the_parts_of_turns_add_up_to_the_score() {
        let given = |after, reward| Observation { reward, ..Observation::new(after, vec![9]) };
        let episode = RolloutParts { observations: vec![given(1, 0.5), given(2, -1.0)], ..parts(3) };
        let scored =
            ScoredRollout::new(Rollout::new(episode).unwrap(), Scores { turn_weight: 2.0, ..sound() });
        assert_eq!(scored.unwrap().turn_scores(), [1.0, -2.0, 1.25]);
        // Rewards that cancel each other out leave a score that says nothing of them.
        let huge = RolloutParts { observations: vec![given(1, 3e38), given(2, -3e38)], ..parts(3) };
        let huge = ScoredRollout::new(Rollout::new(huge).unwrap(), Scores { turn_weight: 2.0, ..sound() });
        assert!(huge.unwrap_err().problem.contains("a turn's part of the score is inf"));
        let one_turn = ScoredRollout::new(rollout(0), sound()).unwrap();
        assert_eq!(one_turn.turn_scores(), [0.25]);
    }

    #[test]
    fn a_weight_is_no_less_than_zero() {
        let scored = ScoredRollout::new(rollout(0), sound()).unwrap();
        let own = [GroupScore::of(&scored)];
        assert!(Sample::new(scored.clone(), 0.0, own).is_ok());
        assert!(Sample::new(scored.clone(), -1.0, own).is_err());
        assert!(Sample::new(scored, f32::NAN, own).is_err());
    }

    #[test]
    fn a_sample_is_one_of_its_group() {
        let scored = ScoredRollout::new(rollout(1), sound()).unwrap();
        let own = GroupScore::of(&scored);
        let other = GroupScore { sibling: 0, score: -2.0, tokens: 9, truncated: true };
        let made = |group: Vec<GroupScore>| Sample::new(scored.clone(), 1.0, group);
        assert_eq!(made(vec![other, own]).unwrap().group().len(), 2);
        for (group, problem) in [
            (vec![other], "not among"),
            (vec![own, other], "order"),
            (vec![own, own], "order"),
            (vec![GroupScore { score: f32::NAN, ..other }, own], "finite"),
            (vec![GroupScore { score: 7.0, ..own }], "not among"),
        ] {
            let error = made(group).unwrap_err();
            assert!(error.problem.contains(problem), "{error}");
        }
    }

    #[test]
    fn a_batch_is_ordered_and_free_of_doubles() {
        let batch = Batch::new(BatchId(1), vec![sample(2), sample(0)]).unwrap();
        assert_eq!(batch.samples()[0].rollout().id().sibling, 0);
        assert_eq!(batch.response_tokens(), 6);
        assert!(Batch::new(BatchId(1), vec![sample(2), sample(2)]).is_err());
        assert!(Batch::new(BatchId(1), Vec::new()).is_err());
        let recorded = Batch::in_recorded_order(BatchId(1), vec![sample(2), sample(0)]).unwrap();
        assert_eq!(recorded.samples()[0].rollout().id().sibling, 2);
        assert!(Batch::in_recorded_order(BatchId(1), vec![sample(2), sample(0), sample(2)]).is_err());
    }
}
