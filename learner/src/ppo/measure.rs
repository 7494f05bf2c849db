//! What is measured of a step.

use algo::{KlEstimator, PositiveWeight, Responses};
use tracing::warn;
use types::link::learner::StepMetrics;
use types::{Batch, Sample};

use super::experience::{Experience, is_masked, is_truncated};
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
        let UpdateSums { policy, critic, policy_lr, losses } = updates;
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
            .map_err(Error::in_batch(batch.id()))?;
        let differences: Vec<f32> =
            old_logprobs.iter().zip(&rollout_logprobs).map(|(old, rollout)| (old - rollout).abs()).collect();
        let explained = match &experience.critic {
            Some(targets) => explained_variance(samples, self.config.critic_on, targets)
                .map_err(Error::in_batch(batch.id()))?,
            None => None,
        };
        let scores: Vec<f32> = trained.iter().map(|sample| samples.scores[*sample]).collect();
        let metrics = StepMetrics {
            policy_loss: policy.mean(policy_loss),
            value_loss: critic.mean(value_loss),
            entropy: mean(&samples.gather(&experience.old_entropies, &trained)),
            approx_kl: ratio(approx_kl, ratio_tokens),
            rollout_approx_kl: (!old_logprobs.is_empty()).then(|| rollout_kl.mean()),
            rollout_logprob_diff: mean(&differences),
            clip_fraction: ratio(clipped, ratio_tokens),
            explained_variance: explained,
            score_mean: mean(&scores),
            kl_to_ref: experience.kl_to_ref(),
            policy_grad_norm: policy.mean_norm(),
            critic_grad_norm: critic.mean_norm(),
            policy_lr: (policy.made > 0).then_some(policy_lr),
            kl_coefficient: self.controller.coefficient(),
            positive_weight: self.shown_positive_weight(),
            skipped_steps: policy.skipped + critic.skipped,
            truncated: truncated(batch),
            scores_clipped: scores_clipped(&scores, self.config.score_clip.number()),
            masked_tokens: self.masked_tokens(batch, experience),
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

    /// The weight of tokens with a positive advantage, unless it is 1 for good.
    fn shown_positive_weight(&self) -> Option<f64> {
        (self.positive_weight != PositiveWeight::Fixed { weight: 1.0 }).then(|| self.positive_weight.weight())
    }

    /// Response tokens that the filtration kept and that do not train: of responses that were cut off, and
    /// those whose correction weight is 0.
    fn masked_tokens(&self, batch: &Batch, experience: &Experience) -> u64 {
        let kept = batch.samples().iter().filter(|sample| sample.weight() > 0.0);
        let masked = kept.filter(|sample| is_masked(sample, &self.config));
        let tokens: usize = masked.map(|sample| sample.rollout().response_tokens().len()).sum();
        let samples = &experience.samples;
        let corrections = experience.corrections.as_ref();
        let corrected = corrections.map(|weights| samples.gather(weights, &samples.trained()));
        let rejected = corrected.unwrap_or_default().into_iter().filter(|weight| *weight == 0.0).count();
        (tokens + rejected) as u64
    }

    /// The metrics of a batch whose `minibatches` of every pass were skipped: nothing of its losses.
    pub(super) fn measure_skipped(&self, batch: &Batch, minibatches: usize) -> StepMetrics {
        let trained: Vec<&Sample> = batch.samples().iter().filter(|sample| sample.weight() > 0.0).collect();
        let scores: Vec<f32> = trained.iter().map(|sample| sample.scored().score()).collect();
        StepMetrics {
            score_mean: mean(&scores),
            kl_coefficient: self.controller.coefficient(),
            positive_weight: self.shown_positive_weight(),
            skipped_steps: (self.config.ppo_epochs * minibatches) as u64,
            truncated: truncated(batch),
            staleness: staleness(batch),
            samples: trained.len() as u64,
            response_tokens: batch.response_tokens() as u64,
            ..StepMetrics::default()
        }
    }

    /// On fresh rollouts learner and actors must agree on the log-probs of what was drawn.
    fn warn_of_disagreement(&self, batch: &Batch, metrics: &StepMetrics) {
        let (is_fresh, alarm) = (metrics.staleness == 0.0, self.config.logprob_alarm());
        if is_fresh && self.ranks.rank() == 0 && metrics.rollout_logprob_diff.is_some_and(|diff| diff > alarm)
        {
            warn!(
                batch = %batch.id(),
                rollout_logprob_diff = metrics.rollout_logprob_diff,
                rollout_approx_kl = metrics.rollout_approx_kl,
                alarm,
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
    ratio(behind, tokens).unwrap_or(0.0)
}

/// Samples with weight whose response was cut off by the length limit.
fn truncated(batch: &Batch) -> u64 {
    let kept = batch.samples().iter().filter(|sample| sample.weight() > 0.0);
    kept.filter(|sample| is_truncated(sample)).count() as u64
}

/// Scores that are kept within the bound by the clip alone.
fn scores_clipped(scores: &[f32], bound: Option<f64>) -> u64 {
    let Some(bound) = bound else { return 0 };
    scores.iter().filter(|score| f64::from(**score).abs() > bound).count() as u64
}

/// `numerator / denominator`, where there is something to divide by.
fn ratio(numerator: f64, denominator: f64) -> Option<f64> {
    (denominator > 0.0).then(|| numerator / denominator)
}

fn mean(values: &[f32]) -> Option<f64> {
    ratio(values.iter().map(|value| f64::from(*value)).sum(), values.len() as f64)
}
