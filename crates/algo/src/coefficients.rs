//! How token losses become one number: the coefficients `c_it` of `L = Σ_it c_it L_it`.
//!
//! Every aggregation is linear in the token losses, so it is settled here, once, from lengths, sample weights
//! and the totals of the *global* minibatch. Invariants:
//!
//! 1. The losses and gradients of parts (micro-batches, ranks) **add up** to those of the whole: sum them, do
//!    not average.
//! 2. A token that does not count has coefficient 0.
//! 3. A response without a counted token is no response: it is in no denominator.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, require, require_each};
use crate::responses::Responses;

/// The five aggregations of the field, with a weight `w_i` for each response, `T_i` counted tokens in
/// response `i`, and sums over the global minibatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregation {
    /// `Σ_i w_i Σ_t L_it / Σ_i w_i T_i` (DAPO, arXiv 2503.14476; default of verl and OpenRLHF)
    TokenMean,
    /// `Σ_i w_i (Σ_t L_it / T_i) / Σ_i w_i` (GRPO, arXiv 2402.03300)
    SeqMeanTokenMean,
    /// `Σ_i w_i Σ_t L_it / Σ_i w_i`
    SeqMeanTokenSum,
    /// `Σ_i w_i Σ_t L_it / (norm Σ_i w_i)` with a constant norm, the longest response allowed (Dr.GRPO, arXiv
    /// 2503.20783)
    SeqMeanTokenSumNorm,
    /// `Σ_i w_i Σ_t L_it`
    TokenSum,
}

/// The denominators of a minibatch. Ranks all-reduce both fields by addition, before the first backward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// `Σ_i w_i` over responses with a counted token.
    pub responses: f64,
    /// `Σ_i w_i T_i`.
    pub tokens: f64,
}

impl Totals {
    /// Totals of these responses; `weights` is `[responses]`.
    ///
    /// # Errors
    /// A wrong length, or a weight that is negative or not finite.
    pub fn of(responses: Responses<'_>, weights: &[f32]) -> Result<Self, Error> {
        require_weights(responses, weights)?;
        let mut totals = Self::default();
        for (span, &weight) in responses.spans().zip(weights) {
            let tokens = responses.counted(span).count();
            if tokens > 0 {
                totals
                    .merge(&Self { responses: f64::from(weight), tokens: f64::from(weight) * tokens as f64 });
            }
        }
        Ok(totals)
    }

    /// Adds the totals of another part of the minibatch.
    pub fn merge(&mut self, other: &Self) {
        self.responses += other.responses;
        self.tokens += other.tokens;
    }
}

/// The coefficients `c_it`, `[tokens]`, of the responses at hand, which may be a part of the minibatch
/// `totals` describes.
///
/// `weights` is `[responses]`; `norm_tokens` is the norm of [`Aggregation::SeqMeanTokenSumNorm`], in tokens,
/// and is not read otherwise. Responses of weight 0 get coefficient 0, also where the totals are 0.
///
/// # Errors
/// A wrong length, a bad weight, or totals that are 0 although a response has weight.
pub fn coefficients(
    aggregation: Aggregation,
    totals: &Totals,
    norm_tokens: usize,
    responses: Responses<'_>,
    weights: &[f32],
) -> Result<Vec<f64>, Error> {
    require_weights(responses, weights)?;
    let mut coefficients = vec![0.0; responses.tokens()];
    for (span, &weight) in responses.spans().zip(weights) {
        let tokens = responses.counted(span.clone()).count();
        if tokens == 0 || weight == 0.0 {
            continue;
        }
        let (name, denominator) = match aggregation {
            Aggregation::TokenMean => ("totals.tokens", totals.tokens),
            Aggregation::SeqMeanTokenMean => ("totals.responses", totals.responses * tokens as f64),
            Aggregation::SeqMeanTokenSum => ("totals.responses", totals.responses),
            Aggregation::SeqMeanTokenSumNorm => {
                ("totals.responses * norm_tokens", totals.responses * norm_tokens as f64)
            }
            Aggregation::TokenSum => ("denominator", 1.0),
        };
        require(denominator.is_finite() && denominator > 0.0, name, denominator, "a positive number")?;
        for token in responses.counted(span) {
            coefficients[token] = f64::from(weight) / denominator;
        }
    }
    Ok(coefficients)
}

fn require_weights(responses: Responses<'_>, weights: &[f32]) -> Result<(), Error> {
    require_each("weights", weights, responses.len(), "response")?;
    match weights.iter().find(|&&weight| weight < 0.0) {
        Some(&weight) => require(false, "weight", f64::from(weight), "a finite number of 0 or more"),
        None => Ok(()),
    }
}

/// A loss that is a sum over tokens, `L = Σ_it c_it L_it`, and its gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct LossTerm {
    /// `L` of these tokens. Parts add up.
    pub loss: f64,
    /// `dL / dx_it`, `[tokens]`, 0 where a token does not count; `x` is the first argument of the formula.
    pub gradient: Vec<f32>,
}

impl LossTerm {
    /// Sums `c · value` and collects `c · slope` over the counted tokens; `term` gives (value, slope) of a
    /// token.
    pub(crate) fn sum(
        responses: Responses<'_>,
        coefficients: &[f64],
        mut term: impl FnMut(usize) -> (f64, f64),
    ) -> Result<Self, Error> {
        require_coefficients(responses, coefficients)?;
        let mut sum = Self { loss: 0.0, gradient: vec![0.0; responses.tokens()] };
        for token in responses.counted_tokens() {
            let (value, slope) = term(token);
            sum.loss += coefficients[token] * value;
            sum.gradient[token] = (coefficients[token] * slope) as f32;
        }
        Ok(sum)
    }
}

pub(crate) fn require_coefficients(responses: Responses<'_>, coefficients: &[f64]) -> Result<(), Error> {
    responses.require_len("coefficients", coefficients.len())?;
    match responses.counted_tokens().find(|&token| !coefficients[token].is_finite()) {
        Some(index) => Err(Error::NotFinite { what: "coefficients", index, value: coefficients[index] }),
        None => Ok(()),
    }
}

/// The entropy bonus as a term of the loss, `−κ Σ_it c_it H_it`, with the gradient with respect to the
/// entropies `H` (`[tokens]`, nats). Maximising entropy is minimising this.
///
/// # Errors
/// A coefficient κ that is not finite, a wrong length or a counted number that is not finite.
pub fn entropy_bonus(
    entropy_coefficient: f64,
    responses: Responses<'_>,
    entropies: &[f32],
    coefficients: &[f64],
) -> Result<LossTerm, Error> {
    require(entropy_coefficient.is_finite(), "entropy_coefficient", entropy_coefficient, "a finite number")?;
    responses.require_tokens("entropies", entropies)?;
    LossTerm::sum(responses, coefficients, |token| {
        (-entropy_coefficient * f64::from(entropies[token]), -entropy_coefficient)
    })
}

/// Supervised fine-tuning: `−Σ_it c_it log π_θ(y_it)`, with the gradient with respect to the `[tokens]`
/// log-probs.
///
/// # Errors
/// A wrong length or a counted number that is not finite.
pub fn negative_log_likelihood(
    responses: Responses<'_>,
    logprobs: &[f32],
    coefficients: &[f64],
) -> Result<LossTerm, Error> {
    responses.require_tokens("logprobs", logprobs)?;
    LossTerm::sum(responses, coefficients, |token| (-f64::from(logprobs[token]), -1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Aggregation; 5] = [
        Aggregation::TokenMean,
        Aggregation::SeqMeanTokenMean,
        Aggregation::SeqMeanTokenSum,
        Aggregation::SeqMeanTokenSumNorm,
        Aggregation::TokenSum,
    ];

    #[test]
    fn weights_enter_numerator_and_denominator() {
        let responses = Responses::new(&[1, 3]).unwrap();
        let weights = [2.0, 1.0];
        let totals = Totals::of(responses, &weights).unwrap();
        assert_eq!(totals, Totals { responses: 3.0, tokens: 5.0 });
        let expected: [(Aggregation, [f64; 4]); 5] = [
            (ALL[0], [0.4, 0.2, 0.2, 0.2]),
            (ALL[1], [2.0 / 3.0, 1.0 / 9.0, 1.0 / 9.0, 1.0 / 9.0]),
            (ALL[2], [2.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]),
            (ALL[3], [2.0 / 30.0, 1.0 / 30.0, 1.0 / 30.0, 1.0 / 30.0]),
            (ALL[4], [2.0, 1.0, 1.0, 1.0]),
        ];
        for (aggregation, expected) in expected {
            let found = coefficients(aggregation, &totals, 10, responses, &weights).unwrap();
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-15, "{aggregation:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn nothing_that_counts_gives_zeros_and_not_nan() {
        let mask = [false; 3];
        let responses = Responses::new(&[2, 1, 0]).unwrap().with_mask(&mask).unwrap();
        let totals = Totals::of(responses, &[1.0; 3]).unwrap();
        assert_eq!(totals, Totals::default());
        for aggregation in ALL {
            assert_eq!(coefficients(aggregation, &totals, 0, responses, &[1.0; 3]).unwrap(), [0.0; 3]);
        }
    }

    #[test]
    fn totals_that_do_not_cover_the_responses_are_an_error() {
        let error = coefficients(
            Aggregation::TokenMean,
            &Totals::default(),
            1,
            Responses::new(&[1]).unwrap(),
            &[1.0],
        );
        assert_eq!(error.unwrap_err().to_string(), "totals.tokens is 0, expected a positive number");
        assert!(Totals::of(Responses::new(&[1]).unwrap(), &[-1.0]).is_err());
        assert!(Totals::of(Responses::new(&[1]).unwrap(), &[f32::NAN]).is_err());
        assert!(Totals::of(Responses::new(&[1]).unwrap(), &[]).is_err());
    }

    #[test]
    fn coefficients_that_are_not_one_number_per_token_are_an_error() {
        let mask = [true, false];
        let responses = Responses::new(&[2]).unwrap().with_mask(&mask).unwrap();
        let likelihood =
            |coefficients: &[f64]| negative_log_likelihood(responses, &[-1.0, -1.0], coefficients);
        assert_eq!(likelihood(&[2.0, f64::NAN]).unwrap().loss, 2.0);
        assert!(likelihood(&[f64::NAN, 2.0]).is_err());
        assert!(likelihood(&[1.0]).is_err());
        assert!(entropy_bonus(f64::NAN, responses, &[1.0; 2], &[1.0; 2]).is_err());
    }
}
