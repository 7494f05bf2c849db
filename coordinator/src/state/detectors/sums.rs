//! What the detectors know of complete groups: sums over their scored responses, which add up.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::state::fact::ScoreSummary;
use crate::state::moments::{Moments, bounded};

/// A score that takes at most so many values tells right from wrong, or sorts into a few classes; one that
/// takes more is graded.
pub(super) const CLASSES_LIMIT: usize = 8;

/// Most scorers that are told apart; of a run there are a handful.
const SCORERS_LIMIT: usize = 64;

/// What a scorer added to scores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ScorerSums {
    pub(super) added: Moments,
    /// Sum over groups of the covariance, within the group, of what it added with the score: what it decides
    /// of the differences among siblings.
    pub(super) covariance: f64,
}

/// The highest score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Highest {
    score: f32,
    /// Responses that have it although no outcome says that they are right.
    pub(super) unconfirmed: u64,
}

/// Sums over the scored responses of some groups.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sums {
    pub(super) groups: u64,
    pub(super) score: Moments,
    /// Response tokens.
    pub(super) tokens: Moments,
    /// Groups of which a response has an outcome.
    pub(super) judged_groups: u64,
    /// The scores of those responses that have an outcome.
    pub(super) judged_score: Moments,
    pub(super) outcome: Moments,
    /// Groups of which a response was cut off by the length limit, and those responses' scores.
    pub(super) truncated_groups: u64,
    pub(super) truncated_score: Moments,
    /// Groups of which a response was not, and those responses' scores.
    pub(super) whole_groups: u64,
    pub(super) whole_score: Moments,
    /// Of groups of two or more: the standard deviation of the scores within the group.
    pub(super) spread: Moments,
    /// Responses of groups of two or more whose tokens are known, and those that say what a sibling says.
    pub(super) siblings: u64,
    pub(super) duplicates: u64,
    pub(super) highest: Option<Highest>,
    /// The values that the score takes, up to one more than [`CLASSES_LIMIT`].
    values: Vec<f32>,
    /// By scorer; empty where the score has one.
    pub(super) scorers: BTreeMap<String, ScorerSums>,
}

impl Sums {
    /// Of the scored responses of one group.
    pub(super) fn of(group: &[ScoreSummary]) -> Self {
        let judged: Vec<(f64, f64)> =
            group.iter().filter_map(|summary| Some((score(summary), f64::from(summary.outcome?)))).collect();
        let truncated = Moments::of(group.iter().filter(|summary| summary.truncated).map(score));
        let whole = Moments::of(group.iter().filter(|summary| !summary.truncated).map(score));
        let mut sums = Self {
            groups: 1,
            score: Moments::of(group.iter().map(score)),
            tokens: Moments::of(group.iter().map(|summary| f64::from(summary.tokens))),
            judged_groups: u64::from(!judged.is_empty()),
            judged_score: Moments::of(judged.iter().map(|(score, _)| *score)),
            outcome: Moments::of(judged.iter().map(|(_, outcome)| *outcome)),
            truncated_groups: u64::from(truncated.count > 0),
            truncated_score: truncated,
            whole_groups: u64::from(whole.count > 0),
            whole_score: whole,
            scorers: scorers(group),
            ..Self::default()
        };
        if group.len() > 1 {
            sums.spread = Moments::of([sums.score.deviation()]);
            (sums.siblings, sums.duplicates) = duplicates(group);
        }
        for summary in group {
            sums.add_value(summary.score);
            let unconfirmed = u64::from(summary.outcome.is_none_or(|outcome| outcome < 1.0));
            sums.add_highest(Highest { score: summary.score, unconfirmed });
        }
        sums
    }

    /// Adds the sums of other groups.
    pub(super) fn merge(&mut self, other: &Self) {
        self.groups += other.groups;
        self.judged_groups += other.judged_groups;
        self.truncated_groups += other.truncated_groups;
        self.whole_groups += other.whole_groups;
        self.siblings += other.siblings;
        self.duplicates += other.duplicates;
        self.score.merge(&other.score);
        self.tokens.merge(&other.tokens);
        self.judged_score.merge(&other.judged_score);
        self.outcome.merge(&other.outcome);
        self.truncated_score.merge(&other.truncated_score);
        self.whole_score.merge(&other.whole_score);
        self.spread.merge(&other.spread);
        for value in &other.values {
            self.add_value(*value);
        }
        if let Some(highest) = other.highest {
            self.add_highest(highest);
        }
        for (name, sums) in &other.scorers {
            if self.scorers.len() >= SCORERS_LIMIT && !self.scorers.contains_key(name) {
                continue;
            }
            let known = self.scorers.entry(name.clone()).or_default();
            known.added.merge(&sums.added);
            known.covariance += sums.covariance;
        }
    }

    fn add_value(&mut self, value: f32) {
        if self.values.len() <= CLASSES_LIMIT && !self.values.contains(&value) {
            self.values.push(value);
        }
    }

    fn add_highest(&mut self, other: Highest) {
        match &mut self.highest {
            Some(highest) if highest.score > other.score => {}
            Some(highest) if highest.score == other.score => highest.unconfirmed += other.unconfirmed,
            highest => *highest = Some(other),
        }
    }

    /// Whether the score takes more values than a few.
    pub(super) fn is_graded(&self) -> bool {
        self.values.len() > CLASSES_LIMIT
    }

    /// Whether outcomes stand for the responses: most have one.
    pub(super) fn is_judged(&self) -> bool {
        self.outcome.count * 2 >= self.score.count && self.outcome.count > 0
    }
}

fn score(summary: &ScoreSummary) -> f64 {
    f64::from(summary.score)
}

/// Responses whose tokens are known, and how many of them repeat a sibling.
fn duplicates(group: &[ScoreSummary]) -> (u64, u64) {
    let digests: Vec<u64> = group.iter().filter_map(|summary| summary.digest).collect();
    let distinct: BTreeSet<u64> = digests.iter().copied().collect();
    (digests.len() as u64, (digests.len() - distinct.len()) as u64)
}

/// What each scorer added within a group.
fn scorers(group: &[ScoreSummary]) -> BTreeMap<String, ScorerSums> {
    let names: BTreeSet<&String> = group.iter().flat_map(|summary| summary.contributions.keys()).collect();
    let mean = Moments::of(group.iter().map(score)).mean;
    let mut scorers = BTreeMap::new();
    for name in names.into_iter().take(SCORERS_LIMIT) {
        let added_by =
            |summary: &ScoreSummary| bounded(summary.contributions.get(name).copied().unwrap_or(0.0));
        let added: Vec<f64> = group.iter().map(added_by).collect();
        let moments = Moments::of(added.iter().copied());
        let products =
            group.iter().zip(&added).map(|(summary, added)| (added - moments.mean) * (score(summary) - mean));
        let covariance = products.sum::<f64>() / group.len() as f64;
        scorers.insert(name.clone(), ScorerSums { added: moments, covariance });
    }
    scorers
}
