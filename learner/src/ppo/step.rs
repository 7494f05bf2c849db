//! One step: prepare, estimate, pass over minibatches, measure.

use algo::{KlEstimator, Responses};
use model::LogprobOptions;
use tracing::{debug, warn};
use types::link::learner::{MeasuredStep, StepMetrics};
use types::{Batch, BatchId};

use super::experience::Experience;
use super::losses::{Losses, Sums};
use super::minibatch::{Division, Minibatch, Part};
use super::prepare::{Kept, KeptPasses, microbatch};
use super::trainer::Trainer;
use crate::error::{Error, Result};
use crate::microbatch::Plan;
use crate::ranks::Ranks;
use crate::stopwatch::Stopwatch;
use crate::trainee::{NumberGradients, Numbers, Request, Trainee};

impl Trainer {
    /// Trains one batch, whose number must be that of the next version, and returns what was measured; every rank is given
    /// the same batch and returns the same metrics.
    ///
    /// # Errors
    /// A batch out of order or with numbers that do not fit, training that diverged, a rank that is lost. The weights are not
    /// to be used after that.
    pub fn step(&mut self, batch: &Batch) -> Result<StepMetrics> {
        let stopwatch = Stopwatch::start();
        let expected = BatchId(self.version.0 + 1);
        if batch.id != expected {
            return Err(Error::Batch {
                batch: batch.id,
                problem: format!("is out of order: {expected} is next"),
            });
        }
        let numbers = || format!("batch {}", batch.id);
        let mut experience = Experience::new(batch, &self.config, &self.settings)?;
        let division = Division { config: &self.config, world_size: self.ranks.world_size() };
        let mut minibatches = division.minibatches(&experience, batch.id, 0)?;
        let mut kept = self.prepare(&mut experience, &minibatches)?;
        let beta = self.controller.coefficient();
        let corrections =
            experience.estimate(&self.config, &self.settings, beta).map_err(Error::numbers(numbers))?;
        debug!(batch = %batch.id, ?corrections, "rollouts corrected");
        let prepare_seconds = stopwatch.seconds();

        let mut totals = Updates::default();
        let steps_per_pass = minibatches.len();
        for pass in 0..self.config.ppo_epochs {
            if pass > 0 {
                let division = Division { config: &self.config, world_size: self.ranks.world_size() };
                minibatches = division.minibatches(&experience, batch.id, pass)?;
            }
            for (index, minibatch) in minibatches.iter().enumerate() {
                let place = (pass * steps_per_pass + index) as u64;
                let factor = self.schedule_factor(place, (self.config.ppo_epochs * steps_per_pass) as u64);
                let kept = std::mem::take(&mut kept);
                self.train(&experience, (minibatch, kept), factor, &mut totals)?;
            }
        }
        let mut metrics = self.metrics(batch, &experience, totals)?;
        metrics.prepare_seconds = prepare_seconds;
        metrics.step_seconds = stopwatch.seconds();
        metrics.update_seconds = metrics.step_seconds - prepare_seconds;
        self.adapt_kl(&experience)?;
        self.version = self.version.next();
        self.steps.push(MeasuredStep { batch: batch.id, metrics: metrics.clone() });
        Ok(metrics)
    }

    /// The learning rates' factor for optimizer step `place` of the `count` that this batch makes. Steps are counted as if
    /// every batch made as many as this one.
    fn schedule_factor(&self, place: u64, count: u64) -> f64 {
        let done = self.version.0 * count + place;
        let total = self.last_batch.unwrap_or(BatchId(self.version.0 + 1)).0 * count;
        self.config.schedule.factor(done, self.config.warmup_steps, total)
    }

    /// One optimizer step of each model.
    fn train(
        &mut self,
        experience: &Experience,
        (minibatch, kept): (&Minibatch, Kept),
        factor: f64,
        updates: &mut Updates,
    ) -> Result<()> {
        let Self { config, settings, ranks, policy, critic, .. } = self;
        let losses = Losses {
            config,
            settings,
            experience,
            beta: self.controller.coefficient(),
            norm_tokens: config.norm_tokens.unwrap_or(self.max_new_tokens),
        };
        let options =
            LogprobOptions { temperature: self.temperature, entropy: config.entropy_coefficient > 0.0 };
        updates.minibatches += 1.0;
        let sums = &mut updates.sums;
        let Part { is_empty, totals, plan } = &minibatch.policy;
        run(
            ranks,
            policy,
            (experience, plan, kept.policy),
            Request::Logprobs(options),
            |samples, numbers| losses.of_policy(samples, totals, numbers, sums),
        )?;
        let Part { totals, plan, .. } = &minibatch.critic;
        if let Some(critic) = critic {
            run(ranks, critic, (experience, plan, kept.critic), Request::Scalars, |samples, numbers| {
                losses.of_critic(samples, totals, numbers, sums)
            })?;
        }
        // The policy's gradients were reduced while the critic was computed.
        if !is_empty {
            let optimizer = config.optimizer(config.policy_lr);
            updates.policy_lr = factor * config.policy_lr;
            updates.policy_norm += policy.update(ranks, &optimizer, updates.policy_lr)?;
        }
        if let Some(critic) = critic {
            let optimizer = config.optimizer(config.critic_lr);
            updates.critic_norm += critic.update(ranks, &optimizer, factor * config.critic_lr)?;
        }
        Ok(())
    }

    fn adapt_kl(&mut self, experience: &Experience) -> Result<()> {
        if let Some(measured) = experience.kl_to_ref() {
            let samples = experience.trained().len() as u64;
            let adapted = self.controller.updated(measured, samples);
            self.controller = adapted.map_err(Error::numbers(|| "the KL controller".to_owned()))?;
        }
        Ok(())
    }

    fn metrics(&self, batch: &Batch, experience: &Experience, updates: Updates) -> Result<StepMetrics> {
        let mut numbers = updates.sums.numbers();
        self.ranks.sum(&mut numbers)?;
        let [policy_loss, value_loss, ratio_tokens, approx_kl, clipped] = numbers;
        let ratio =
            |numerator: f64, denominator: f64| if denominator > 0.0 { numerator / denominator } else { 0.0 };
        let trained = experience.trained();
        let of = |of_tokens: &[f32]| experience.gather(of_tokens, &trained);
        let mean = |values: &[f32]| ratio(values.iter().map(|v| f64::from(*v)).sum(), values.len() as f64);
        let (old, rollout) = (of(&experience.old_logprobs), of(&experience.rollout_logprobs));
        let lengths = experience.lengths_of(&trained);
        let numbers = || format!("batch {}", batch.id);
        let kl = Responses::new(&lengths).and_then(|r| KlEstimator::K3.moments(r, &rollout, &old));
        let differences: Vec<f32> = old.iter().zip(&rollout).map(|(a, b)| (a - b).abs()).collect();
        let losses =
            Losses { config: &self.config, settings: &self.settings, experience, beta: 0.0, norm_tokens: 1 };
        let explained = match &self.critic {
            Some(_) => losses.explained_variance().map_err(Error::numbers(numbers))?,
            None => None,
        };
        let scores: Vec<f32> = trained.iter().map(|sample| experience.scores[*sample]).collect();
        let tokens =
            experience.sizes(trained.iter().copied()).iter().map(|(_, tokens)| *tokens as u64 + 1).sum();
        let metrics = StepMetrics {
            policy_loss: ratio(policy_loss, updates.minibatches),
            value_loss: ratio(value_loss, updates.minibatches),
            entropy: mean(&of(&experience.old_entropies)),
            approx_kl: ratio(approx_kl, ratio_tokens),
            rollout_approx_kl: kl.map_err(Error::numbers(numbers))?.mean(),
            rollout_logprob_diff: mean(&differences),
            clip_fraction: ratio(clipped, ratio_tokens),
            explained_variance: explained.unwrap_or(0.0),
            score_mean: mean(&scores),
            kl_to_ref: experience.kl_to_ref().unwrap_or(0.0),
            policy_grad_norm: ratio(updates.policy_norm, updates.minibatches),
            critic_grad_norm: ratio(updates.critic_norm, updates.minibatches),
            policy_lr: updates.policy_lr,
            kl_coefficient: self.controller.coefficient(),
            staleness: staleness(batch),
            samples: trained.len() as u64,
            response_tokens: old.len() as u64,
            tokens,
            ..StepMetrics::default()
        };
        if let Some(name) = metrics.not_finite() {
            let problem = format!("its {name} is no finite number: training has diverged");
            return Err(Error::Batch { batch: batch.id, problem });
        }
        self.sound_alarm(batch, &metrics);
        Ok(metrics)
    }

    /// On fresh rollouts learner and actors must agree on the log-probs of what was drawn.
    fn sound_alarm(&self, batch: &Batch, metrics: &StepMetrics) {
        let is_fresh = metrics.staleness == 0.0;
        if is_fresh && self.ranks.rank() == 0 && metrics.rollout_logprob_diff > self.config.logprob_alarm {
            warn!(
                batch = %batch.id,
                rollout_logprob_diff = metrics.rollout_logprob_diff,
                rollout_approx_kl = metrics.rollout_approx_kl,
                alarm = self.config.logprob_alarm,
                "learner and actors disagree on the log-probs of fresh rollouts"
            );
        }
    }
}

/// What the optimizer steps of a batch add up.
#[derive(Debug, Default)]
struct Updates {
    minibatches: f64,
    policy_norm: f64,
    critic_norm: f64,
    policy_lr: f64,
    sums: Sums,
}

/// All micro-batches of a model's part of a minibatch, those with a kept forward pass first.
fn run(
    ranks: &Ranks,
    trainee: &mut Trainee,
    (experience, plan, mut kept): (&Experience, &Plan, KeptPasses),
    request: Request,
    mut loss: impl FnMut(&[usize], &Numbers) -> std::result::Result<NumberGradients, algo::Error>,
) -> Result<()> {
    let rounds = plan.of_rank(ranks.rank());
    let count = rounds.len();
    for (round, samples) in rounds.enumerate() {
        let passed = match kept.pop_front() {
            Some(passed) => passed,
            None => trainee.forward(ranks, microbatch(trainee, experience, samples)?, request)?,
        };
        let what = || {
            samples.iter().map(|sample| experience.ids[*sample].to_string()).collect::<Vec<_>>().join(", ")
        };
        trainee.backward(ranks, (passed, round + 1 == count), |numbers| {
            loss(samples, numbers).map_err(Error::numbers(what))
        })?;
    }
    Ok(())
}

/// Mean over the tokens that train of how many versions the policy that drew them is behind the one before this batch.
fn staleness(batch: &Batch) -> f64 {
    let newest = batch.id.0.saturating_sub(1);
    let trained = batch.samples.iter().filter(|sample| sample.weight > 0.0);
    let spans = trained.flat_map(|sample| &sample.scored.rollout.spans);
    let (sum, tokens) = spans.fold((0.0, 0.0), |(sum, tokens), span| {
        let count = f64::from(span.tokens);
        (sum + count * newest.saturating_sub(span.version.0) as f64, tokens + count)
    });
    if tokens > 0.0 { sum / tokens } else { 0.0 }
}
