//! Estimates of KL(π‖π_ref) from the tokens that were drawn, as numbers and as a term of the loss.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::coefficients::LossTerm;
use crate::error::{Error, require_non_negative};
use crate::moments::Moments;
use crate::responses::Responses;

/// Log-ratios are kept within ±20 before they are exponentiated, as verl and OpenRLHF do; outside, the
/// gradient is 0.
pub const MAX_LOG_RATIO: f64 = 20.0;

/// `exp(log_ratio)` with the exponent kept within ±[`MAX_LOG_RATIO`], and its derivative (0 where the limit
/// holds).
pub(crate) fn bounded_exp(log_ratio: f64) -> (f64, f64) {
    let ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp();
    (ratio, if log_ratio.abs() <= MAX_LOG_RATIO { ratio } else { 0.0 })
}

/// `minuend − subtrahend` at a token, in f64: a log-ratio where both are log-probs.
pub(crate) fn difference(minuend: &[f32], subtrahend: &[f32], token: usize) -> f64 {
    f64::from(minuend[token]) - f64::from(subtrahend[token])
}

/// A per-token estimator of the KL divergence, as a function of `Δ = log π − log π_ref` of the drawn token
/// (Schulman 2020, "Approximating KL divergence"; algorithms of verl `kl_penalty`).
///
/// k1 and k3 are unbiased values under π. As a term of a loss their gradients are not that of the divergence:
/// k1's has expectation 0, k3's is biased; k2's is right on-policy. `k3+` therefore has the value of k3 and
/// the gradient of k2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KlEstimator {
    /// `Δ`: unbiased, but of either sign.
    K1,
    /// `Δ² / 2`: biased, small variance.
    K2,
    /// `exp(−Δ) − 1 + Δ`, never negative
    K3,
    /// value of k3, gradient of k2
    #[serde(rename = "k3+")]
    K3Plus,
    /// `|Δ|`: the magnitude of `Δ`, no estimate of the divergence.
    Abs,
}

impl KlEstimator {
    /// The estimate for one token from `Δ = log π − log π_ref`.
    pub fn value(self, log_ratio: f64) -> f64 {
        match self {
            Self::K1 => log_ratio,
            Self::K2 => log_ratio * log_ratio / 2.0,
            Self::K3 | Self::K3Plus => {
                let bounded = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO);
                (-bounded).exp_m1() + bounded
            }
            Self::Abs => log_ratio.abs(),
        }
    }

    /// The derivative with respect to `log π` of that token. `|Δ|` has 0 at 0; k3 has 0 beyond
    /// ±[`MAX_LOG_RATIO`].
    pub fn gradient(self, log_ratio: f64) -> f64 {
        match self {
            Self::K1 => 1.0,
            Self::K2 | Self::K3Plus => log_ratio,
            Self::K3 if log_ratio.abs() <= MAX_LOG_RATIO => -(-log_ratio).exp_m1(),
            Self::Abs if log_ratio != 0.0 => log_ratio.signum(),
            Self::K3 | Self::Abs => 0.0,
        }
    }

    /// Moments of the estimate over the counted tokens; `logprobs` and `ref_logprobs` are `[tokens]`.
    ///
    /// # Errors
    /// A wrong length or a counted number that is not finite.
    pub fn moments(
        self,
        responses: Responses<'_>,
        logprobs: &[f32],
        ref_logprobs: &[f32],
    ) -> Result<Moments, Error> {
        responses.require_tokens("logprobs", logprobs)?;
        responses.require_tokens("ref_logprobs", ref_logprobs)?;
        let counted = responses.counted_tokens();
        Ok(counted.map(|token| self.value(difference(logprobs, ref_logprobs, token))).collect())
    }
}

/// The tokens a KL term of the loss is taken over; every slice is `[tokens]`.
#[derive(Debug, Clone, Copy)]
pub struct KlTokens<'a> {
    /// Which tokens there are and count.
    pub responses: Responses<'a>,
    /// `log π_θ` of the drawn tokens.
    pub logprobs: &'a [f32],
    /// `log π_ref` of the drawn tokens.
    pub ref_logprobs: &'a [f32],
    /// `c_it` of [`coefficients`](crate::coefficients()).
    pub coefficients: &'a [f64],
}

/// KL in the loss: `β Σ_it c_it k̂l(log π_θ,it − log π_ref,it)` (GRPO, arXiv 2402.03300, section 4.1), with
/// the gradient with respect to `logprobs`.
///
/// # Errors
/// A negative β, a wrong length or a counted number that is not finite.
pub fn kl_loss(
    estimator: KlEstimator,
    kl_coefficient: f64,
    tokens: &KlTokens<'_>,
) -> Result<LossTerm, Error> {
    require_non_negative("kl_coefficient", kl_coefficient)?;
    tokens.responses.require_tokens("logprobs", tokens.logprobs)?;
    tokens.responses.require_tokens("ref_logprobs", tokens.ref_logprobs)?;
    LossTerm::sum(tokens.responses, tokens.coefficients, |token| {
        let log_ratio = f64::from(tokens.logprobs[token]) - f64::from(tokens.ref_logprobs[token]);
        (kl_coefficient * estimator.value(log_ratio), kl_coefficient * estimator.gradient(log_ratio))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_configuration() {
        for (estimator, name) in [
            (KlEstimator::K1, "\"k1\""),
            (KlEstimator::K2, "\"k2\""),
            (KlEstimator::K3, "\"k3\""),
            (KlEstimator::K3Plus, "\"k3+\""),
            (KlEstimator::Abs, "\"abs\""),
        ] {
            assert_eq!(serde_json::to_string(&estimator).unwrap(), name);
            assert_eq!(serde_json::from_str::<KlEstimator>(name).unwrap(), estimator);
        }
    }

    #[test]
    fn huge_log_ratios_stay_finite_and_lose_their_gradient() {
        for log_ratio in [-1e4, 1e4] {
            assert!(KlEstimator::K3.value(log_ratio).is_finite());
            assert_eq!(KlEstimator::K3.gradient(log_ratio), 0.0);
            let (ratio, slope) = bounded_exp(log_ratio);
            assert!(ratio.is_finite() && slope == 0.0);
        }
        assert_eq!(KlEstimator::K3Plus.gradient(-1e4), -1e4);
        assert_eq!(KlEstimator::Abs.gradient(0.0), 0.0);
    }

    #[test]
    fn moments_are_over_the_tokens_that_count() {
        let mask = [true, false, true];
        let responses = Responses::new(&[3]).unwrap().with_mask(&mask).unwrap();
        let moments =
            KlEstimator::K1.moments(responses, &[-1.0, 9.0, -2.0], &[-1.5, f32::NAN, -3.0]).unwrap();
        assert_eq!((moments.count, moments.mean()), (2.0, 0.75));
    }
}
