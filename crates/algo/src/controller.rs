//! The coefficient β of the KL penalty from step to step: fixed, or adapted to a target.

use serde::{Deserialize, Serialize};

use crate::error::{Error, require, require_positive};

/// The relative error of the KL is limited to this before it moves β.
const MAX_PROPORTIONAL_ERROR: f64 = 0.2;

/// Who decides β.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KlController {
    /// β never changes.
    Fixed {
        /// β, 0 or more.
        coefficient: f64,
    },
    /// β follows the measured KL (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).
    Adaptive {
        /// β as it is before the next measurement.
        coefficient: f64,
        /// The KL aimed at, in the unit that is measured (nats per response in the paper).
        target: f64,
        /// Samples over which β can change by about a fifth; 10000 in the reference code.
        horizon: f64,
    },
}

impl KlController {
    /// β for the next step.
    pub fn coefficient(&self) -> f64 {
        match *self {
            Self::Fixed { coefficient } | Self::Adaptive { coefficient, .. } => coefficient,
        }
    }

    /// The controller after `samples` samples with this mean KL:
    /// `β ← β (1 + clip(KL / target − 1, ±0.2) · samples / horizon)`.
    ///
    /// The factor never falls below 0, so that more samples than five horizons cannot turn the penalty into a
    /// reward.
    ///
    /// # Errors
    /// A KL that is not finite, a target or horizon that is not positive.
    pub fn updated(self, measured_kl: f64, samples: u64) -> Result<Self, Error> {
        match self {
            Self::Fixed { .. } => Ok(self),
            Self::Adaptive { coefficient, target, horizon } => {
                require(measured_kl.is_finite(), "measured_kl", measured_kl, "a finite number")?;
                require_positive("target", target)?;
                require_positive("horizon", horizon)?;
                let error =
                    (measured_kl / target - 1.0).clamp(-MAX_PROPORTIONAL_ERROR, MAX_PROPORTIONAL_ERROR);
                let factor = (1.0 + error * samples as f64 / horizon).max(0.0);
                Ok(Self::Adaptive { coefficient: coefficient * factor, target, horizon })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAPTIVE: KlController =
        KlController::Adaptive { coefficient: 0.1, target: 6.0, horizon: 10_000.0 };

    #[test]
    fn fixed_stays() {
        let fixed = KlController::Fixed { coefficient: 0.05 };
        assert_eq!(fixed.updated(100.0, 1000).unwrap(), fixed);
    }

    #[test]
    fn adaptive_moves_towards_the_target_and_no_faster_than_a_fifth_per_horizon() {
        let close = ADAPTIVE.updated(6.6, 1000).unwrap().coefficient();
        assert!((close - 0.1 * (1.0 + 0.1 * 0.1)).abs() < 1e-15);
        let far_above = ADAPTIVE.updated(600.0, 1000).unwrap().coefficient();
        assert!((far_above - 0.1 * 1.02).abs() < 1e-15);
        let below = ADAPTIVE.updated(0.0, 1000).unwrap().coefficient();
        assert!((below - 0.1 * 0.98).abs() < 1e-15);
        assert_eq!(ADAPTIVE.updated(0.0, 1_000_000).unwrap().coefficient(), 0.0);
    }

    #[test]
    fn a_broken_measurement_is_an_error() {
        assert!(ADAPTIVE.updated(f64::NAN, 10).is_err());
        for (target, horizon) in [(0.0, 1.0), (-1.0, 1.0), (f64::INFINITY, 1.0), (1.0, 0.0), (1.0, f64::NAN)]
        {
            let broken = KlController::Adaptive { coefficient: 0.1, target, horizon };
            let error = broken.updated(1.0, 1).unwrap_err().to_string();
            assert!(error.ends_with("expected a positive number"), "{error}");
        }
    }
}
