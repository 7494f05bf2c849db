//! The PPO step, for every algorithm of [`algo::Algorithm`].
//!
//! ```text
//! batch --collect--> samples --prepare--> evaluated --estimate--> experience --update--> weights, metrics
//!                                                                 (passes over minibatches)
//!
//! experience   samples that train      every rank, the same
//! prepare      old log-probs, values   each rank its micro-batches, then completed over the ranks
//! estimate     rewards, advantages     every rank, the same arithmetic
//! minibatch    order, totals, split    every rank, the same
//! update       losses, gradients       each rank its micro-batches; gradients reduced, one AdamW step a model
//! measure      metrics                 every rank, the same
//! ```
//!
//! Semantics, exactly:
//! 1. `values[t]` is the critic's number at the position that predicts response token `t`; the value after
//!    the last is 0.
//! 2. The score stands on the last response token. Token rewards are `−β · kl_t` plus that.
//! 3. Baselines of groups are over all responses that were scored, whatever the filtration kept; so is
//!    whitening without a critic. A group of one response has the advantage 0. Whitening is over all tokens
//!    of the responses that [`Whiten`](crate::Whiten) names, unweighted, with biased variance: `(A − mean) /
//!    sqrt(var + 1e-8)`. Returns come from the advantages before it.
//! 4. `token-mean` is `Σ_i w_i Σ_t L_it / Σ_i w_i T_i` over the minibatch, for policy and value loss alike;
//!    the value loss has the factor 1/2.
//! 5. Samples of weight 0 are in no minibatch (but for `critic_on = "all"`): a minibatch has `minibatch_size`
//!    samples that train, in the order of the batch or of the pass's shuffle.
//! 6. Policy and critic make one AdamW step each a minibatch, their gradients clipped by global norm each.

mod estimate;
mod experience;
mod losses;
mod measure;
mod minibatch;
mod prepare;
mod siblings;
mod step;
mod trainer;
mod turns;
mod update;

pub use trainer::{CriticSource, Trainer, TrainerConfig};
