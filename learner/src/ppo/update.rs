//! One optimizer step of each model from a minibatch: micro-batches forward and backward, then AdamW.
//!
//! A loss or a gradient that is no finite number keeps a step from being made. A rank that meets one goes
//! on with a gradient that is none: the sum over the ranks, and so the norm, is none on any rank, and all
//! of them skip the step without a word more between them.

use algo::Totals;
use model::LogprobOptions;
use tracing::warn;

use super::experience::{Collected, Experience};
use super::losses::{LossSums, Losses};
use super::minibatch::{Minibatch, ModelMinibatch};
use super::trainer::Trainer;
use crate::error::{FormulaResult, Result};
use crate::ranks::Ranks;
use crate::trainable_model::{
    HeadGradients, HeadOutputs, HeadRequest, MicrobatchPosition, StepOutcome, TrainableModel,
};

/// Samples that a warning names.
const NAMED_SAMPLES: usize = 16;

/// What the optimizer steps of a batch add up.
#[derive(Debug, Default)]
pub(super) struct UpdateSums {
    pub(super) policy: ModelSteps,
    pub(super) critic: ModelSteps,
    /// The learning rate of the policy in its last step.
    pub(super) policy_lr: f64,
    /// Over the steps that were made.
    pub(super) losses: LossSums,
}

/// The optimizer steps of one model.
#[derive(Debug, Default)]
pub(super) struct ModelSteps {
    pub(super) made: u64,
    pub(super) skipped: u64,
    /// Sum of the gradients' norms.
    norm: f64,
}

impl ModelSteps {
    /// The mean of the gradients' norms, where there was a step.
    pub(super) fn mean_norm(&self) -> Option<f64> {
        self.mean(self.norm)
    }

    /// A sum over the steps as a mean, where there was a step.
    pub(super) fn mean(&self, sum: f64) -> Option<f64> {
        (self.made > 0).then(|| sum / self.made as f64)
    }

    /// Counts a step; says whether it was made.
    fn count(&mut self, outcome: StepOutcome) -> bool {
        match outcome {
            StepOutcome::Made { norm } => {
                self.made += 1;
                self.norm += norm;
                true
            }
            StepOutcome::Skipped { .. } => {
                self.skipped += 1;
                false
            }
        }
    }
}

impl Trainer {
    /// One optimizer step of each model; `lr_factor` is the schedule's. What the experience lacks of the
    /// policy's outputs is noted on the way.
    ///
    /// # Errors
    /// Training that diverged, a rank that is lost.
    pub(super) fn update(
        &mut self,
        experience: &mut Experience,
        minibatch: Minibatch,
        lr_factor: f64,
        sums: &mut UpdateSums,
    ) -> Result<()> {
        let Self { config, settings, ranks, policy, critic, .. } = self;
        let mut pending = experience.pending.take();
        let is_at_old_weights = pending.is_some();
        let known = &*experience;
        let losses = Losses {
            config,
            settings,
            experience: known,
            kl_coefficient: self.controller.coefficient(),
            positive_weight: self.positive_weight,
            norm_tokens: config.norm_tokens.unwrap_or(self.max_new_tokens),
            is_at_old_weights,
        };
        let mut found = Found {
            policy_samples: minibatch.policy.split.sorted_indices(),
            critic_samples: minibatch.critic.split.sorted_indices(),
            ..Found::default()
        };

        let entropy = config.entropy_coefficient > 0.0 || is_at_old_weights;
        let options = LogprobOptions { temperature: self.temperature, entropy };
        let accumulation = Accumulation { ranks, experience: known, request: HeadRequest::Logprobs(options) };
        accumulation.run(policy, minibatch.policy, |samples, totals, outputs| {
            if let Some(pending) = &mut pending
                && !pending.note(&known.samples, samples, outputs)
            {
                return Ok(HeadGradients::not_a_number(outputs));
            }
            losses.policy(samples, totals, outputs, &mut found.losses)
        })?;
        if let (Some(critic), Some(targets)) = (critic.as_mut(), &known.critic) {
            let accumulation = Accumulation { request: HeadRequest::Scalars, ..accumulation };
            accumulation.run(critic, minibatch.critic, |samples, totals, outputs| {
                let of_microbatch = losses.critic(samples, targets, totals, outputs)?;
                found.value_loss += of_microbatch.loss;
                Ok(of_microbatch.gradients)
            })?;
        }

        self.optimizer_steps(lr_factor, known, found, sums)?;
        experience.pending = pending;
        Ok(())
    }

    /// The optimizer step of each model, over the gradients of a minibatch; what was added up counts if the
    /// step is made. The policy's gradients were reduced while the critic was computed.
    fn optimizer_steps(
        &mut self,
        lr_factor: f64,
        experience: &Experience,
        found: Found,
        sums: &mut UpdateSums,
    ) -> Result<()> {
        let Self { config, ranks, policy, critic, .. } = self;
        let collected = &experience.samples;
        let Found { policy_samples, critic_samples, losses, value_loss } = found;
        if !policy_samples.is_empty() {
            let lr = lr_factor * config.policy_lr;
            let outcome = policy.update(ranks, &config.optimizer(config.policy_lr), lr)?;
            if sums.policy.count(outcome) {
                sums.policy_lr = lr;
                sums.losses.merge(&losses);
            }
            warn_if_skipped("policy", outcome, ranks, (collected, &policy_samples));
        }
        if let Some(critic) = critic {
            let optimizer = config.optimizer(config.critic_lr);
            let outcome = critic.update(ranks, &optimizer, lr_factor * config.critic_lr)?;
            if sums.critic.count(outcome) {
                sums.losses.value_loss += value_loss;
            }
            warn_if_skipped("critic", outcome, ranks, (collected, &critic_samples));
        }
        Ok(())
    }
}

/// What a minibatch has added up before its optimizer steps.
#[derive(Default)]
struct Found {
    policy_samples: Vec<usize>,
    critic_samples: Vec<usize>,
    losses: LossSums,
    value_loss: f64,
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
                Ok(loss(samples, &totals, outputs).unwrap_or_else(|problem| {
                    let samples = named(&experience.samples.ids, samples);
                    warn!(rank = ranks.rank(), %problem, samples, "a micro-batch has no loss");
                    HeadGradients::not_a_number(outputs)
                }))
            })?;
        }
        Ok(())
    }
}

/// Says which samples a step was to learn from that could not be made.
fn warn_if_skipped(
    model: &'static str,
    outcome: StepOutcome,
    ranks: &Ranks,
    (collected, samples): (&Collected, &[usize]),
) {
    if let StepOutcome::Skipped { norm } = outcome
        && ranks.rank() == 0
    {
        let samples = named(&collected.ids, samples);
        warn!(model, norm, samples, "the gradient is no finite number: optimizer step skipped");
    }
}

/// The ids of samples, for people.
pub(super) fn named<T: ToString>(ids: &[T], samples: &[usize]) -> String {
    let mut names: Vec<String> =
        samples.iter().take(NAMED_SAMPLES).map(|sample| ids[*sample].to_string()).collect();
    if samples.len() > NAMED_SAMPLES {
        names.push(format!("and {} more", samples.len() - NAMED_SAMPLES));
    }
    names.join(", ")
}
