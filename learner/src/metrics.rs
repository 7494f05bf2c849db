//! The learner's metrics: every name, description and label.
#![expect(clippy::disallowed_macros, reason = "this is the crate's metrics.rs")]

use metrics::{counter, gauge, histogram};
use service::{Label, Metric};
use types::BatchId;
use types::link::learner::StepMetrics;

/// A gauge of the last step.
struct StepGauge {
    name: &'static str,
    /// Absent where there is nothing to measure: no critic, no reference, a batch that was skipped.
    value: fn(&StepMetrics) -> Option<f64>,
}

const STEP_GAUGES: [StepGauge; 16] = [
    StepGauge { name: "rlhf_learner_policy_loss", value: |step| step.policy_loss },
    StepGauge { name: "rlhf_learner_value_loss", value: |step| step.value_loss },
    StepGauge { name: "rlhf_learner_entropy", value: |step| step.entropy },
    StepGauge { name: "rlhf_learner_approx_kl", value: |step| step.approx_kl },
    StepGauge { name: "rlhf_learner_rollout_approx_kl", value: |step| step.rollout_approx_kl },
    StepGauge { name: "rlhf_learner_rollout_logprob_diff", value: |step| step.rollout_logprob_diff },
    StepGauge { name: "rlhf_learner_clip_fraction", value: |step| step.clip_fraction },
    StepGauge { name: "rlhf_learner_explained_variance", value: |step| step.explained_variance },
    StepGauge { name: "rlhf_learner_score_mean", value: |step| step.score_mean },
    StepGauge { name: "rlhf_learner_kl_to_ref", value: |step| step.kl_to_ref },
    StepGauge { name: "rlhf_learner_policy_grad_norm", value: |step| step.policy_grad_norm },
    StepGauge { name: "rlhf_learner_critic_grad_norm", value: |step| step.critic_grad_norm },
    StepGauge { name: "rlhf_learner_policy_lr", value: |step| step.policy_lr },
    StepGauge { name: "rlhf_learner_kl_coefficient", value: |step| Some(step.kl_coefficient) },
    StepGauge { name: "rlhf_learner_positive_weight", value: |step| step.positive_weight },
    StepGauge { name: "rlhf_learner_staleness_versions", value: |step| Some(step.staleness) },
];

/// Every metric of the process.
pub const METRICS: &[Metric] = &[
    Metric::counter("rlhf_learner_steps_total", "Batches trained by this process."),
    Metric::counter("rlhf_learner_tokens_total", "Prompt and response tokens trained."),
    Metric::counter(
        "rlhf_learner_steps_skipped_total",
        "Optimizer steps that were not made, because a loss or a gradient was no finite number.",
    ),
    Metric::counter(
        "rlhf_learner_samples_truncated_total",
        "Samples that came to train whose response was cut off by the length limit.",
    ),
    Metric::counter(
        "rlhf_learner_scores_clipped_total",
        "Samples that train whose score was beyond score_clip.",
    ),
    Metric::counter(
        "rlhf_learner_tokens_masked_total",
        "Response tokens that came to train and did not: cut off, or rejected by an off-policy correction.",
    ),
    Metric::counter("rlhf_learner_broadcasts_failed_total", "Weight broadcasts that failed."),
    Metric::histogram(
        "rlhf_learner_step_seconds",
        "Time of a training step, by phase; the copy for publication comes after `all` of it.",
    )
    .by(&[Label::one_of("phase", &["prepare", "update", "all", "publish"])]),
    Metric::histogram("rlhf_learner_broadcast_seconds", "Time of a weight broadcast."),
    Metric::gauge("rlhf_learner_checkpointed_batch", "The last batch that a checkpoint holds."),
    Metric::gauge("rlhf_learner_checkpoint_every", "Batches from one checkpoint to the next, as configured."),
    Metric::histogram(
        "rlhf_learner_checkpoint_seconds",
        "Time of a checkpoint, from the copy to its name on the disk, most of it beside the next steps.",
    ),
    Metric::gauge("rlhf_learner_checkpoint_bytes", "Size of the last checkpoint, all ranks' files."),
    Metric::counter(
        "rlhf_learner_checkpoints_put_off_total",
        "Checkpoints that found no room on the disk; each is tried again, and training goes on.",
    ),
    Metric::gauge("rlhf_learner_policy_loss", "Policy loss, mean over minibatches."),
    Metric::gauge("rlhf_learner_value_loss", "Value loss, mean over minibatches."),
    Metric::gauge("rlhf_learner_entropy", "Entropy of the policy, nats."),
    Metric::gauge("rlhf_learner_approx_kl", "Approximate KL of the update."),
    Metric::gauge(
        "rlhf_learner_rollout_approx_kl",
        "Approximate KL between learner and actor on the same tokens; 0 on-policy.",
    ),
    Metric::gauge(
        "rlhf_learner_rollout_logprob_diff",
        "Mean absolute difference of learner's and actor's log-probs.",
    ),
    Metric::gauge("rlhf_learner_clip_fraction", "Share of tokens at which the clip was active."),
    Metric::gauge("rlhf_learner_explained_variance", "Explained variance of the returns by the critic."),
    Metric::gauge("rlhf_learner_score_mean", "Mean score of the samples that train."),
    Metric::gauge("rlhf_learner_kl_to_ref", "KL between the policy and the reference, per response."),
    Metric::gauge("rlhf_learner_policy_grad_norm", "Gradient norm of the policy before clipping."),
    Metric::gauge("rlhf_learner_critic_grad_norm", "Gradient norm of the critic before clipping."),
    Metric::gauge("rlhf_learner_policy_lr", "Learning rate of the policy."),
    Metric::gauge("rlhf_learner_kl_coefficient", "Coefficient of the KL penalty."),
    Metric::gauge("rlhf_learner_positive_weight", "Weight of tokens with a positive advantage."),
    Metric::gauge("rlhf_learner_staleness_versions", "Mean versions that trained tokens were behind."),
];

/// A batch has been trained.
pub(crate) fn step(step: &StepMetrics) {
    counter!("rlhf_learner_steps_total").increment(1);
    counter!("rlhf_learner_tokens_total").increment(step.tokens);
    counter!("rlhf_learner_steps_skipped_total").increment(step.skipped_steps);
    counter!("rlhf_learner_samples_truncated_total").increment(step.truncated);
    counter!("rlhf_learner_scores_clipped_total").increment(step.scores_clipped);
    counter!("rlhf_learner_tokens_masked_total").increment(step.masked_tokens);
    for (phase, seconds) in [
        ("prepare", step.prepare_seconds),
        ("update", step.update_seconds),
        ("all", step.step_seconds),
        ("publish", step.publish_seconds),
    ] {
        histogram!("rlhf_learner_step_seconds", "phase" => phase).record(seconds);
    }
    for gauge in STEP_GAUGES {
        if let Some(value) = (gauge.value)(step) {
            gauge!(gauge.name).set(value);
        }
    }
}

/// A checkpoint that holds this batch is complete.
pub(crate) fn checkpointed(batch: BatchId) {
    gauge!("rlhf_learner_checkpointed_batch").set(batch.0 as f64);
}

/// A checkpoint will be begun after every so many batches.
pub(crate) fn checkpoint_every(batches: u64) {
    gauge!("rlhf_learner_checkpoint_every").set(batches as f64);
}

/// A checkpoint was written.
pub(crate) fn checkpoint_written(bytes: u64, seconds: f64) {
    histogram!("rlhf_learner_checkpoint_seconds").record(seconds);
    gauge!("rlhf_learner_checkpoint_bytes").set(bytes as f64);
}

/// Weights were broadcast.
pub(crate) fn broadcast(seconds: f64) {
    histogram!("rlhf_learner_broadcast_seconds").record(seconds);
}

/// Weights could not be broadcast.
pub(crate) fn broadcast_failed() {
    counter!("rlhf_learner_broadcasts_failed_total").increment(1);
}

/// A checkpoint found no room.
pub(crate) fn checkpoint_put_off() {
    counter!("rlhf_learner_checkpoints_put_off_total").increment(1);
}
