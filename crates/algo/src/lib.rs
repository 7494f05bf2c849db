//! The mathematics of PF-PPO and the losses of the field, on slices.
//!
//! The PPO loss of two responses and its gradient, from rewards and log-probs to the numbers that a network
//! back-propagates:
//!
//! ```
//! use algo::{
//!     Aggregation, ClipRange, Discount, Gae, PolicyObjective, PolicyTokens, RatioLevel, Responses, Totals,
//! };
//!
//! # fn main() -> Result<(), algo::Error> {
//! // Two responses, of 2 tokens and of 1, one behind the other; every slice below is [tokens].
//! let responses = Responses::new(&[2, 1])?;
//! let (rewards, values) = ([0.0, 1.0, -1.0], [0.0, 0.0, 0.0]);
//! let by = Gae { discount: Discount::per_token(1.0), gae_lambda: 1.0 };
//! let advantages = algo::gae(by, responses, &rewards, &values)?;
//! assert_eq!(advantages.advantages, [1.0, 1.0, -1.0]);
//!
//! // What a token's loss weighs: here the mean over tokens, the second response counting twice.
//! let weights = [1.0, 2.0];
//! let totals = Totals::of(responses, &weights)?;
//! let coefficients = algo::coefficients(Aggregation::TokenMean, &totals, 1024, responses, &weights)?;
//!
//! let objective = PolicyObjective::Clip {
//!     level: RatioLevel::Token,
//!     range: ClipRange { low: 0.2, high: 0.2 },
//!     dual_clip: None,
//! };
//! let loss = algo::policy_loss(&objective, &PolicyTokens {
//!     responses,
//!     logprobs: &[-0.5, -1.0, -0.7],
//!     old_logprobs: &[-0.5, -1.0, -0.7],
//!     advantages: &advantages.advantages,
//!     coefficients: &coefficients,
//! })?;
//! // On-policy the ratio is 1: L = -Σ c A, and dL/d log π = -c A.
//! assert_eq!(loss.loss, 0.0);
//! assert_eq!(loss.gradient, [-0.25, -0.25, 0.5]);
//! assert_eq!(loss.ratios.metrics().map(|metrics| metrics.approx_kl), Some(0.0));
//! # Ok(())
//! # }
//! ```
//!
//! Every formula stands here once, in plain Rust, and its golden number is its test (`tests/paper.rs`).
//! Nothing here knows torch, a file or a clock. Data is f32 as the network gives it, reductions are f64.
//!
//! A loss returns its value *and its exact gradient* with respect to what the network computed (log-probs,
//! values, entropies, scores). The learner back-propagates `sum(logprobs * gradient)` with the gradient held
//! constant; there is no second implementation in torch.
//!
//! The way of a batch through the crate:
//!
//! 1. [`filtration::filter_group`] says which rollouts train, and with which weight.
//! 2. [`token_rewards`] and [`gae()`] (or [`group_advantages`] and [`broadcast`], or [`returns_to_go`]) give
//!    advantages; [`Moments`], added up over the ranks, whiten them ([`whiten`]).
//! 3. For each minibatch [`Totals`] are added up over the ranks; each micro-batch gets its [`coefficients()`]
//!    from them, and [`Correction`] weights are multiplied in where another policy or engine drew the tokens
//!    ([`reweight`]); [`CovarianceControl`] holds back the tokens that take the most entropy away.
//! 4. [`policy_loss()`], [`value_loss()`], [`kl_loss`] and [`entropy_bonus`] of a micro-batch; losses and
//!    gradients of micro-batches and ranks **add up** to those of the minibatch.

pub mod filtration;
pub mod r2;
pub mod vade;

mod advantages;
mod coefficients;
mod controller;
mod correction;
mod covariance;
mod error;
mod gae;
mod interval;
mod kl;
mod moments;
mod policy_loss;
mod positive_weight;
mod preference;
mod preset;
mod ratio;
mod responses;
mod rewards;
mod schedule;
mod truncation;
mod turns;
mod value_loss;

pub use advantages::{GroupBaseline, GroupStatistics, broadcast, group_advantages};
pub use coefficients::{Aggregation, LossTerm, Totals, coefficients, entropy_bonus, negative_log_likelihood};
pub use controller::KlController;
pub use correction::{Correction, CorrectionSums, CorrectionWeights, off_policy_sequence_mask, reweight};
pub use covariance::CovarianceControl;
pub use error::Error;
pub use gae::{Advantages, Discount, Gae, gae, returns_to_go};
pub use interval::Interval;
pub use kl::{KlEstimator, KlTokens, MAX_LOG_RATIO, kl_loss};
pub use moments::{Moments, WHITEN_EPSILON, whiten};
pub use policy_loss::{ClipRange, PolicyLoss, PolicyObjective, PolicyTokens, RatioLevel, policy_loss};
pub use positive_weight::PositiveWeight;
pub use preference::{
    Kto, KtoLoss, LabelledResponses, PairLoss, PreferenceObjective, PreferencePairs, ScorePairs,
    bradley_terry, kto_loss, kto_reference_point, preference_loss,
};
pub use preset::{AdvantageEstimator, Algorithm, AlgorithmDefaults, KlPlacement, Whiten};
pub use ratio::{RatioMetrics, RatioSums};
pub use responses::Responses;
pub use rewards::{
    RewardShaping, ScoredTokens, TokenRewards, clip_score, overlong_penalty, response_returns, token_rewards,
};
pub use schedule::Schedule;
pub use truncation::{Truncation, full_support_logprobs};
pub use turns::{Turns, gae_by_turn, returns_to_go_by_turn};
pub use value_loss::{ExplainedVariance, ValueLoss, ValueTokens, value_loss};
