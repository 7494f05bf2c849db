//! The weight of tokens with a positive advantage in the policy's loss, fixed or adapted to an entropy.
//!
//! Under a policy gradient it is these tokens that take the entropy away: what was likely and good becomes
//! likelier (Jin et al. 2025, Positive-Advantage Reweighting, arXiv 2511.05993). A weight below 1 slows that,
//! and leaves what is learnt of bad tokens as it is.
//!
//! The adaptive rule is ours: it has the form of the adaptive KL coefficient ([`crate::KlController`]), one
//! step a batch.

use serde::{Deserialize, Serialize};

use crate::error::{Error, require, require_positive};

/// The relative error of the entropy is limited to this before it moves the weight.
const MAX_PROPORTIONAL_ERROR: f64 = 0.2;

/// An adaptive weight is at least this share of the largest, so that good responses never stop to train.
const MIN_SHARE: f64 = 0.1;

/// Who decides the weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositiveWeight {
    /// It never changes.
    Fixed {
        /// The weight, above 0; 1 changes nothing.
        weight: f64,
    },
    /// It falls while the entropy is below the target, and rises again above it.
    Adaptive {
        /// The weight before the next measurement.
        weight: f64,
        /// The largest, and the first.
        largest: f64,
        /// The entropy aimed at, in nats per token.
        target: f64,
    },
}

impl PositiveWeight {
    /// The weight of the next batch.
    pub fn weight(&self) -> f64 {
        match *self {
            Self::Fixed { weight } | Self::Adaptive { weight, .. } => weight,
        }
    }

    /// What tokens with these advantages, `[tokens]`, are multiplied by; none where that is 1 for all.
    pub fn factors(&self, advantages: &[f32]) -> Option<Vec<f32>> {
        let weight = self.weight() as f32;
        if weight == 1.0 {
            return None;
        }
        Some(advantages.iter().map(|advantage| if *advantage > 0.0 { weight } else { 1.0 }).collect())
    }

    /// After a batch whose mean entropy was `entropy` nats per token:
    /// `w ← clip(w (1 + clip(H / H* − 1, ±0.2)), w_max / 10, w_max)`.
    ///
    /// # Errors
    /// An entropy that is not finite, a target or largest weight that is not positive.
    pub fn updated(self, entropy: f64) -> Result<Self, Error> {
        match self {
            Self::Fixed { .. } => Ok(self),
            Self::Adaptive { weight, largest, target } => {
                require(entropy.is_finite(), "entropy", entropy, "a finite number")?;
                require_positive("entropy_target", target)?;
                require_positive("positive_weight", largest)?;
                let error = (entropy / target - 1.0).clamp(-MAX_PROPORTIONAL_ERROR, MAX_PROPORTIONAL_ERROR);
                let weight = (weight * (1.0 + error)).clamp(MIN_SHARE * largest, largest);
                Ok(Self::Adaptive { weight, largest, target })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAPTIVE: PositiveWeight = PositiveWeight::Adaptive { weight: 0.5, largest: 1.0, target: 0.2 };

    #[test]
    fn only_positive_advantages_are_weighed() {
        let factors = PositiveWeight::Fixed { weight: 0.25 }.factors(&[1.0, 0.0, -2.0, 1e-30]);
        assert_eq!(factors, Some(vec![0.25, 1.0, 1.0, 0.25]));
        assert_eq!(PositiveWeight::Fixed { weight: 1.0 }.factors(&[1.0]), None);
    }

    #[test]
    fn a_fixed_weight_stays() {
        let fixed = PositiveWeight::Fixed { weight: 0.7 };
        assert_eq!(fixed.updated(0.0).unwrap(), fixed);
    }

    #[test]
    fn the_weight_falls_below_the_target_and_rises_above_it_within_its_bounds() {
        for (entropy, expected) in [(0.19, 0.475), (0.21, 0.525), (0.0, 0.4), (9.0, 0.6)] {
            let weight = ADAPTIVE.updated(entropy).unwrap().weight();
            assert!((weight - expected).abs() < 1e-12, "{entropy}: {weight}");
        }
        for (entropy, bound) in [(0.0, 0.1), (9.0, 1.0)] {
            let after = (0..40).fold(ADAPTIVE, |weight, _| weight.updated(entropy).unwrap());
            assert_eq!(after.weight(), bound);
        }
    }

    #[test]
    fn a_broken_measurement_is_an_error() {
        assert!(ADAPTIVE.updated(f64::NAN).is_err());
        for (largest, target) in [(0.0, 1.0), (f64::NAN, 1.0), (1.0, 0.0), (1.0, f64::INFINITY)] {
            let broken = PositiveWeight::Adaptive { weight: 0.5, largest, target };
            assert!(broken.updated(1.0).unwrap_err().to_string().ends_with("expected a positive number"));
        }
    }
}
