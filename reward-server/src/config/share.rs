//! How a scorer's number enters the score, or measures it: the keys that all scorers have.

use std::cmp::Ordering;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keys of every scorer; all others are its kind's.
pub(super) const SHARED_KEYS: [&str; 8] =
    ["weight", "mean", "std", "clip", "gate", "threshold", "floor", "yardstick"];

/// How a scorer's number enters the score: `weight * clip((number - mean) / std)` is added, then the gates
/// act.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Share {
    /// Its factor in the sum; where not given 1, and 0 for a gate.
    pub weight: Option<f64>,
    /// Subtracted from the number.
    pub mean: f64,
    /// Divides the number.
    pub std: f64,
    /// Keeps the standardised number within `[low, high]`.
    pub clip: Option<[f64; 2]>,
    /// Acts on the sum.
    pub gate: Option<Gate>,
    /// The least number that passes the gate.
    pub threshold: Option<f64>,
    /// The score of what does not pass a `floor` gate.
    pub floor: f64,
    /// Its number, 0 to 1, is the response's outcome, by which the score is measured: R², the detectors and
    /// pass@1 go by it. One scorer may be marked; where none is, the outcome is that of the hidden tests.
    /// With `weight = 0` it measures and is no part of the score.
    pub yardstick: bool,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            weight: None,
            mean: 0.0,
            std: 1.0,
            clip: None,
            gate: None,
            threshold: None,
            floor: 0.0,
            yardstick: false,
        }
    }
}

/// How a scorer's number acts on the sum of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// Multiplies it: by the number itself, or with a threshold by 1 or 0.
    Multiply,
    /// Below the threshold the score is `floor`, whatever the others say.
    Floor,
}

impl Share {
    /// Its factor in the sum.
    pub(super) fn factor(&self) -> f64 {
        self.weight.unwrap_or(if self.gate.is_some() { 0.0 } else { 1.0 })
    }

    /// Whether the number decides anything about the score.
    pub(crate) fn enters_score(&self) -> bool {
        self.factor() != 0.0 || self.gate.is_some()
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let Self { mean, std, clip, gate, threshold, floor, .. } = self;
        let mut problems = Vec::new();
        for (name, number) in [("weight", self.factor()), ("mean", *mean), ("floor", *floor)] {
            if !number.is_finite() {
                problems.push(format!("{name} is {number}, must be finite"));
            }
        }
        if !std.is_finite() || *std <= 0.0 {
            problems.push(format!("std is {std}, must be above 0"));
        }
        if let Some([low, high]) = clip
            && !matches!(low.partial_cmp(high), Some(Ordering::Less))
        {
            problems.push(format!("clip is [{low}, {high}], the first must be below the second"));
        }
        if *gate == Some(Gate::Floor) && threshold.is_none() {
            problems.push("threshold is missing: a floor gate needs one".to_owned());
        }
        if gate.is_none() && threshold.is_some() {
            problems.push("threshold needs a gate".to_owned());
        }
        problems
    }
}
