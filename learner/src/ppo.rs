//! The PPO step (design section 4), for every algorithm of [`algo::Algorithm`].
//!
//! ```text
//! batch --experience--> old log-probs, values --> rewards, advantages, whitening --> passes over minibatches
//!          every rank     each rank its part,         every rank, the same             each rank its part of a minibatch,
//!                         then completed              arithmetic                       gradients reduced, one step a model
//! ```
//!
//! Semantics, exactly:
//! 1. `values[t]` is the critic's number at the position that predicts response token `t`; the value after the last is 0.
//! 2. The score stands on the last response token. Token rewards are `−β · kl_t` plus that.
//! 3. Whitening is over all tokens of the samples that [`Whiten`](crate::Whiten) names, unweighted, with biased variance:
//!    `(A − mean) / sqrt(var + 1e-8)`. Returns come from the advantages before it.
//! 4. `token-mean` is `Σ_i w_i Σ_t L_it / Σ_i w_i T_i` over the minibatch, for policy and value loss alike; the value loss has
//!    the factor 1/2.
//! 5. Samples of weight 0 are in no minibatch (but for `critic_on = "all"`): a minibatch has `minibatch_size` samples that
//!    train, in the order of the batch or of the pass's shuffle.
//! 6. Policy and critic make one AdamW step each a minibatch, their gradients clipped by global norm each.

mod experience;
mod losses;
mod minibatch;
mod prepare;
mod step;
mod trainer;

pub use trainer::{CriticSource, Trainer, TrainerConfig};
