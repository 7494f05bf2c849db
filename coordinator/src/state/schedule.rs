//! Which prompts come next.

use std::collections::BTreeMap;

use algo::vade::{Gain, Vade};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use types::{PromptId, RolloutId};

use super::groups::CompleteGroup;

/// Which prompts come next.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// In which order.
    pub order: Order,
    /// Of VADE: what a group is worth, `skewed` (the paper's) or `variance`.
    pub gain: Gain,
    /// Of VADE: λ1, what of a selected prompt's counts stays beside the new ones.
    pub selected_decay: f64,
    /// Of VADE: λ2, what of the counts stays after a round in which the prompt was not selected.
    pub unselected_decay: f64,
    /// A response is right when its outcome, or its score where it has none, is above this.
    pub right_above: f64,
    /// Of the curriculum: the smallest running pass rate of a prompt that is preferred.
    pub band_low: f64,
    /// Of the curriculum: the largest one.
    pub band_high: f64,
    /// Of the curriculum: what of a prompt's pass rate stays beside that of its newest group.
    pub rate_decay: f64,
    /// Of the curriculum: the share of the prompts outside the band that come all the same, so that they are
    /// known anew.
    pub outside_share: f64,
}

/// In which order prompts come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Each prompt once in an epoch, in the data set's order or, with `data.shuffle`, in one of the epoch's
    /// own.
    #[default]
    Epochs,
    /// Those whose groups are likely to carry signal (VADE, arXiv 2511.18902).
    Vade,
    /// As in the data set, in its own order, but prompts are passed over whose running pass rate lies outside
    /// the band. Those that were never tried are not.
    Curriculum,
}

/// The running pass rate of each prompt that was tried, by its ordinal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct PassRates(BTreeMap<u64, f64>);

impl PassRates {
    /// A group is complete.
    pub(super) fn observe(&mut self, schedule: &Schedule, group: &CompleteGroup) {
        let (right, all) = schedule.right_of(group);
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

impl Default for Schedule {
    fn default() -> Self {
        // The decays that solve the worked example of VADE's framework figure.
        Self {
            order: Order::Epochs,
            gain: Gain::Skewed,
            selected_decay: 0.2,
            unselected_decay: 0.999,
            right_above: 0.5,
            // What a group of eight is likely to be mixed at.
            band_low: 0.1,
            band_high: 0.9,
            rate_decay: 0.5,
            outside_share: 0.1,
        }
    }
}

impl Schedule {
    /// How VADE selects.
    pub(super) fn vade(&self) -> Vade {
        Vade { gain: self.gain, selected_decay: self.selected_decay, unselected_decay: self.unselected_decay }
    }

    /// How many responses of a group are right, of how many.
    pub(super) fn right_of(&self, group: &CompleteGroup) -> (u64, u64) {
        let results = group.scored.iter().map(|summary| summary.outcome.unwrap_or(summary.score));
        let right = results.filter(|result| f64::from(*result) > self.right_above).count();
        (right as u64, group.scored.len() as u64)
    }

    /// What is wrong with it.
    pub(crate) fn problem(&self) -> Option<String> {
        for (name, share) in [
            ("selected_decay", self.selected_decay),
            ("unselected_decay", self.unselected_decay),
            ("band_low", self.band_low),
            ("band_high", self.band_high),
            ("rate_decay", self.rate_decay),
            ("outside_share", self.outside_share),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Some(format!("schedule.{name} is {share}, must be between 0 and 1"));
            }
        }
        if self.band_low > self.band_high {
            return Some(format!(
                "schedule.band_low is {}, above band_high = {}",
                self.band_low, self.band_high
            ));
        }
        (!self.right_above.is_finite()).then(|| "schedule.right_above must be a number".to_owned())
    }
}
