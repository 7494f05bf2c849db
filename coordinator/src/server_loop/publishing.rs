//! What the loop tells people: steps, evaluations, samples.

use std::sync::Arc;

use super::ServerLoop;
use crate::metrics;
use crate::state::{EvaluationRecord, GroupEnd, StepRecord};

impl ServerLoop {
    pub(super) fn step(&mut self, step: &StepRecord) -> anyhow::Result<()> {
        tracing::info!(
            batch = step.batch.0,
            score_mean = step.score_mean,
            outcome_mean = step.outcome_mean,
            kl_to_ref = step.metrics.kl_to_ref,
            approx_kl = step.metrics.approx_kl,
            rollout_approx_kl = step.metrics.rollout_approx_kl,
            step_seconds = step.metrics.step_seconds,
            "step"
        );
        metrics::step(step);
        self.published.steps.send_replace(Arc::new(self.state.history().shared_steps()));
        if let Some(file) = &mut self.steps_file {
            file.add_last(self.state.history().steps())?;
        }
        if let Some(samples) = &mut self.samples {
            samples.trained(self.clock.now());
        }
        Ok(())
    }

    /// Writes some of a group's responses for people. A run does not end because nobody can read them.
    pub(super) fn show_samples(&mut self, group: &GroupEnd) {
        let now = self.clock.now();
        let written = self.samples.as_mut().map(|samples| samples.ended(now, group));
        if let Some(Err(error)) = written {
            tracing::warn!(error = format!("{error:#}"), "no more samples are written");
            self.samples = None;
        }
    }

    pub(super) fn evaluated(&mut self, record: &EvaluationRecord) -> anyhow::Result<()> {
        tracing::info!(
            version = record.version.0,
            score_mean = record.score_mean,
            outcome_mean = record.outcome_mean,
            responses = record.responses,
            failed = record.failed,
            seconds = record.seconds,
            is_best = record.is_best,
            ends_run = record.ends_run,
            "held-out prompts evaluated"
        );
        metrics::evaluated(record);
        match &mut self.evals_file {
            Some(file) => file.add_last(self.state.evaluations()),
            None => Ok(()),
        }
    }
}
