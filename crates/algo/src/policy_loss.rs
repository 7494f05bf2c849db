//! The clipped policy losses of the field, each with its exact gradient with respect to the log-probs.
//!
//! The loss of a token is one of [`PolicyObjective`]; what the tokens weigh stands in the coefficients
//! ([`coefficients`](crate::coefficients())), into which off-policy corrections
//! ([`Correction`](crate::Correction)) are multiplied. Decoupled PPO (arXiv 2505.24298) is therefore the
//! clipped objective with `old_logprobs` of the proximal policy and coefficients times π_prox/π_behaviour.

use serde::{Deserialize, Serialize};

use crate::coefficients::require_coefficients;
use crate::error::{Error, require, require_non_negative};
use crate::kl::{MAX_LOG_RATIO, bounded_exp};
use crate::ratio::RatioSums;
use crate::responses::Responses;

/// The trust region `[1 − low, 1 + high]` of a ratio.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClipRange {
    /// ε below; 1 or more means no lower bound.
    pub low: f64,
    /// ε above, 0 or more.
    pub high: f64,
}

impl ClipRange {
    fn clip(&self, ratio: f64) -> f64 {
        ratio.clamp(1.0 - self.low, 1.0 + self.high)
    }

    fn validate(&self) -> Result<(), Error> {
        require_non_negative("clip_ratio_low", self.low)?;
        require_non_negative("clip_ratio_high", self.high)
    }
}

/// Over what the ratio π_θ/π_old is taken. `T` is the number of counted tokens of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RatioLevel {
    /// Each token has its own: `ρ_t = exp(log π_θ,t − log π_old,t)` (PPO).
    Token,
    /// The geometric mean of the response: `s = exp(Σ_t (log π_θ,t − log π_old,t) / T)` (GSPO, arXiv
    /// 2507.18071, section 4).
    SequenceMean,
    /// The ratio of the whole response: `exp(Σ_t (log π_θ,t − log π_old,t))` (TRL's RLOO trainer).
    SequenceProduct,
}

/// The loss of one token with ratio ρ and advantage A.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyObjective {
    /// `−min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A)` (PPO, arXiv 1707.06347, Eq. 7; asymmetric as in DAPO,
    /// arXiv 2503.14476, "clip-higher"). With a dual clip `c`, additionally at most `−c A` where `A < 0`
    /// (arXiv 1912.09729).
    Clip {
        /// Over what the ratio is taken.
        level: RatioLevel,
        /// ε_low and ε_high around a ratio of 1.
        range: ClipRange,
        /// `c > 1`: bounds the loss of bad tokens whose ratio is huge.
        dual_clip: Option<f64>,
    },
    /// `−sg[clip(ρ, 1 − ε_low, 1 + ε_high)] A log π_θ` (CISPO, arXiv 2506.13585, section 3): no token loses
    /// its gradient. The upper bound of the ratio is `1 + high`; where a source gives the bound itself (TRL,
    /// ScaleRL: 5.0), subtract 1.
    Cispo {
        /// ε_low (usually 1: no lower bound), ε_high.
        range: ClipRange,
    },
}

/// The tokens of a policy loss; every slice is `[tokens]`.
#[derive(Debug, Clone, Copy)]
pub struct PolicyTokens<'a> {
    /// Which tokens there are and count.
    pub responses: Responses<'a>,
    /// `log π_θ` of the drawn tokens, now.
    pub logprobs: &'a [f32],
    /// `log π_old` of the drawn tokens, before the update.
    pub old_logprobs: &'a [f32],
    /// `A` of each token.
    pub advantages: &'a [f32],
    /// `c_it`, times correction weights where there are any.
    pub coefficients: &'a [f64],
}

/// A policy loss, its gradient and the sums its metrics are made of. Parts of a minibatch add up.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyLoss {
    /// `Σ_it c_it L_it`.
    pub loss: f64,
    /// `dL / d log π_θ,it`, `[tokens]`, 0 where a token does not count.
    pub gradient: Vec<f32>,
    /// Over all counted tokens, whatever their coefficient.
    pub ratios: RatioSums,
}

/// The policy loss of these tokens and its gradient with respect to `logprobs`.
///
/// Exponents are kept within ±[`MAX_LOG_RATIO`]; beyond, the gradient is 0. The gradient of a ratio taken
/// over a response is exact, `dL/d log π_t = s/T · Σ_u c_u dL_u/ds`; where the advantage is the same for all
/// tokens of the response (GSPO's case) it equals that of GSPO-token (arXiv 2507.18071, section 4.3).
///
/// # Errors
/// A parameter outside its range, a wrong length or a counted number that is not finite.
pub fn policy_loss(objective: &PolicyObjective, tokens: &PolicyTokens<'_>) -> Result<PolicyLoss, Error> {
    let responses = tokens.responses;
    responses.require_tokens("logprobs", tokens.logprobs)?;
    responses.require_tokens("old_logprobs", tokens.old_logprobs)?;
    responses.require_tokens("advantages", tokens.advantages)?;
    require_coefficients(responses, tokens.coefficients)?;
    let mut loss =
        PolicyLoss { loss: 0.0, gradient: vec![0.0; responses.tokens()], ratios: RatioSums::default() };
    match *objective {
        PolicyObjective::Clip { level, range, dual_clip } => {
            range.validate()?;
            if let Some(bound) = dual_clip {
                require(bound.is_finite() && bound > 1.0, "dual_clip", bound, "a finite number above 1")?;
            }
            let surrogate = Surrogate { range, dual_clip };
            match level {
                RatioLevel::Token => clip_tokens(&surrogate, tokens, &mut loss),
                RatioLevel::SequenceMean => {
                    clip_sequences(&surrogate, |length| 1.0 / length, tokens, &mut loss)
                }
                RatioLevel::SequenceProduct => clip_sequences(&surrogate, |_| 1.0, tokens, &mut loss),
            }
        }
        PolicyObjective::Cispo { range } => {
            range.validate()?;
            cispo(range, tokens, &mut loss);
        }
    }
    Ok(loss)
}

impl PolicyTokens<'_> {
    fn log_ratio(&self, token: usize) -> f64 {
        f64::from(self.logprobs[token]) - f64::from(self.old_logprobs[token])
    }
}

#[derive(Clone, Copy)]
struct Surrogate {
    range: ClipRange,
    dual_clip: Option<f64>,
}

/// Value and derivative with respect to the ratio of one token's clipped surrogate.
struct SurrogateAt {
    value: f64,
    slope: f64,
}

impl Surrogate {
    fn at(&self, ratio: f64, advantage: f64, sums: &mut RatioSums) -> SurrogateAt {
        let unclipped = -ratio * advantage;
        let clipped = -self.range.clip(ratio) * advantage;
        let mut at = SurrogateAt { value: unclipped, slope: -advantage };
        if clipped > unclipped {
            sums.clipped += 1.0;
            at = SurrogateAt { value: clipped, slope: 0.0 };
        }
        if let Some(bound) = self.dual_clip
            && advantage < 0.0
            && -bound * advantage < at.value
        {
            sums.dual_clipped += 1.0;
            at = SurrogateAt { value: -bound * advantage, slope: 0.0 };
        }
        at
    }
}

fn clip_tokens(surrogate: &Surrogate, tokens: &PolicyTokens<'_>, loss: &mut PolicyLoss) {
    for token in tokens.responses.counted_tokens() {
        let log_ratio = tokens.log_ratio(token);
        let (ratio, ratio_slope) = bounded_exp(log_ratio);
        loss.ratios.push(ratio, log_ratio);
        let at = surrogate.at(ratio, f64::from(tokens.advantages[token]), &mut loss.ratios);
        loss.loss += tokens.coefficients[token] * at.value;
        loss.gradient[token] = (tokens.coefficients[token] * at.slope * ratio_slope) as f32;
    }
}

/// `share` gives the power of the product of token ratios, from the number of counted tokens.
fn clip_sequences(
    surrogate: &Surrogate,
    share: impl Fn(f64) -> f64,
    tokens: &PolicyTokens<'_>,
    loss: &mut PolicyLoss,
) {
    let responses = tokens.responses;
    for span in responses.spans() {
        let length = responses.counted(span.clone()).count();
        if length == 0 {
            continue;
        }
        let share = share(length as f64);
        let sum: f64 = responses.counted(span.clone()).map(|token| tokens.log_ratio(token)).sum();
        let (ratio, ratio_slope) = bounded_exp(sum * share);
        let mut slope = 0.0;
        for token in responses.counted(span.clone()) {
            loss.ratios.push(ratio, tokens.log_ratio(token));
            let at = surrogate.at(ratio, f64::from(tokens.advantages[token]), &mut loss.ratios);
            loss.loss += tokens.coefficients[token] * at.value;
            slope += tokens.coefficients[token] * at.slope;
        }
        for token in responses.counted(span) {
            loss.gradient[token] = (slope * ratio_slope * share) as f32;
        }
    }
}

fn cispo(range: ClipRange, tokens: &PolicyTokens<'_>, loss: &mut PolicyLoss) {
    for token in tokens.responses.counted_tokens() {
        let log_ratio = tokens.log_ratio(token);
        let ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp();
        let weight = range.clip(ratio);
        loss.ratios.push(ratio, log_ratio);
        loss.ratios.clipped += f64::from(u8::from(weight != ratio));
        let factor = -tokens.coefficients[token] * weight * f64::from(tokens.advantages[token]);
        loss.loss += factor * f64::from(tokens.logprobs[token]);
        loss.gradient[token] = factor as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_token(objective: &PolicyObjective, log_ratio: f32, advantage: f32) -> Result<PolicyLoss, Error> {
        policy_loss(
            objective,
            &PolicyTokens {
                responses: Responses::new(&[1])?,
                logprobs: &[log_ratio],
                old_logprobs: &[0.0],
                advantages: &[advantage],
                coefficients: &[1.0],
            },
        )
    }

    fn clip(low: f64, high: f64, dual_clip: Option<f64>) -> PolicyObjective {
        PolicyObjective::Clip { level: RatioLevel::Token, range: ClipRange { low, high }, dual_clip }
    }

    #[test]
    fn the_dual_clip_is_a_multiple_of_the_advantage() {
        let loss = one_token(&clip(0.2, 0.2, Some(3.0)), 2.0, -2.0).unwrap();
        assert_eq!((loss.loss, loss.gradient[0], loss.ratios.dual_clipped), (6.0, 0.0, 1.0));
        let good = one_token(&clip(0.2, 0.2, Some(3.0)), 2.0, 2.0).unwrap();
        assert_eq!((good.loss, good.ratios.clipped, good.ratios.dual_clipped), (-2.4, 1.0, 0.0));
    }

    #[test]
    fn without_a_lower_bound_only_the_upper_one_clips() {
        let loss = one_token(&clip(2.0, 0.2, None), -5.0, -1.0).unwrap();
        assert_eq!((loss.loss, loss.ratios.clipped), ((-5.0_f64).exp(), 0.0));
    }

    #[test]
    fn parameters_outside_their_range_are_errors() {
        for objective in [
            clip(-0.1, 0.2, None),
            clip(0.2, f64::NAN, None),
            clip(0.2, 0.2, Some(1.0)),
            clip(0.2, 0.2, Some(f64::INFINITY)),
            PolicyObjective::Cispo { range: ClipRange { low: 0.2, high: -1.0 } },
        ] {
            assert!(one_token(&objective, 0.0, 1.0).is_err(), "{objective:?}");
        }
    }
}
