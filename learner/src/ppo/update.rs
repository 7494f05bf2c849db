//! One optimizer step of each model from a minibatch: micro-batches forward and backward, then AdamW.

use algo::Totals;
use model::LogprobOptions;

use super::experience::Experience;
use super::losses::{LossSums, Losses};
use super::minibatch::{Minibatch, ModelMinibatch};
use super::trainer::Trainer;
use crate::error::{Error, FormulaResult, Result};
use crate::ranks::Ranks;
use crate::trainable_model::{HeadGradients, HeadOutputs, HeadRequest, MicrobatchPosition, TrainableModel};

/// What the optimizer steps of a batch add up.
#[derive(Debug, Default)]
pub(super) struct UpdateSums {
    pub(super) minibatches: f64,
    pub(super) policy_norm: f64,
    pub(super) critic_norm: f64,
    /// The learning rate of the policy in its last step.
    pub(super) policy_lr: f64,
    pub(super) losses: LossSums,
}

impl Trainer {
    /// One optimizer step of each model; `lr_factor` is the schedule's.
    ///
    /// # Errors
    /// Training that diverged, a rank that is lost.
    pub(super) fn update(
        &mut self,
        experience: &Experience,
        minibatch: Minibatch,
        lr_factor: f64,
        sums: &mut UpdateSums,
    ) -> Result<()> {
        let Self { config, settings, ranks, policy, critic, .. } = self;
        let losses = Losses {
            config,
            settings,
            experience,
            kl_coefficient: self.controller.coefficient(),
            norm_tokens: config.norm_tokens.unwrap_or(self.max_new_tokens),
        };
        let trains_policy = minibatch.policy.samples > 0;
        sums.minibatches += 1.0;

        let entropy = config.entropy_coefficient > 0.0;
        let options = LogprobOptions { temperature: self.temperature, entropy };
        let accumulation = Accumulation { ranks, experience, request: HeadRequest::Logprobs(options) };
        accumulation.run(policy, minibatch.policy, |samples, totals, outputs| {
            losses.policy(samples, totals, outputs, &mut sums.losses)
        })?;
        if let (Some(critic), Some(targets)) = (critic.as_mut(), &experience.critic) {
            let accumulation = Accumulation { request: HeadRequest::Scalars, ..accumulation };
            accumulation.run(critic, minibatch.critic, |samples, totals, outputs| {
                let found = losses.critic(samples, targets, totals, outputs)?;
                sums.losses.value_loss += found.loss;
                Ok(found.gradients)
            })?;
        }

        // The policy's gradients were reduced while the critic was computed.
        if trains_policy {
            sums.policy_lr = lr_factor * config.policy_lr;
            sums.policy_norm += policy.update(ranks, &config.optimizer(config.policy_lr), sums.policy_lr)?;
        }
        if let Some(critic) = critic {
            let optimizer = config.optimizer(config.critic_lr);
            sums.critic_norm += critic.update(ranks, &optimizer, lr_factor * config.critic_lr)?;
        }
        Ok(())
    }
}

/// Gradient accumulation: a model's gradient over a minibatch, one micro-batch after the other.
#[derive(Clone, Copy)]
struct Accumulation<'a> {
    ranks: &'a Ranks,
    experience: &'a Experience,
    request: HeadRequest,
}

impl Accumulation<'_> {
    /// Passes this rank's micro-batches forward, unless that has been done already, and backward.
    fn run(
        &self,
        model: &mut TrainableModel,
        minibatch: ModelMinibatch,
        mut loss: impl FnMut(&[usize], &Totals, &HeadOutputs) -> FormulaResult<HeadGradients>,
    ) -> Result<()> {
        let Self { ranks, experience, request } = *self;
        let ModelMinibatch { totals, split, kept, .. } = minibatch;
        let mut kept = kept.into_iter();
        let mut rounds = split.of_rank(ranks.rank()).peekable();
        while let Some(samples) = rounds.next() {
            let pass = match kept.next() {
                Some(pass) => pass,
                None => model.forward(ranks, experience.samples.microbatch(samples, model)?, request)?,
            };
            let position = match rounds.peek() {
                Some(_) => MicrobatchPosition::MoreFollow,
                None => MicrobatchPosition::Last,
            };
            model.backward(ranks, pass, position, |outputs| {
                loss(samples, &totals, outputs).map_err(Error::numbers(|| rollouts(experience, samples)))
            })?;
        }
        Ok(())
    }
}

/// The samples' ids, for errors.
fn rollouts(experience: &Experience, samples: &[usize]) -> String {
    let ids: Vec<String> = samples.iter().map(|sample| experience.samples.ids[*sample].to_string()).collect();
    ids.join(", ")
}
