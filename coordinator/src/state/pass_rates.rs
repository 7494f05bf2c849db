//! How often a prompt's responses are right.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use types::{PromptId, RolloutId};

use super::groups::CompleteGroup;
use super::schedule::Schedule;

/// How many responses of a group have an outcome, or a score where they have none, above `right_above`; and
/// of how many.
pub(super) fn right_of(group: &CompleteGroup, right_above: f64) -> (u64, u64) {
    let results = group.scored.iter().map(|summary| summary.outcome.unwrap_or(summary.score));
    let right = results.filter(|result| f64::from(*result) > right_above).count();
    (right as u64, group.scored.len() as u64)
}

/// The running pass rate of each prompt that was tried, by its ordinal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct PassRates(BTreeMap<u64, f64>);

impl PassRates {
    /// A group is complete.
    pub(super) fn observe(&mut self, schedule: &Schedule, group: &CompleteGroup) {
        let (right, all) = right_of(group, schedule.right_above);
        if all > 0 {
            let newest = right as f64 / all as f64;
            let rate = self.0.entry(group.prompt.ordinal).or_insert(newest);
            *rate = schedule.rate_decay * *rate + (1.0 - schedule.rate_decay) * newest;
        }
    }

    /// Whether a prompt is not passed over.
    pub(super) fn takes(&self, schedule: &Schedule, seed: u64, prompt: PromptId) -> bool {
        let known = self.0.get(&prompt.ordinal);
        let is_inside = known.is_none_or(|rate| (schedule.band_low..=schedule.band_high).contains(rate));
        // The same answer again after a restart.
        let drawn = RolloutId { prompt, sibling: 0, attempt: 0 }.seed(seed) >> 11;
        is_inside || (drawn as f64 / (1_u64 << 53) as f64) < schedule.outside_share
    }
}
