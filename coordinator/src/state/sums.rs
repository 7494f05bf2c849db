//! What the unfiltered policy does: sums over all scored responses of some groups, filtered ones included.

use std::collections::BTreeMap;

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
            numbers: [("regex".to_owned(), number)].into(),
            contributions: BTreeMap::new(),
            digest: None,
        }
    }

    #[test]
    fn groups_add_up_to_what_all_their_responses_give() {
        let mut sums = GroupSums::of(&[scored(1.0, 10.0), scored(3.0, 20.0)]);
        sums.merge(&GroupSums::of(&[scored(5.0, 60.0)]));
        assert_eq!((sums.groups, sums.score.count, sums.tokens), (2, 3, 9));
        // Of 1, 3, 5: mean 3, squared distances 4, 0, 4.
        let score = sums.score.spread();
        assert_eq!(score.mean, 3.0);
        assert!((score.deviation - (8.0f64 / 3.0).sqrt()).abs() < 1e-12, "{score:?}");
        assert_eq!(sums.scorers["regex"].spread().mean, 30.0);
    }
}
