//! What the unfiltered policy does: sums over all scored responses of some groups, filtered ones included.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fact::ScoreSummary;
use super::moments::Moments;

/// Sums over the groups that were complete since a batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupSums {
    /// Complete groups.
    pub groups: u64,
    /// Groups among them that carried no signal.
    pub groups_without_signal: u64,
    /// The scores of the responses.
    pub score: Moments,
    /// By scorer, its own numbers.
    pub scorers: BTreeMap<String, Moments>,
    /// The outcomes of the responses that carry one.
    pub outcome: Moments,
    /// Response tokens.
    pub tokens: u64,
    /// Responses cut off by the length limit.
    pub truncated: u64,
    /// Turns of the responses.
    pub turns: u64,
    /// Responses of more than one turn.
    pub several_turns: u64,
    /// By data set, where there are several.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) sets: BTreeMap<String, SetSums>,
}

/// Sums over the groups of one data set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SetSums {
    groups: u64,
    groups_without_signal: u64,
    score: Moments,
    outcome: Moments,
}

/// What the unfiltered policy did on the prompts of one data set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SetFigures {
    /// Complete groups.
    pub groups: u64,
    /// Groups among them that carried no signal.
    pub groups_without_signal: u64,
    /// The mean score of the responses.
    pub score_mean: f64,
    /// The mean outcome of those that have one.
    pub outcome_mean: Option<f64>,
}

/// The mean turns of responses of which nobody has said that they have several.
pub(super) fn one_turn() -> f64 {
    1.0
}

impl GroupSums {
    /// The sums over one complete group.
    pub(super) fn of(scored: &[ScoreSummary]) -> Self {
        let mut sums = Self { groups: 1, ..Self::default() };
        for summary in scored {
            sums.add(summary);
        }
        sums
    }

    fn add(&mut self, scored: &ScoreSummary) {
        self.score.add(f64::from(scored.score));
        for (scorer, number) in &scored.numbers {
            self.scorers.entry(scorer.clone()).or_default().add(*number);
        }
        self.tokens += u64::from(scored.tokens);
        self.truncated += u64::from(scored.truncated);
        self.turns += u64::from(scored.turns);
        self.several_turns += u64::from(scored.turns > 1);
        if let Some(outcome) = scored.outcome {
            self.outcome.add(f64::from(outcome));
        }
    }

    /// Adds the sums of other groups.
    pub(super) fn merge(&mut self, other: &Self) {
        self.groups += other.groups;
        self.groups_without_signal += other.groups_without_signal;
        self.score.merge(&other.score);
        for (scorer, numbers) in &other.scorers {
            self.scorers.entry(scorer.clone()).or_default().merge(numbers);
        }
        self.outcome.merge(&other.outcome);
        self.tokens += other.tokens;
        self.truncated += other.truncated;
        self.turns += other.turns;
        self.several_turns += other.several_turns;
        for (name, set) in &other.sets {
            let sums = self.sets.entry(name.clone()).or_default();
            sums.groups += set.groups;
            sums.groups_without_signal += set.groups_without_signal;
            sums.score.merge(&set.score);
            sums.outcome.merge(&set.outcome);
        }
    }

    /// All of it is of this data set.
    pub(super) fn are_of(&mut self, set: &str) {
        let sums = SetSums {
            groups: self.groups,
            groups_without_signal: self.groups_without_signal,
            score: self.score,
            outcome: self.outcome,
        };
        self.sets = [(set.to_owned(), sums)].into();
    }

    /// What there is to say of each data set.
    pub(super) fn set_figures(&self) -> BTreeMap<String, SetFigures> {
        let mut figures = BTreeMap::new();
        for (name, sums) in &self.sets {
            let SetSums { groups, groups_without_signal, score, outcome } = *sums;
            let outcome_mean = (outcome.count > 0).then_some(outcome.mean);
            let of_set = SetFigures { groups, groups_without_signal, score_mean: score.mean, outcome_mean };
            figures.insert(name.clone(), of_set);
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use types::{PolicyVersion, PromptId, RolloutId};

    use super::*;

    fn scored(score: f32, number: f64) -> ScoreSummary {
        ScoreSummary {
            id: RolloutId { prompt: PromptId { epoch: 0, ordinal: 1 }, sibling: 0, attempt: 0 },
            score,
            outcome: None,
            tokens: 3,
            oldest: PolicyVersion(0),
            truncated: false,
            turns: if score > 2.0 { 3 } else { 1 },
            numbers: [("regex".to_owned(), number)].into(),
            contributions: BTreeMap::new(),
            digest: None,
        }
    }

    #[test]
    fn data_sets_are_told_apart() {
        let mut sums = GroupSums::default();
        for (set, score) in [("a", 1.0), ("a", 3.0), ("b", 10.0)] {
            let mut group = GroupSums::of(&[scored(score, 0.0)]);
            group.are_of(set);
            sums.merge(&group);
        }
        let figures = sums.set_figures();
        assert_eq!((figures["a"].groups, figures["a"].score_mean), (2, 2.0));
        assert_eq!((figures["b"].groups, figures["b"].outcome_mean), (1, None));
        assert_eq!(GroupSums::of(&[scored(1.0, 0.0)]).set_figures().len(), 0);
    }

    #[test]
    fn groups_add_up_to_what_all_their_responses_give() {
        let mut sums = GroupSums::of(&[scored(1.0, 10.0), scored(3.0, 20.0)]);
        sums.merge(&GroupSums::of(&[scored(5.0, 60.0)]));
        assert_eq!((sums.groups, sums.score.count, sums.tokens), (2, 3, 9));
        assert_eq!((sums.turns, sums.several_turns), (1 + 3 + 3, 2));
        // Of 1, 3, 5: mean 3, squared distances 4, 0, 4.
        let score = sums.score.spread();
        assert_eq!(score.mean, 3.0);
        assert!((score.deviation - (8.0f64 / 3.0).sqrt()).abs() < 1e-12, "{score:?}");
        assert_eq!(sums.scorers["regex"].spread().mean, 30.0);
    }
}
