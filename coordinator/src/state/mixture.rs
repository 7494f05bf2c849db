//! Which data set the next prompt is of, and where each of them stands.
//!
//! Shares are exact over time. The next prompt is of a set that is not ahead of its share, and among those of
//! the one that is due first: the quota method (Balinski and Young, "The Quota Method of Apportionment",
//! 1975), after which each set has its share of the prompts begun, rounded up or down.

use serde::{Deserialize, Serialize};
use types::PromptId;

/// What a count may be below its quota and is still as large: quotas are rounded.
const ROUNDING: f64 = 1e-6;

/// One of several data sets, in the order of their ordinals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetPlan {
    /// Its name.
    pub name: String,
    /// Prompts in it.
    pub prompts: u64,
    /// Its part of all prompts, in relation to the others'.
    pub share: f64,
}

/// Where the data sets stand; the only one, if there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Mixture {
    cursors: Vec<Cursor>,
}

/// Where a data set stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    /// Prompts that were begun.
    begun: u64,
    epoch: u32,
    /// Of the next prompt in its epoch.
    place: u64,
}

impl Mixture {
    /// Begins a prompt of one of these sets, the first one from its cursor on that `takes` takes; whatever is
    /// next when none of `most` is taken.
    pub(super) fn next(&mut self, sets: &[SetPlan], most: u64, takes: impl Fn(PromptId) -> bool) -> PromptId {
        self.cursors.resize(sets.len().max(1), Cursor::default());
        let set = due(sets, &self.cursors);
        let first: u64 = sets[..set].iter().map(|set| set.prompts).sum();
        let prompts = sets[set].prompts;
        let cursor = &mut self.cursors[set];
        cursor.begun += 1;
        for _ in 0..most.min(prompts) {
            let prompt = cursor.advance(first, prompts);
            if takes(prompt) {
                return prompt;
            }
        }
        cursor.advance(first, prompts)
    }
}

impl Cursor {
    /// The next prompt of a set of so many, whose first ordinal is `first`.
    fn advance(&mut self, first: u64, prompts: u64) -> PromptId {
        let prompt = PromptId { epoch: self.epoch, ordinal: first + self.place };
        self.place += 1;
        if self.place >= prompts {
            (self.epoch, self.place) = (self.epoch + 1, 0);
        }
        prompt
    }
}

/// The set that the next prompt is of.
fn due(sets: &[SetPlan], cursors: &[Cursor]) -> usize {
    let total: f64 = sets.iter().map(|set| set.share).sum();
    let next = (cursors.iter().map(|cursor| cursor.begun).sum::<u64>() + 1) as f64;
    let mut due: Option<(usize, f64)> = None;
    for (at, (set, cursor)) in sets.iter().zip(cursors).enumerate() {
        let share = set.share / total;
        let is_ahead = cursor.begun as f64 + ROUNDING >= next * share;
        let deadline = (cursor.begun + 1) as f64 / share;
        if !is_ahead && due.is_none_or(|(_, first)| deadline < first) {
            due = Some((at, deadline));
        }
    }
    due.map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn sets(shares: &[f64]) -> Vec<SetPlan> {
        let sets = shares.iter().zip(1..);
        sets.map(|(share, n)| SetPlan { name: format!("{n}"), prompts: 10 * n, share: *share }).collect()
    }

    #[test]
    fn shares_are_exact_at_every_moment_and_no_prompt_comes_twice() {
        for shares in [&[1.0][..], &[1.0, 1.0], &[5.0, 3.0, 1.5, 0.1], &[0.7, 0.2, 0.1], &[1000.0, 1.0, 1.0]]
        {
            let sets = sets(shares);
            let total: f64 = shares.iter().sum();
            let (mut mixture, mut seen) = (Mixture::default(), BTreeSet::new());
            for number in 1..=5_000u32 {
                assert!(seen.insert(mixture.next(&sets, 0, |_| true)), "it came before");
                for (cursor, share) in mixture.cursors.iter().zip(shares) {
                    let quota = f64::from(number) * share / total;
                    assert!(
                        (cursor.begun as f64 - quota).abs() < 1.0,
                        "{shares:?} after {number}: {mixture:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn each_set_has_its_own_epochs_and_ordinals() {
        let sets = sets(&[1.0, 1.0]);
        let mut mixture = Mixture::default();
        let begun: Vec<PromptId> = (0..24).map(|_| mixture.next(&sets, 0, |_| true)).collect();
        let (first, second): (Vec<PromptId>, Vec<PromptId>) = begun.iter().partition(|id| id.ordinal < 10);
        assert_eq!((first.len(), second.len()), (12, 12));
        assert_eq!(first[10], PromptId { epoch: 1, ordinal: 0 });
        assert_eq!(second[11], PromptId { epoch: 0, ordinal: 21 });
    }

    #[test]
    fn what_is_not_taken_is_passed_over_and_nothing_waits_for_ever() {
        let sets = sets(&[1.0]);
        let mut mixture = Mixture::default();
        let begun = (0..5).map(|_| mixture.next(&sets, 100, |prompt| prompt.ordinal % 2 == 1).ordinal);
        let begun: Vec<u64> = begun.collect();
        assert_eq!(begun, [1, 3, 5, 7, 9]);
        let next = mixture.next(&sets, 100, |_| false);
        assert_eq!(next, PromptId { epoch: 2, ordinal: 0 }, "after one look at each");
    }
}
