//! The critic's loss and how much of the returns it explains.

use crate::coefficients::LossTerm;
use crate::error::{Error, require_non_negative};
use crate::kl::difference;
use crate::moments::Moments;
use crate::responses::Responses;

/// The tokens of a value loss; every slice is `[tokens]`.
#[derive(Debug, Clone, Copy)]
pub struct ValueTokens<'a> {
    /// Which tokens there are and count.
    pub responses: Responses<'a>,
    /// `V`, what the critic says now.
    pub values: &'a [f32],
    /// `V_old`, from before the update.
    pub old_values: &'a [f32],
    /// What `V` should be.
    pub returns: &'a [f32],
    /// `c_it` of [`coefficients`](crate::coefficients()).
    pub coefficients: &'a [f64],
}

/// A value loss; parts of a minibatch add up.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueLoss {
    /// The loss and its gradient with respect to `values`.
    pub term: LossTerm,
    /// How many tokens count.
    pub tokens: f64,
    /// Tokens whose loss is the clipped branch.
    pub clipped: f64,
}

/// `½ Σ_it c_it max((V − R)², (clip(V, V_old ± ε) − R)²)`; without a clip `½ Σ_it c_it (V − R)²` (the value
/// clipping of PPO's reference code; Engstrom et al. 2020, arXiv 2005.12729).
///
/// # Errors
/// A negative ε, a wrong length or a counted number that is not finite.
pub fn value_loss(value_clip: Option<f64>, tokens: &ValueTokens<'_>) -> Result<ValueLoss, Error> {
    let responses = tokens.responses;
    if let Some(clip) = value_clip {
        require_non_negative("value_clip", clip)?;
    }
    responses.require_tokens("values", tokens.values)?;
    responses.require_tokens("old_values", tokens.old_values)?;
    responses.require_tokens("returns", tokens.returns)?;
    let (mut counted, mut clipped) = (0.0, 0.0);
    let term = LossTerm::sum(responses, tokens.coefficients, |token| {
        counted += 1.0;
        let (value, target) = (f64::from(tokens.values[token]), f64::from(tokens.returns[token]));
        let error = value - target;
        let clipped_error = value_clip.map(|clip| {
            let old = f64::from(tokens.old_values[token]);
            value.clamp(old - clip, old + clip) - target
        });
        match clipped_error {
            Some(clipped_error) if clipped_error.abs() > error.abs() => {
                clipped += 1.0;
                (clipped_error * clipped_error / 2.0, 0.0)
            }
            Some(_) | None => (error * error / 2.0, error),
        }
    })?;
    Ok(ValueLoss { term, tokens: counted, clipped })
}

/// How much of the variance of the returns the values explain; ranks add both fields up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ExplainedVariance {
    /// Moments of the returns.
    pub returns: Moments,
    /// Moments of `returns − values`.
    pub errors: Moments,
}

impl ExplainedVariance {
    /// Of the counted tokens; both slices are `[tokens]`.
    ///
    /// # Errors
    /// A wrong length or a counted number that is not finite.
    pub fn of_tokens(responses: Responses<'_>, values: &[f32], returns: &[f32]) -> Result<Self, Error> {
        responses.require_tokens("values", values)?;
        let returns_moments = Moments::of_tokens("returns", responses, returns)?;
        let errors = responses.counted_tokens().map(|token| difference(returns, values, token)).collect();
        Ok(Self { returns: returns_moments, errors })
    }

    /// Adds another part.
    pub fn merge(&mut self, other: &Self) {
        self.returns.merge(&other.returns);
        self.errors.merge(&other.errors);
    }

    /// `1 − Var(R − V) / Var(R)`: 1 is perfect, 0 no better than a constant, negative worse. `None` where the
    /// returns do not vary.
    pub fn value(&self) -> Option<f64> {
        let variance = self.returns.variance();
        (variance > 0.0).then(|| 1.0 - self.errors.variance() / variance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(values: &[f32], returns: &[f32]) -> Option<f64> {
        ExplainedVariance::of_tokens(Responses::new(&[values.len()]).unwrap(), values, returns)
            .unwrap()
            .value()
    }

    #[test]
    fn explained_variance_of_known_critics() {
        let returns = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(explained(&returns, &returns), Some(1.0));
        assert_eq!(explained(&[7.0; 4], &returns), Some(0.0));
        assert_eq!(explained(&[2.0, 1.0, 4.0, 3.0], &returns), Some(1.0 - 1.0 / 1.25));
        assert_eq!(explained(&returns, &[2.0; 4]), None);
        assert_eq!(explained(&[], &[]), None);
    }

    #[test]
    fn a_value_that_left_the_clip_range_towards_its_target_has_no_gradient() {
        let tokens = ValueTokens {
            responses: Responses::new(&[3]).unwrap(),
            values: &[0.5, 0.5, 0.1],
            old_values: &[0.0, 0.0, 0.0],
            returns: &[1.0, -1.0, 1.0],
            coefficients: &[1.0; 3],
        };
        let clipped = value_loss(Some(0.25), &tokens).unwrap();
        assert_eq!((clipped.tokens, clipped.clipped), (3.0, 1.0));
        assert_eq!(clipped.term.gradient[..2], [0.0, 1.5]);
        assert!((clipped.term.gradient[2] + 0.9).abs() < 1e-6);
        let free = value_loss(None, &tokens).unwrap();
        assert_eq!((free.clipped, free.term.gradient[0]), (0.0, -0.5));
    }
}
