//! Generalised advantage estimation, and the return-to-go that needs no critic.

use crate::error::{Error, require};
use crate::responses::Responses;

/// What a reward is worth one step before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Discount {
    /// γ, from a token to the next one of its turn.
    pub gamma: f64,
    /// γ from the last token of a turn to the first one of the next.
    pub turn_gamma: f64,
}

impl Discount {
    /// The same from each token to the next.
    pub fn per_token(gamma: f64) -> Self {
        Self { gamma, turn_gamma: gamma }
    }

    /// From this token to the next one.
    fn behind(self, responses: &Responses<'_>, token: usize) -> f64 {
        if responses.ends_turn(token) { self.turn_gamma } else { self.gamma }
    }

    fn validate(self) -> Result<(), Error> {
        require_discount("gamma", self.gamma)?;
        require_discount("turn_gamma", self.turn_gamma)
    }
}

/// The parameters of the estimator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gae {
    /// γ.
    pub discount: Discount,
    /// λ, between one-step differences (0) and Monte-Carlo returns (1).
    pub gae_lambda: f64,
}

/// Advantages, not whitened, and the returns the critic is trained on; both `[tokens]`, 0 on tokens that do
/// not count.
#[derive(Debug, Clone, PartialEq)]
pub struct Advantages {
    /// `A_t`, what the policy loss multiplies.
    pub advantages: Vec<f32>,
    /// `A_t + V_t`, what the critic should say.
    pub returns: Vec<f32>,
}

/// GAE(γ, λ) (Schulman et al. 2016, arXiv 1506.02438, Eq. 16):
/// `δ_t = r_t + γ V_{t+1} − V_t`, `A_t = δ_t + γλ A_{t+1}`, `return_t = A_t + V_t`.
///
/// `rewards` and `values` are `[tokens]`. The value after the last token of a response is 0. Tokens that do
/// not count are stepped over: `V_{t+1}` and `A_{t+1}` are those of the next token that counts, without a
/// further discount (as verl and AReaL do; their values and rewards are not read).
///
/// # Errors
/// γ or λ outside 0..=1, a wrong length or a counted number that is not finite.
pub fn gae(gae: Gae, responses: Responses<'_>, rewards: &[f32], values: &[f32]) -> Result<Advantages, Error> {
    gae.discount.validate()?;
    require_discount("gae_lambda", gae.gae_lambda)?;
    responses.require_tokens("rewards", rewards)?;
    responses.require_tokens("values", values)?;
    let tokens = responses.tokens();
    let mut result = Advantages { advantages: vec![0.0; tokens], returns: vec![0.0; tokens] };
    for span in responses.spans() {
        let (mut next_value, mut advantage) = (0.0, 0.0);
        for token in responses.counted(span).rev() {
            let (value, gamma) = (f64::from(values[token]), gae.discount.behind(&responses, token));
            let delta = f64::from(rewards[token]) + gamma * next_value - value;
            advantage = delta + gamma * gae.gae_lambda * advantage;
            next_value = value;
            result.advantages[token] = advantage as f32;
            result.returns[token] = (advantage + value) as f32;
        }
    }
    Ok(result)
}

/// Return-to-go `G_t = Σ_{s≥t} γ^{s−t} r_s` over the counted tokens of each response, `[tokens]`; REINFORCE++
/// (arXiv 2501.03262) whitens it over the global batch and uses it as the advantage. Tokens that do not count
/// are stepped over, as in [`gae`].
///
/// # Errors
/// γ outside 0..=1, a wrong length or a counted number that is not finite.
pub fn returns_to_go(
    discount: Discount,
    responses: Responses<'_>,
    rewards: &[f32],
) -> Result<Vec<f32>, Error> {
    discount.validate()?;
    responses.require_tokens("rewards", rewards)?;
    let mut returns = vec![0.0; responses.tokens()];
    for span in responses.spans() {
        let mut running = 0.0;
        for token in responses.counted(span).rev() {
            running = f64::from(rewards[token]) + discount.behind(&responses, token) * running;
            returns[token] = running as f32;
        }
    }
    Ok(returns)
}

fn require_discount(name: &'static str, value: f64) -> Result<(), Error> {
    require((0.0..=1.0).contains(&value), name, value, "a number from 0 to 1")
}
