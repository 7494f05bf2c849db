//! The learner's metrics: every name, description and label.
#![expect(clippy::disallowed_macros, reason = "this is the crate's metrics.rs")]

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use types::BatchId;
use types::link::learner::StepMetrics;

/// A gauge of the last step.
struct StepGauge {
    name: &'static str,
    description: &'static str,
    value: fn(&StepMetrics) -> f64,
}

const STEP_GAUGES: [StepGauge; 15] = [
    StepGauge {
        name: "rlhf_learner_policy_loss",
        description: "Policy loss, mean over minibatches.",
        value: |step| step.policy_loss,
    },
    StepGauge {
        name: "rlhf_learner_value_loss",
        description: "Value loss, mean over minibatches.",
        value: |step| step.value_loss,
    },
    StepGauge {
        name: "rlhf_learner_entropy",
        description: "Entropy of the policy, nats.",
        value: |step| step.entropy,
    },
    StepGauge {
        name: "rlhf_learner_approx_kl",
        description: "Approximate KL of the update.",
        value: |step| step.approx_kl,
    },
    StepGauge {
        name: "rlhf_learner_rollout_approx_kl",
        description: "Approximate KL between learner and actor on the same tokens; 0 on-policy.",
        value: |step| step.rollout_approx_kl,
    },
    StepGauge {
        name: "rlhf_learner_rollout_logprob_diff",
        description: "Mean absolute difference of learner's and actor's log-probs.",
        value: |step| step.rollout_logprob_diff,
    },
    StepGauge {
        name: "rlhf_learner_clip_fraction",
        description: "Share of tokens at which the clip was active.",
        value: |step| step.clip_fraction,
    },
    StepGauge {
        name: "rlhf_learner_explained_variance",
        description: "Explained variance of the returns by the critic.",
        value: |step| step.explained_variance,
    },
    StepGauge {
        name: "rlhf_learner_score_mean",
        description: "Mean score of the samples that train.",
        value: |step| step.score_mean,
    },
    StepGauge {
        name: "rlhf_learner_kl_to_ref",
        description: "KL between the policy and the reference, per response.",
        value: |step| step.kl_to_ref,
    },
    StepGauge {
        name: "rlhf_learner_policy_grad_norm",
        description: "Gradient norm of the policy before clipping.",
        value: |step| step.policy_grad_norm,
    },
    StepGauge {
        name: "rlhf_learner_critic_grad_norm",
        description: "Gradient norm of the critic before clipping.",
        value: |step| step.critic_grad_norm,
    },
    StepGauge {
        name: "rlhf_learner_policy_lr",
        description: "Learning rate of the policy.",
        value: |step| step.policy_lr,
    },
    StepGauge {
        name: "rlhf_learner_kl_coefficient",
        description: "Coefficient of the KL penalty.",
        value: |step| step.kl_coefficient,
    },
    StepGauge {
        name: "rlhf_learner_staleness_versions",
        description: "Mean versions that trained tokens were behind.",
        value: |step| step.staleness,
    },
];

/// Describes every metric.
pub(crate) fn describe() {
    describe_counter!("rlhf_learner_steps_total", "Batches trained by this process.");
    describe_counter!("rlhf_learner_tokens_total", "Prompt and response tokens trained.");
    describe_counter!("rlhf_learner_broadcasts_failed_total", "Weight broadcasts that failed.");
    describe_histogram!("rlhf_learner_step_seconds", "Time of a training step, by phase.");
    describe_histogram!("rlhf_learner_broadcast_seconds", "Time of a weight broadcast.");
    describe_gauge!("rlhf_learner_checkpointed_batch", "The last batch that a checkpoint holds.");
    for gauge in STEP_GAUGES {
        describe_gauge!(gauge.name, gauge.description);
    }
}

/// A batch has been trained.
pub(crate) fn step(step: &StepMetrics) {
    counter!("rlhf_learner_steps_total").increment(1);
    counter!("rlhf_learner_tokens_total").increment(step.tokens);
    for (phase, seconds) in
        [("prepare", step.prepare_seconds), ("update", step.update_seconds), ("all", step.step_seconds)]
    {
        histogram!("rlhf_learner_step_seconds", "phase" => phase).record(seconds);
    }
    for gauge in STEP_GAUGES {
        gauge!(gauge.name).set((gauge.value)(step));
    }
}

/// A checkpoint that holds this batch is complete.
pub(crate) fn checkpointed(batch: BatchId) {
    gauge!("rlhf_learner_checkpointed_batch").set(batch.0 as f64);
}

/// Weights were broadcast.
pub(crate) fn broadcast(seconds: f64) {
    histogram!("rlhf_learner_broadcast_seconds").record(seconds);
}

/// Weights could not be broadcast.
pub(crate) fn broadcast_failed() {
    counter!("rlhf_learner_broadcasts_failed_total").increment(1);
}
