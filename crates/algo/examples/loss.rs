//! PPO's loss of two responses, with its gradient: `cargo run -p algo --example loss`

use algo::{
    Aggregation, ClipRange, Discount, Gae, PolicyObjective, PolicyTokens, RatioLevel, Responses, Totals,
    coefficients, gae, policy_loss,
};

fn main() -> Result<(), algo::Error> {
    // Two responses, of three tokens and of one. Every slice below is [tokens], one response after the other.
    let responses = Responses::new(&[3, 1])?;
    let rewards = [0.0, 0.0, 1.0, -1.0];
    let values = [0.2, 0.4, 0.6, 0.0];
    let estimated =
        gae(Gae { discount: Discount::per_token(1.0), gae_lambda: 0.95 }, responses, &rewards, &values)?;

    let weights = [1.0, 1.0];
    let totals = Totals::of(responses, &weights)?;
    let tokens = PolicyTokens {
        responses,
        logprobs: &[-0.4, -0.9, -0.3, -1.0],
        old_logprobs: &[-0.5, -0.9, -0.7, -1.2],
        advantages: &estimated.advantages,
        coefficients: &coefficients(Aggregation::TokenMean, &totals, 1, responses, &weights)?,
    };
    let range = ClipRange { low: 0.2, high: 0.2 };
    let objective = PolicyObjective::Clip { level: RatioLevel::Token, range, dual_clip: None };
    let loss = policy_loss(&objective, &tokens)?;

    println!("advantages {:.4?}", estimated.advantages);
    println!("loss {:.4}", loss.loss);
    println!("gradient with respect to the log-probs {:.4?}", loss.gradient);
    Ok(())
}
