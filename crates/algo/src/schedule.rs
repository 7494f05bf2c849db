//! Learning rates as a function of the step, the same as `transformers.get_scheduler`.

use std::f64::consts::PI;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the learning rate does after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Stays at the peak.
    Constant,
    /// Falls in a straight line to 0 at the last step.
    Linear,
    /// Falls along half a cosine to 0 at the last step.
    Cosine,
}

impl Schedule {
    /// The factor on the peak learning rate for the optimizer step after `step` steps have been done.
    ///
    /// Warm-up: `step / warmup_steps`, so that with a warm-up the first step has learning rate 0, as in
    /// transformers. Then, with `x = (step − warmup_steps) / (total_steps − warmup_steps)`: 1, `1 − x`, or
    /// `(1 + cos πx) / 2`. From `total_steps` on, linear and cosine are 0 (transformers lets the cosine rise
    /// again).
    pub fn factor(self, step: u64, warmup_steps: u64, total_steps: u64) -> f64 {
        if step < warmup_steps {
            return step as f64 / warmup_steps as f64;
        }
        let decay_steps = total_steps.saturating_sub(warmup_steps).max(1);
        let progress = ((step - warmup_steps) as f64 / decay_steps as f64).min(1.0);
        match self {
            Self::Constant => 1.0,
            Self::Linear => 1.0 - progress,
            Self::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `get_scheduler(name, optimizer, 2, 6)` of transformers gives for steps 0 to 6; 7 is past the end.
    #[test]
    fn same_factors_as_transformers() {
        let expected = [
            (Schedule::Constant, [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
            (Schedule::Linear, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]),
            (Schedule::Cosine, [0.0, 0.5, 1.0, 0.853_553_390_593, 0.5, 0.146_446_609_407, 0.0, 0.0]),
        ];
        for (schedule, factors) in expected {
            for (step, factor) in (0..).zip(factors) {
                let found = schedule.factor(step, 2, 6);
                assert!((found - factor).abs() < 1e-12, "{schedule:?} step {step}: {found}");
            }
        }
    }

    #[test]
    fn degenerate_lengths_are_defined() {
        assert_eq!(Schedule::Cosine.factor(0, 0, 0), 1.0);
        assert_eq!(Schedule::Linear.factor(1, 0, 0), 0.0);
        assert_eq!(Schedule::Linear.factor(5, 10, 3), 0.5);
        assert_eq!(Schedule::Linear.factor(u64::MAX, 10, 30), 0.0);
    }
}
