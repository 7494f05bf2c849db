//! Coordinator and learner. Only rank 0 of the learner speaks.

use std::collections::VecDeque;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::link::actor::BroadcastGroup;
use crate::{
    Batch, BatchId, BroadcastGroupId, Incarnation, LearnerTerm, Manifest, MemberId, PolicyVersion, RunId,
    Sampling, Timestamp, Vocabulary,
};

/// The learner introduces itself: the first message on every stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearnerHello {
    /// Its name.
    pub member: MemberId,
    /// Tells this start of its processes from the ones before; all ranks start and end together.
    pub incarnation: Incarnation,
    /// The run of the checkpoint it resumed from; none when it starts from a model folder.
    pub run: Option<RunId>,
    /// Number of ranks.
    pub world_size: u32,
    /// The last batch that is part of the weights it holds; 0 when none is.
    pub trained: BatchId,
    /// The last batch that is part of its newest checkpoint on disk.
    pub checkpointed: BatchId,
    /// The weights it holds, ready to be pulled.
    pub manifest: Manifest,
    /// What its last steps up to `trained` measured.
    pub steps: RecentSteps,
    /// `host:port` of its TCPStore for broadcast groups.
    pub store: String,
    /// `host:port` of its weight service.
    pub weights: String,
    /// That of the policy's tokenizer, which actors get from here; none of a release that does not say.
    #[serde(default)]
    pub vocabulary: Option<Vocabulary>,
    /// The GPU from which it sends weights, as an actor's hello names one.
    #[serde(default)]
    pub gpu: Option<String>,
}

/// What one training step measured; means are over response tokens unless the name says otherwise. What there
/// was nothing to measure of is absent, not 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StepMetrics {
    /// Clipped surrogate loss, mean over minibatches; absent where no step was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_loss: Option<f64>,
    /// Clipped value loss, mean over minibatches; absent without a critic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_loss: Option<f64>,
    /// Entropy of the policy in nats; absent where nothing trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    /// Mean of (ratio - 1) - log ratio over all minibatches; absent where no step was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approx_kl: Option<f64>,
    /// The same between the learner's old log-probs and the actors': zero but for rounding when on-policy.
    /// Absent where nothing trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout_approx_kl: Option<f64>,
    /// Mean |learner - actor| log-prob; absent where nothing trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout_logprob_diff: Option<f64>,
    /// Share of tokens at which the clip was active; absent where no step was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_fraction: Option<f64>,
    /// Explained variance of the returns by the values; absent without a critic, and where returns are equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explained_variance: Option<f64>,
    /// Mean score of the samples that train; absent where none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_mean: Option<f64>,
    /// Mean k1 estimate of KL(policy || reference), per response; absent without a reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_to_ref: Option<f64>,
    /// Gradient norm of the policy before clipping, mean over minibatches; absent where no step was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_grad_norm: Option<f64>,
    /// Gradient norm of the critic before clipping, mean over minibatches; absent without a critic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critic_grad_norm: Option<f64>,
    /// Learning rate of the policy in its last step; absent where none was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_lr: Option<f64>,
    /// Coefficient of the KL penalty in force.
    pub kl_coefficient: f64,
    /// Weight of tokens with a positive advantage in force; absent where it is 1 for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positive_weight: Option<f64>,
    /// Optimizer steps of policy and critic that were not made, because a loss or a gradient was no finite
    /// number.
    pub skipped_steps: u64,
    /// Samples with weight whose response was cut off by the length limit.
    pub truncated: u64,
    /// Samples that train whose score was beyond `score_clip`.
    pub scores_clipped: u64,
    /// Response tokens that the filtration kept and that did not train: of responses that were cut off, where
    /// those do not train, and tokens that an off-policy correction rejected.
    pub masked_tokens: u64,
    /// Mean of (trained version - 1 - version that drew the token).
    pub staleness: f64,
    /// Samples with weight above zero.
    pub samples: u64,
    /// Response tokens of those.
    pub response_tokens: u64,
    /// Prompt and response tokens of those.
    pub tokens: u64,
    /// Seconds of the log-prob and value passes before the update.
    pub prepare_seconds: f64,
    /// Seconds of the update.
    pub update_seconds: f64,
    /// Seconds of the whole step.
    pub step_seconds: f64,
    /// Seconds behind the step until its weights were copied and training could go on; broadcasting them
    /// takes none of its time.
    pub publish_seconds: f64,
}

impl StepMetrics {
    /// The name of a measurement that is no finite number, if there is one. JSON, and with it the journal and
    /// the checkpoints, has no form for such a number: it becomes null.
    pub fn not_finite(&self) -> Option<String> {
        // What is absent is left out.
        let fields = serde_json::to_value(self).ok()?;
        let mut null = fields.as_object()?.iter().filter(|(_, value)| value.is_null());
        null.next().map(|(name, _)| name.clone())
    }
}

/// What the step that trained a batch measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasuredStep {
    /// The batch.
    pub batch: BatchId,
    /// The measurements.
    pub metrics: StepMetrics,
}

/// What the last steps measured, in order: at most [`RecentSteps::MOST`]. The learner remembers them, in its
/// checkpoints too, for a coordinator that did not hear of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<MeasuredStep>")]
pub struct RecentSteps(VecDeque<MeasuredStep>);

impl RecentSteps {
    /// Steps that are remembered.
    pub const MOST: usize = 64;

    /// Adds the step that follows; the oldest is forgotten when there are too many.
    pub fn push(&mut self, step: MeasuredStep) {
        self.0.push_back(step);
        if self.0.len() > Self::MOST {
            self.0.pop_front();
        }
    }

    /// The steps, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &MeasuredStep> {
        self.0.iter()
    }

    /// What the step of a batch measured, if it is remembered.
    pub fn of(&self, batch: BatchId) -> Option<&StepMetrics> {
        self.iter().find(|step| step.batch == batch).map(|step| &step.metrics)
    }

    /// The steps up to that of a batch.
    #[must_use]
    pub fn up_to(&self, batch: BatchId) -> Self {
        self.iter().filter(|step| step.batch <= batch).cloned().collect()
    }
}

impl FromIterator<MeasuredStep> for RecentSteps {
    fn from_iter<I: IntoIterator<Item = MeasuredStep>>(steps: I) -> Self {
        let mut recent = Self::default();
        steps.into_iter().for_each(|step| recent.push(step));
        recent
    }
}

impl From<Vec<MeasuredStep>> for RecentSteps {
    fn from(steps: Vec<MeasuredStep>) -> Self {
        steps.into_iter().collect()
    }
}

impl IntoIterator for RecentSteps {
    type Item = MeasuredStep;
    type IntoIter = std::collections::vec_deque::IntoIter<MeasuredStep>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// What the learner is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnerPhase {
    /// Waits for a batch.
    Waiting,
    /// Runs a step.
    Training,
    /// Writes a checkpoint.
    Checkpointing,
}

/// Learner to coordinator, after the hello.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnerReport {
    /// A batch is part of the weights; the new version is ready to be published and pulled.
    Trained {
        /// The batch.
        batch: BatchId,
        /// The new weights.
        manifest: Manifest,
        /// What the step measured.
        metrics: Box<StepMetrics>,
    },
    /// A checkpoint that contains this batch is complete on disk: its samples may be forgotten.
    Checkpointed(BatchId),
    /// A broadcast ended well for the learner.
    Published {
        /// The group that it went over.
        group: BroadcastGroupId,
        /// The version sent.
        version: PolicyVersion,
        /// Seconds from the first byte to the last; finite.
        seconds: f64,
    },
    /// A broadcast failed; the group is dead.
    PublishFailed {
        /// The group that it went over.
        group: BroadcastGroupId,
        /// The version that did not arrive everywhere.
        version: PolicyVersion,
        /// Why, for a person.
        detail: String,
    },
    /// Its end of a broadcast group is connected.
    BroadcastGroupReady(BroadcastGroupId),
    /// Its end of a broadcast group could not be connected.
    BroadcastGroupFailed {
        /// The group.
        group: BroadcastGroupId,
        /// Why, for a person.
        detail: String,
    },
    /// A sign of life, with what it is doing.
    Alive(LearnerPhase),
}

/// Coordinator to learner.
#[derive(Debug, Clone, PartialEq)]
pub enum LearnerCommand {
    /// First on the stream.
    Welcome {
        /// The run.
        run: RunId,
        /// The number of the last batch, for the learning-rate schedule.
        last_batch: BatchId,
        /// How the actors draw tokens: log-probs are compared at this temperature.
        sampling: Sampling,
        /// Grows with each learner process that the run has had: what an older one wrote is of the past.
        term: LearnerTerm,
        /// When the run was begun, by the coordinator's clock; 0 where nobody knows. A run that begins anew
        /// counts its terms anew.
        run_began: Timestamp,
    },
    /// Train this next. Batches come in order without gaps.
    Batch(Batch),
    /// Connect to a new broadcast group in the background.
    JoinBroadcastGroup(BroadcastGroup),
    /// Broadcast this version over this group now.
    Publish {
        /// The group.
        group: BroadcastGroupId,
        /// The version.
        version: PolicyVersion,
    },
    /// A broadcast group has ended: leave it, whatever is under way in it.
    LeaveBroadcastGroup(BroadcastGroupId),
    /// Write a checkpoint after the current step.
    Checkpoint,
    /// Keep the checkpoint that holds the batches up to this one, whatever comes after: none was better.
    KeepBest(BatchId),
    /// The run is over: leave now.
    Finish,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(batch: u64) -> MeasuredStep {
        MeasuredStep {
            batch: BatchId(batch),
            metrics: StepMetrics { tokens: batch, ..StepMetrics::default() },
        }
    }

    #[test]
    fn only_the_last_steps_are_remembered() {
        let steps: RecentSteps = (1..=100).map(step).collect();
        let batches: Vec<u64> = steps.iter().map(|step| step.batch.0).collect();
        assert_eq!(batches, (37..=100).collect::<Vec<_>>());
        assert_eq!(steps.of(BatchId(50)).map(|metrics| metrics.tokens), Some(50));
        assert_eq!(steps.of(BatchId(36)), None);
        assert_eq!(steps.up_to(BatchId(40)).iter().count(), 4);
    }

    #[test]
    fn a_measurement_that_is_no_number_is_named() {
        let sound = StepMetrics::default();
        assert_eq!(sound.not_finite(), None);
        let broken = [
            (StepMetrics { policy_loss: Some(f64::NAN), ..sound.clone() }, "policy_loss"),
            (StepMetrics { value_loss: Some(f64::NAN), ..sound.clone() }, "value_loss"),
            (StepMetrics { kl_coefficient: f64::INFINITY, ..sound.clone() }, "kl_coefficient"),
            (StepMetrics { step_seconds: f64::NEG_INFINITY, ..sound }, "step_seconds"),
        ];
        for (metrics, name) in broken {
            assert_eq!(metrics.not_finite().as_deref(), Some(name));
        }
    }
}
