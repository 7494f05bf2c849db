//! What the unfiltered policy does: sums over all scored responses of some groups, filtered ones included.

use std::collections::BTreeMap;

use algo::Moments;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fact::ScoreSummary;

/// Sums over the groups that were complete since a batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupSums {
    /// Complete groups.
    pub groups: u64,
    /// Groups among them that carried no signal.
    pub groups_without_signal: u64,
    /// Scored responses.
    pub responses: u64,
    /// Their scores.
    pub score: f64,
    /// The squares of their scores.
    pub score_squares: f64,
    /// By scorer, its own numbers.
    pub scorers: BTreeMap<String, NumberSums>,
    /// Responses that carry an outcome.
    pub with_outcome: u64,
    /// Their outcomes.
    pub outcome: f64,
    /// Response tokens.
    pub tokens: u64,
    /// Responses cut off by the length limit.
    pub truncated: u64,
}

/// Numbers of one scorer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct NumberSums {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// The sum of their squares.
    pub squares: f64,
}

/// Mean and deviation of some numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation: the root of the mean squared distance from the mean.
    pub deviation: f64,
}

impl NumberSums {
    fn add(&mut self, number: f64) {
        self.merge(&Self { count: 1, sum: number, squares: number * number });
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.squares += other.squares;
    }

    /// Mean and deviation of the numbers; zeros of none.
    pub(super) fn spread(&self) -> Spread {
        let moments = Moments { count: self.count as f64, sum: self.sum, sum_of_squares: self.squares };
        Spread { mean: moments.mean(), deviation: moments.variance().sqrt() }
    }
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
        let score = f64::from(scored.score);
        self.responses += 1;
        self.score += score;
        self.score_squares += score * score;
        for (scorer, number) in &scored.numbers {
            self.scorers.entry(scorer.clone()).or_default().add(*number);
        }
        self.tokens += u64::from(scored.tokens);
        self.truncated += u64::from(scored.truncated);
        if let Some(outcome) = scored.outcome {
            self.with_outcome += 1;
            self.outcome += f64::from(outcome);
        }
    }

    /// Adds the sums of other groups.
    pub(super) fn merge(&mut self, other: &Self) {
        self.groups += other.groups;
        self.groups_without_signal += other.groups_without_signal;
        self.responses += other.responses;
        self.score += other.score;
        self.score_squares += other.score_squares;
        for (scorer, numbers) in &other.scorers {
            self.scorers.entry(scorer.clone()).or_default().merge(numbers);
        }
        self.with_outcome += other.with_outcome;
        self.outcome += other.outcome;
        self.tokens += other.tokens;
        self.truncated += other.truncated;
    }

    /// Mean and deviation of the scores.
    pub(super) fn score_spread(&self) -> Spread {
        NumberSums { count: self.responses, sum: self.score, squares: self.score_squares }.spread()
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
        assert_eq!((sums.groups, sums.responses, sums.tokens), (2, 3, 9));
        // Of 1, 3, 5: mean 3, squared distances 4, 0, 4.
        let score = sums.score_spread();
        assert_eq!(score.mean, 3.0);
        assert!((score.deviation - (8.0f64 / 3.0).sqrt()).abs() < 1e-12, "{score:?}");
        assert_eq!(sums.scorers["regex"].spread().mean, 30.0);
        assert_eq!(NumberSums::default().spread(), Spread::default());
    }
}
