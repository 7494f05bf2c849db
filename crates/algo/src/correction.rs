//! Weights for tokens that another distribution drew than the one the loss takes for old: a stale policy, or
//! an engine whose arithmetic differs from the learner's.
//!
//! A weight is detached and multiplies the token's coefficient; denominators stay those of all counted tokens
//! (as AReaL and verl do). Invariant: identical log-probs give weight exactly 1 wherever the bounds admit 1.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::coefficients::require_coefficients;
use crate::error::{Error, require, require_non_negative};
use crate::kl::{bounded_exp, difference};
use crate::responses::Responses;

/// The weight of a token, from `w_t = π_old(y_t) / π_rollout(y_t)` and, per response with `T` counted tokens,
/// the geometric mean `g = (Π w_t)^(1/T)` or the product `p = Π w_t`.
///
/// With π_old the proximal policy and π_rollout the behaviour policy this is the decoupled objective of
/// Hilton et al. 2021 (arXiv 2110.00641) and AReaL (arXiv 2505.24298, section 5); with both the same weights
/// in two engines it is the mismatch correction of Yao et al. 2025 (fengyao.notion.site/off-policy-rl).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Correction {
    /// 1 for every token: no correction.
    None,
    /// `w_t`: the whole ratio, unbounded.
    Token,
    /// Truncated importance sampling: `min(w_t, max)`
    TokenTruncate {
        /// The bound `C`; 2 in the field.
        max: f64,
    },
    /// IcePop: `w_t` if `min ≤ w_t ≤ max`, otherwise 0. AReaL's default is `0..=5`.
    TokenMask {
        /// The lower bound of what is kept.
        min: f64,
        /// The upper bound of what is kept.
        max: f64,
    },
    /// Sequence truncated importance sampling: `min(p, max)` for every token of the response (verl, TRL
    /// `sequence_truncate`)
    SequenceTruncate {
        /// The bound of the product `p`.
        max: f64,
    },
    /// `w_t` if `min ≤ g ≤ max`, otherwise 0 for the whole response (OpenRLHF `seq-mask-tis`, which does not
    /// bound `w_t` either)
    SequenceMask {
        /// The lower bound of what is kept.
        min: f64,
        /// The upper bound of what is kept.
        max: f64,
    },
    /// `p` for every token if `p ≤ max`, otherwise 0 (TRL `sequence_mask`, default 3)
    SequenceProductMask {
        /// The bound of the product `p`.
        max: f64,
    },
}

/// Weights and what they did.
#[derive(Debug, Clone, PartialEq)]
pub struct CorrectionWeights {
    /// `[tokens]`; 0 on tokens that do not count.
    pub weights: Vec<f32>,
    /// Sums for the metrics; parts add up.
    pub sums: CorrectionSums,
}

/// Sums over counted tokens; ranks all-reduce them by addition.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CorrectionSums {
    /// How many tokens count.
    pub tokens: f64,
    /// Sum of the weights given.
    pub weight: f64,
    /// Tokens whose weight was cut down to a bound.
    pub truncated: f64,
    /// Tokens that got weight 0 because a bound rejected them.
    pub rejected: f64,
    /// Sum of `log π_rollout − log π_old`, the k1 estimate of KL(π_rollout‖π_old).
    pub rollout_kl: f64,
}

impl CorrectionSums {
    /// Adds another part.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.weight += other.weight;
        self.truncated += other.truncated;
        self.rejected += other.rejected;
        self.rollout_kl += other.rollout_kl;
    }
}

/// What becomes of a token.
enum Verdict {
    Keep(f64),
    Truncate(f64),
    Reject,
}

impl Verdict {
    /// The weight, cut down to `max` where it is above.
    fn truncated(weight: f64, max: f64) -> Self {
        if weight <= max { Self::Keep(weight) } else { Self::Truncate(max) }
    }

    /// The weight, where the bounds admit the token.
    fn masked(weight: f64, admitted: bool) -> Self {
        if admitted { Self::Keep(weight) } else { Self::Reject }
    }
}

impl Correction {
    /// The weights of these tokens; both log-prob slices are `[tokens]`, of the drawn tokens.
    ///
    /// `rollout_logprobs` must be over the same support as `old_logprobs`: where the sampler cut the
    /// distribution (top-p, top-k, min-p), put them through
    /// [`full_support_logprobs`](crate::full_support_logprobs) first.
    ///
    /// # Errors
    /// A bound that is negative, not finite, or below its partner, a wrong length or a counted number that is
    /// not finite.
    pub fn weights(
        &self,
        responses: Responses<'_>,
        old_logprobs: &[f32],
        rollout_logprobs: &[f32],
    ) -> Result<CorrectionWeights, Error> {
        self.validate()?;
        responses.require_tokens("old_logprobs", old_logprobs)?;
        responses.require_tokens("rollout_logprobs", rollout_logprobs)?;
        let mut result =
            CorrectionWeights { weights: vec![0.0; responses.tokens()], sums: CorrectionSums::default() };
        for span in responses.spans() {
            let log_ratios = responses
                .counted(span.clone())
                .map(|token| difference(old_logprobs, rollout_logprobs, token));
            let sum: f64 = log_ratios.sum();
            let length = responses.counted(span.clone()).count() as f64;
            for token in responses.counted(span) {
                let log_ratio = difference(old_logprobs, rollout_logprobs, token);
                result.sums.tokens += 1.0;
                result.sums.rollout_kl -= log_ratio;
                let weight = match self.verdict(log_ratio, sum, length) {
                    Verdict::Keep(weight) => weight,
                    Verdict::Truncate(bound) => {
                        result.sums.truncated += 1.0;
                        bound
                    }
                    Verdict::Reject => {
                        result.sums.rejected += 1.0;
                        0.0
                    }
                };
                result.sums.weight += weight;
                result.weights[token] = weight as f32;
            }
        }
        Ok(result)
    }

    /// The token's fate from its own log-ratio, its response's sum of log-ratios, and the number of counted
    /// tokens there.
    fn verdict(&self, log_ratio: f64, sum: f64, length: f64) -> Verdict {
        let (token, _) = bounded_exp(log_ratio);
        let (product, _) = bounded_exp(sum);
        match *self {
            Self::None => Verdict::Keep(1.0),
            Self::Token => Verdict::Keep(token),
            Self::TokenTruncate { max } => Verdict::truncated(token, max),
            Self::TokenMask { min, max } => Verdict::masked(token, (min..=max).contains(&token)),
            Self::SequenceTruncate { max } => Verdict::truncated(product, max),
            Self::SequenceMask { min, max } => {
                let (geometric_mean, _) = bounded_exp(sum / length);
                Verdict::masked(token, (min..=max).contains(&geometric_mean))
            }
            Self::SequenceProductMask { max } => Verdict::masked(product, product <= max),
        }
    }

    fn validate(&self) -> Result<(), Error> {
        let (min, max) = match *self {
            Self::None | Self::Token => return Ok(()),
            Self::TokenMask { min, max } | Self::SequenceMask { min, max } => (min, max),
            Self::TokenTruncate { max }
            | Self::SequenceTruncate { max }
            | Self::SequenceProductMask { max } => (0.0, max),
        };
        require_non_negative("correction.min", min)?;
        require(
            max.is_finite() && max >= min,
            "correction.max",
            max,
            "a finite number not below the lower bound",
        )
    }
}

/// Off-policy sequence mask (DeepSeek-V3.2, arXiv 2512.02556, section 3.1; TRL `get_off_policy_mask`): weight
/// 0 for every token of a response with a negative advantage and `mean_t (log π_rollout − log π_θ) > δ`,
/// otherwise 1, `[tokens]`.
///
/// # Errors
/// A negative δ, a wrong length or a number that counts and is not finite.
pub fn off_policy_sequence_mask(
    delta: f64,
    responses: Responses<'_>,
    advantages: &[f32],
    logprobs: &[f32],
    rollout_logprobs: &[f32],
) -> Result<Vec<f32>, Error> {
    require_non_negative("off_policy_delta", delta)?;
    responses.require_responses("advantages", advantages)?;
    responses.require_tokens("logprobs", logprobs)?;
    responses.require_tokens("rollout_logprobs", rollout_logprobs)?;
    let mut weights = vec![0.0; responses.tokens()];
    for (span, &advantage) in responses.spans().zip(advantages) {
        let drifts =
            responses.counted(span.clone()).map(|token| difference(rollout_logprobs, logprobs, token));
        let sum: f64 = drifts.sum();
        let length = responses.counted(span.clone()).count() as f64;
        let kept = advantage >= 0.0 || sum <= delta * length;
        for token in responses.counted(span) {
            weights[token] = f32::from(u8::from(kept));
        }
    }
    Ok(weights)
}

/// Multiplies the coefficients of counted tokens by their weights, in place; both are `[tokens]`.
///
/// # Errors
/// A wrong length or a counted number that is not finite.
pub fn reweight(responses: Responses<'_>, coefficients: &mut [f64], weights: &[f32]) -> Result<(), Error> {
    require_coefficients(responses, coefficients)?;
    responses.require_tokens("weights", weights)?;
    for token in responses.counted_tokens() {
        coefficients[token] *= f64::from(weights[token]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: [Correction; 7] = [
        Correction::None,
        Correction::Token,
        Correction::TokenTruncate { max: 2.0 },
        Correction::TokenMask { min: 0.5, max: 2.0 },
        Correction::SequenceTruncate { max: 2.0 },
        Correction::SequenceMask { min: 0.9, max: 1.1 },
        Correction::SequenceProductMask { max: 3.0 },
    ];

    #[test]
    fn identical_logprobs_have_weight_exactly_one() {
        let mask = [true, true, false];
        let responses = Responses::new(&[3, 0]).unwrap().with_mask(&mask).unwrap();
        let logprobs = [-0.3, -1.7, f32::NAN];
        for correction in EVERY {
            let result = correction.weights(responses, &logprobs, &logprobs).unwrap();
            assert_eq!(result.weights, [1.0, 1.0, 0.0], "{correction:?}");
            let expected = CorrectionSums { tokens: 2.0, weight: 2.0, ..CorrectionSums::default() };
            assert_eq!(result.sums, expected);
        }
    }

    #[test]
    fn each_bound_does_what_it_says() {
        let responses = Responses::new(&[2]).unwrap();
        let old = [4.0_f32.ln(), 0.5_f32.ln()];
        let weights_of = |correction: Correction| {
            let result = correction.weights(responses, &old, &[0.0, 0.0]).unwrap();
            (result.weights, result.sums.truncated, result.sums.rejected)
        };
        let close = |(found, truncated, rejected): (Vec<f32>, f64, f64),
                     expected: [f32; 2],
                     counts: (f64, f64)| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
            assert_eq!((truncated, rejected), counts);
        };
        close(weights_of(Correction::Token), [4.0, 0.5], (0.0, 0.0));
        close(weights_of(Correction::TokenTruncate { max: 3.0 }), [3.0, 0.5], (1.0, 0.0));
        close(weights_of(Correction::TokenMask { min: 0.6, max: 5.0 }), [4.0, 0.0], (0.0, 1.0));
        close(weights_of(Correction::SequenceTruncate { max: 1.5 }), [1.5, 1.5], (2.0, 0.0));
        close(weights_of(Correction::SequenceTruncate { max: 2.5 }), [2.0, 2.0], (0.0, 0.0));
        close(weights_of(Correction::SequenceMask { min: 1.0, max: 1.5 }), [4.0, 0.5], (0.0, 0.0));
        close(weights_of(Correction::SequenceMask { min: 1.0, max: 1.4 }), [0.0, 0.0], (0.0, 2.0));
        close(weights_of(Correction::SequenceProductMask { max: 2.5 }), [2.0, 2.0], (0.0, 0.0));
        close(weights_of(Correction::SequenceProductMask { max: 1.5 }), [0.0, 0.0], (0.0, 2.0));
    }

    #[test]
    fn only_bad_responses_that_drifted_are_dropped() {
        let responses = Responses::new(&[1, 1, 1]).unwrap();
        let mask = |advantages: [f32; 3]| {
            off_policy_sequence_mask(0.5, responses, &advantages, &[-2.0, -2.0, -1.0], &[-1.0; 3]).unwrap()
        };
        assert_eq!(mask([-1.0, 1.0, -1.0]), [0.0, 1.0, 1.0]);
        assert_eq!(mask([0.0, -0.1, 0.0]), [1.0, 0.0, 1.0]);
        // The mean over tokens decides: 0.6 here, below a bound of 0.7 that the sum of 1.2 exceeds.
        let responses = Responses::new(&[2]).unwrap();
        let kept = |delta| {
            off_policy_sequence_mask(delta, responses, &[-1.0], &[-2.0, -1.2], &[-1.0, -1.0]).unwrap()
        };
        assert_eq!((kept(0.7), kept(0.5)), (vec![1.0, 1.0], vec![0.0, 0.0]));
    }

    #[test]
    fn sums_of_parts_add_up() {
        let (old, rollout) = ([-1.0, -0.5, -2.0], [-1.5, -0.75, -1.0]);
        let correction = Correction::TokenTruncate { max: 1.5 };
        let sums = |tokens: std::ops::Range<usize>| {
            let lengths = [tokens.len()];
            let responses = Responses::new(&lengths).unwrap();
            correction.weights(responses, &old[tokens.clone()], &rollout[tokens]).unwrap().sums
        };
        let mut merged = sums(0..1);
        merged.merge(&sums(1..3));
        let whole = sums(0..3);
        assert_eq!((merged.tokens, merged.truncated, merged.rejected), (3.0, 1.0, 0.0));
        assert!((merged.weight - whole.weight).abs() < 1e-12 && merged.weight > 2.0);
        assert!((merged.rollout_kl - 0.25).abs() < 1e-12, "{merged:?}");
        let mut rejected = CorrectionSums { rejected: 1.0, ..merged };
        rejected.merge(&CorrectionSums { rejected: 2.0, truncated: 3.0, ..CorrectionSums::default() });
        assert_eq!((rejected.rejected, rejected.truncated), (3.0, 4.0));
    }

    #[test]
    fn bad_bounds_are_errors() {
        let responses = Responses::new(&[1]).unwrap();
        for correction in [
            Correction::TokenMask { min: 2.0, max: 1.0 },
            Correction::TokenTruncate { max: f64::NAN },
            Correction::SequenceMask { min: -1.0, max: 1.0 },
        ] {
            assert!(correction.weights(responses, &[0.0], &[0.0]).is_err(), "{correction:?}");
        }
    }
}
