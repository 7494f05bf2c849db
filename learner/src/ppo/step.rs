//! One step of PPO on one batch.

use std::ops::ControlFlow;

use tracing::{debug, warn};
use types::link::learner::{MeasuredStep, StepMetrics};
use types::{Batch, BatchId};

use super::estimate::Estimation;
use super::experience::{Collected, Evaluated, Experience};
use super::minibatch::Minibatch;
use super::trainer::Trainer;
use super::update::{UpdateSums, named};
use crate::config::PpoConfig;
use crate::error::{Error, Result};
use crate::phase_timer::PhaseTimer;

impl Trainer {
    /// Trains one batch, whose number must be that of the next version, and returns what was measured; every
    /// rank is given the same batch and returns the same metrics.
    ///
    /// Optimizer steps whose losses or gradients are no finite numbers are skipped, on all ranks alike; where
    /// the networks' outputs before the update are none, those of the whole batch are.
    ///
    /// # Errors
    /// A batch out of order or with numbers that do not fit, training that diverged, a rank that is lost. The
    /// weights are not to be used after that.
    pub fn step(&mut self, batch: &Batch) -> Result<StepMetrics> {
        let timer = PhaseTimer::start();
        self.require_next(batch.id())?;
        let samples = Collected::new(batch, &self.config, &self.settings)?;
        let mut minibatches = self.minibatches(&samples, batch.id(), 0)?;
        let evaluated = self.prepare(samples, &mut minibatches)?;
        let experience = self.estimate(evaluated, batch.id())?;
        let prepare_seconds = timer.seconds();

        let mut metrics = match experience {
            Some(experience) => self.train(batch, experience, minibatches)?,
            None => self.measure_skipped(batch, minibatches.len()),
        };
        metrics.prepare_seconds = prepare_seconds;
        metrics.step_seconds = timer.seconds();
        metrics.update_seconds = metrics.step_seconds - prepare_seconds;
        self.version = self.version.next();
        self.steps.push(MeasuredStep { batch: batch.id(), metrics: metrics.clone() });
        self.consumed.add(batch);
        Ok(metrics)
    }

    fn require_next(&self, batch: BatchId) -> Result<()> {
        let expected = BatchId(self.version.0 + 1);
        if batch != expected {
            let problem = format!("is out of order: {expected} is next");
            return Err(Error::Batch { batch, problem });
        }
        Ok(())
    }

    /// What the losses are computed from; `None` where the networks' outputs allow none. That is the same on
    /// every rank, because each has the outputs of all.
    fn estimate(&mut self, evaluated: Evaluated, batch: BatchId) -> Result<Option<Experience>> {
        let broken = evaluated.not_finite();
        let broken = named(&evaluated.samples.ids, &broken);
        let problem = match evaluated.estimate(self.estimation()) {
            Ok(experience) if broken.is_empty() => {
                debug!(%batch, corrections = ?experience.correction_sums, "rollouts corrected");
                return Ok(Some(experience));
            }
            Ok(_) => "entropies are no finite numbers".to_owned(),
            Err(problem) => problem.to_string(),
        };
        if self.ranks.rank() == 0 {
            warn!(%batch, problem, samples = broken, "no loss can be computed: batch skipped");
        }
        self.policy.skip(&self.config.optimizer(self.config.policy_lr))?;
        Ok(None)
    }

    fn estimation(&self) -> Estimation<'_> {
        let kl_coefficient = self.controller.coefficient();
        Estimation { config: &self.config, settings: &self.settings, kl_coefficient }
    }

    /// All passes over the batch; `first` are the minibatches of the first one.
    fn train(
        &mut self,
        batch: &Batch,
        mut experience: Experience,
        first: Vec<Minibatch>,
    ) -> Result<StepMetrics> {
        let mut updates = UpdateSums::default();
        let steps_per_pass = first.len();
        if self.train_pass(&mut experience, first, 0, &mut updates)?.is_break() {
            return Ok(self.measure_skipped(batch, steps_per_pass));
        }
        for pass in 1..self.config.ppo_epochs {
            let minibatches = self.minibatches(&experience.samples, batch.id(), pass)?;
            let _ = self.train_pass(&mut experience, minibatches, pass, &mut updates)?;
        }
        let metrics = self.measure(batch, &experience, updates)?;
        self.adapt_kl_coefficient(&experience)?;
        self.adapt_positive_weight(&metrics)?;
        Ok(metrics)
    }

    /// One pass over the batch: an optimizer step of each model for every minibatch. Breaks where the first
    /// one has found that the batch has no loss; nothing has moved then.
    fn train_pass(
        &mut self,
        experience: &mut Experience,
        minibatches: Vec<Minibatch>,
        pass: usize,
        updates: &mut UpdateSums,
    ) -> Result<ControlFlow<()>> {
        let steps_per_pass = minibatches.len();
        let steps = (self.config.ppo_epochs * steps_per_pass) as u64;
        for (index, minibatch) in minibatches.into_iter().enumerate() {
            let lr_factor = self.lr_factor((pass * steps_per_pass + index) as u64, steps);
            self.update(experience, minibatch, lr_factor, updates)?;
            if self.settle(experience)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Takes over what the first minibatch found out of the policy before its update, where that was not
    /// asked for before. Every rank has the outputs of all, and decides the same.
    fn settle(&self, experience: &mut Experience) -> Result<ControlFlow<()>> {
        let Some(mut found) = experience.pending.take() else { return Ok(ControlFlow::Continue(())) };
        found.complete(&self.ranks)?;
        let broken = named(&experience.samples.ids, &found.not_finite(&experience.samples));
        if broken.is_empty() {
            let settled = experience.settle(&found, self.settings.correction);
            settled.map_err(Error::numbers(|| "the corrections of a batch".to_owned()))?;
            debug!(corrections = ?experience.correction_sums, "rollouts corrected");
            return Ok(ControlFlow::Continue(()));
        }
        if self.ranks.rank() == 0 {
            warn!(samples = broken, "old log-probs are no finite numbers: batch skipped");
        }
        Ok(ControlFlow::Break(()))
    }

    /// The schedule's factor of the learning rates for optimizer step `place` of the `count` that this
    /// batch makes. The warm-up counts the steps that were made. The schedule goes by batches, as if each
    /// had as many steps as this one: batches of different size move it no faster.
    fn lr_factor(&self, place: u64, count: u64) -> f64 {
        let PpoConfig { schedule, warmup_steps, warmup_share, .. } = self.config;
        let done = self.version.0 * count + place;
        let total = self.last_batch.unwrap_or(BatchId(self.version.0 + 1)).0 * count;
        if warmup_share > 0.0 {
            return schedule.factor(done, (warmup_share * total as f64).ceil() as u64, total);
        }
        let made = self.policy.steps();
        if made < warmup_steps {
            return schedule.factor(made, warmup_steps, total);
        }
        schedule.factor(done.max(warmup_steps), warmup_steps, total)
    }

    /// Moves the weight of tokens with a positive advantage towards the entropy that the configuration aims
    /// at.
    fn adapt_positive_weight(&mut self, metrics: &StepMetrics) -> Result<()> {
        if let Some(entropy) = metrics.entropy {
            let adapted = self.positive_weight.updated(entropy);
            self.positive_weight = adapted.map_err(Error::numbers(|| "the entropy's target".to_owned()))?;
        }
        Ok(())
    }

    /// Moves β towards the KL that the configuration aims at (Ziegler et al. 2019, arXiv 1909.08593, section
    /// 2.2).
    fn adapt_kl_coefficient(&mut self, experience: &Experience) -> Result<()> {
        if let Some(measured) = experience.kl_to_ref() {
            let samples = experience.samples.trained().len() as u64;
            let adapted = self.controller.updated(measured, samples);
            self.controller = adapted.map_err(Error::numbers(|| "the KL controller".to_owned()))?;
        }
        Ok(())
    }
}
