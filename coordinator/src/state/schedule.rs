//! Which prompts come next.

use algo::vade::{Gain, Vade};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
