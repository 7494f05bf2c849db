//! The learner's metrics: every name, description and label.
#![expect(clippy::disallowed_macros, reason = "this is the crate's metrics.rs")]

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use types::BatchId;
use types::link::learner::StepMetrics;

/// Gauges of the last step.
const STEP_GAUGES: &[(&str, &str)] = &[
    ("rlhf_learner_policy_loss", "Policy loss, mean over minibatches."),
    ("rlhf_learner_value_loss", "Value loss, mean over minibatches."),
    ("rlhf_learner_entropy", "Entropy of the policy, nats."),
    ("rlhf_learner_approx_kl", "Approximate KL of the update."),
    (
        "rlhf_learner_rollout_approx_kl",
        "Approximate KL between learner and actor on the same tokens; 0 on-policy.",
    ),
    ("rlhf_learner_rollout_logprob_diff", "Mean absolute difference of learner's and actor's log-probs."),
    ("rlhf_learner_clip_fraction", "Share of tokens at which the clip was active."),
    ("rlhf_learner_explained_variance", "Explained variance of the returns by the critic."),
    ("rlhf_learner_score_mean", "Mean score of the samples that train."),
    ("rlhf_learner_kl_to_ref", "KL between the policy and the reference, per response."),
    ("rlhf_learner_policy_grad_norm", "Gradient norm of the policy before clipping."),
    ("rlhf_learner_critic_grad_norm", "Gradient norm of the critic before clipping."),
    ("rlhf_learner_policy_lr", "Learning rate of the policy."),
    ("rlhf_learner_kl_coefficient", "Coefficient of the KL penalty."),
    ("rlhf_learner_staleness_versions", "Mean versions that trained tokens were behind."),
];

/// Describes every metric.
pub(crate) fn describe() {
    describe_counter!("rlhf_learner_steps_total", "Batches trained by this process.");
    describe_counter!("rlhf_learner_tokens_total", "Prompt and response tokens trained.");
    describe_counter!("rlhf_learner_broadcasts_failed_total", "Weight broadcasts that failed.");
    describe_histogram!("rlhf_learner_step_seconds", "Time of a training step, by phase.");
    describe_histogram!("rlhf_learner_broadcast_seconds", "Time of a weight broadcast.");
    describe_gauge!("rlhf_learner_checkpointed_batch", "The last batch that a checkpoint holds.");
    for (name, what) in STEP_GAUGES {
        describe_gauge!(*name, *what);
    }
}

/// One step.
pub(crate) fn step(m: &StepMetrics) {
    counter!("rlhf_learner_steps_total").increment(1);
    counter!("rlhf_learner_tokens_total").increment(m.tokens);
    for (phase, seconds) in
        [("prepare", m.prepare_seconds), ("update", m.update_seconds), ("all", m.step_seconds)]
    {
        histogram!("rlhf_learner_step_seconds", "phase" => phase).record(seconds);
    }
    let values = [
        m.policy_loss,
        m.value_loss,
        m.entropy,
        m.approx_kl,
        m.rollout_approx_kl,
        m.rollout_logprob_diff,
        m.clip_fraction,
        m.explained_variance,
        m.score_mean,
        m.kl_to_ref,
        m.policy_grad_norm,
        m.critic_grad_norm,
        m.policy_lr,
        m.kl_coefficient,
        m.staleness,
    ];
    for ((name, _), value) in STEP_GAUGES.iter().zip(values) {
        gauge!(*name).set(value);
    }
}

pub(crate) fn checkpointed(batch: BatchId) {
    gauge!("rlhf_learner_checkpointed_batch").set(batch.0 as f64);
}

pub(crate) fn broadcast(seconds: f64) {
    histogram!("rlhf_learner_broadcast_seconds").record(seconds);
}

pub(crate) fn broadcast_failed() {
    counter!("rlhf_learner_broadcasts_failed_total").increment(1);
}
