//! What is measured of a step.

use algo::{KlEstimator, Responses};
use tracing::warn;
use types::Batch;
use types::link::learner::StepMetrics;

use super::experience::Experience;
use super::losses::explained_variance;
use super::trainer::Trainer;
use super::update::UpdateSums;
use crate::error::{Error, Result};

impl Trainer {
    /// The step's metrics but for its times. All ranks call it together, and come to the same.
    ///
    /// # Errors
    /// A metric that is no finite number: training has diverged.
    pub(super) fn measure(
        &self,
        batch: &Batch,
        experience: &Experience,
        updates: UpdateSums,
    ) -> Result<StepMetrics> {
        let UpdateSums { minibatches, losses, .. } = updates;
        let ratios = &losses.ratios;
        let mut sums =
            [losses.policy_loss, losses.value_loss, ratios.tokens, ratios.approx_kl, ratios.clipped];
        self.ranks.sum(&mut sums)?;
        let [policy_loss, value_loss, ratio_tokens, approx_kl, clipped] = sums;

        let samples = &experience.samples;
        let trained = samples.trained();
        let old_logprobs = samples.gather(&experience.old_logprobs, &trained);
        let rollout_logprobs = samples.gather(&samples.rollout_logprobs, &trained);
        let lengths = samples.lengths_of(&trained);
        let rollout_kl = Responses::new(&lengths)
            .and_then(|responses| KlEstimator::K3.moments(responses, &rollout_logprobs, &old_logprobs))
            .map_err(Error::numbers(|| format!("batch {}", batch.id())))?;
        let differences: Vec<f32> =
            old_logprobs.iter().zip(&rollout_logprobs).map(|(old, rollout)| (old - rollout).abs()).collect();
        let explained = match &experience.critic {
            Some(targets) => explained_variance(samples, self.config.critic_on, targets)
                .map_err(Error::numbers(|| format!("batch {}", batch.id())))?,
            None => None,
        };
        let scores: Vec<f32> = trained.iter().map(|sample| samples.scores[*sample]).collect();
        let metrics = StepMetrics {
            policy_loss: ratio(policy_loss, minibatches),
            value_loss: experience.critic.as_ref().map(|_| ratio(value_loss, minibatches)),
            entropy: mean(&samples.gather(&experience.old_entropies, &trained)),
            approx_kl: ratio(approx_kl, ratio_tokens),
            rollout_approx_kl: rollout_kl.mean(),
            rollout_logprob_diff: mean(&differences),
            clip_fraction: ratio(clipped, ratio_tokens),
            explained_variance: explained,
            score_mean: mean(&scores),
            kl_to_ref: experience.kl_to_ref(),
            policy_grad_norm: ratio(updates.policy_norm, minibatches),
            critic_grad_norm: experience.critic.as_ref().map(|_| ratio(updates.critic_norm, minibatches)),
            policy_lr: updates.policy_lr,
            kl_coefficient: self.controller.coefficient(),
            staleness: staleness(batch),
            samples: trained.len() as u64,
            response_tokens: old_logprobs.len() as u64,
            // A sequence leaves out its last token, which predicts nothing.
            tokens: trained.iter().map(|sample| samples.sequences[*sample].tokens() as u64 + 1).sum(),
            ..StepMetrics::default()
        };
        if let Some(name) = metrics.not_finite() {
            let problem = format!("its {name} is no finite number: training has diverged");
            return Err(Error::Batch { batch: batch.id(), problem });
        }
        self.warn_of_disagreement(batch, &metrics);
        Ok(metrics)
    }

    /// On fresh rollouts learner and actors must agree on the log-probs of what was drawn.
    fn warn_of_disagreement(&self, batch: &Batch, metrics: &StepMetrics) {
        let is_fresh = metrics.staleness == 0.0;
        if is_fresh && self.ranks.rank() == 0 && metrics.rollout_logprob_diff > self.config.logprob_alarm {
            warn!(
                batch = %batch.id(),
                rollout_logprob_diff = metrics.rollout_logprob_diff,
                rollout_approx_kl = metrics.rollout_approx_kl,
                alarm = self.config.logprob_alarm,
                "learner and actors disagree on the log-probs of fresh rollouts"
            );
        }
    }
}

/// Mean over the tokens that train of how many versions the policy that drew them is behind the one before
/// this batch.
fn staleness(batch: &Batch) -> f64 {
    let newest = batch.id().0.saturating_sub(1);
    let (mut behind, mut tokens) = (0.0, 0.0);
    for sample in batch.samples().iter().filter(|sample| sample.weight() > 0.0) {
        for span in sample.rollout().spans() {
            let count = f64::from(span.tokens.get());
            behind += count * newest.saturating_sub(span.version.0) as f64;
            tokens += count;
        }
    }
    ratio(behind, tokens)
}

/// `numerator / denominator`, 0 where there is nothing to divide by.
fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator > 0.0 { numerator / denominator } else { 0.0 }
}

fn mean(values: &[f32]) -> f64 {
    ratio(values.iter().map(|value| f64::from(*value)).sum(), values.len() as f64)
}
