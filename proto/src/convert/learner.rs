//! The learner's stream. Batches travel in parts; `batch.rs` cuts and joins them.

use types::link::learner::{
    LearnerCommand, LearnerHello, LearnerPhase, LearnerReport, MeasuredStep, StepMetrics,
};
use types::{BatchId, BroadcastGroupId, Incarnation, MemberId, PolicyVersion, Vocabulary};

use super::data::plain_text;
use super::{address, check_version, finite, gpu, known_run};
use crate::error::required;
use crate::{ProtocolError, pb};

/// Both structs have the same fields; the exhaustive patterns make a forgotten one a compile error.
macro_rules! same_fields {
    ($($field:ident,)+) => {
        impl From<StepMetrics> for pb::StepMetrics {
            fn from(StepMetrics { $($field,)+ }: StepMetrics) -> Self {
                Self { $($field,)+ }
            }
        }

        impl TryFrom<pb::StepMetrics> for StepMetrics {
            type Error = ProtocolError;

            fn try_from(pb::StepMetrics { $($field,)+ }: pb::StepMetrics) -> Result<Self, ProtocolError> {
                let metrics = Self { $($field,)+ };
                match metrics.not_finite() {
                    None => Ok(metrics),
                    Some(name) => Err(ProtocolError::field("step_metrics", format!("{name} is no finite number"))),
                }
            }
        }
    };
}

same_fields! {
    policy_loss,
    value_loss,
    entropy,
    approx_kl,
    rollout_approx_kl,
    rollout_logprob_diff,
    clip_fraction,
    explained_variance,
    score_mean,
    kl_to_ref,
    policy_grad_norm,
    critic_grad_norm,
    policy_lr,
    kl_coefficient,
    positive_weight,
    staleness,
    samples,
    response_tokens,
    tokens,
    prepare_seconds,
    update_seconds,
    step_seconds,
    publish_seconds,
    skipped_steps,
    truncated,
    scores_clipped,
    masked_tokens,
}

impl From<MeasuredStep> for pb::MeasuredStep {
    fn from(step: MeasuredStep) -> Self {
        Self { batch: step.batch.0, metrics: Some(step.metrics.into()) }
    }
}

impl TryFrom<pb::MeasuredStep> for MeasuredStep {
    type Error = ProtocolError;

    fn try_from(step: pb::MeasuredStep) -> Result<Self, ProtocolError> {
        let metrics = required("measured_step.metrics", step.metrics)?.try_into()?;
        Ok(Self { batch: BatchId(step.batch), metrics })
    }
}

impl From<LearnerHello> for pb::LearnerReport {
    fn from(hello: LearnerHello) -> Self {
        let hello = pb::LearnerHello {
            member: hello.member.into(),
            incarnation: hello.incarnation.0,
            run: hello.run.map(String::from).unwrap_or_default(),
            world_size: hello.world_size,
            trained: hello.trained.0,
            checkpointed: hello.checkpointed.0,
            manifest: Some(hello.manifest.into()),
            store: hello.store,
            weights: hello.weights,
            steps: hello.steps.into_iter().map(Into::into).collect(),
            protocol: crate::PROTOCOL_VERSION,
            vocabulary: hello.vocabulary.map(Into::into),
            gpu: hello.gpu.unwrap_or_default(),
        };
        Self { report: Some(pb::learner_report::Report::Hello(hello)) }
    }
}

impl TryFrom<pb::LearnerReport> for LearnerHello {
    type Error = ProtocolError;

    fn try_from(report: pb::LearnerReport) -> Result<Self, ProtocolError> {
        let pb::learner_report::Report::Hello(hello) = required("learner report", report.report)? else {
            return Err(ProtocolError::HelloOutOfPlace);
        };
        check_version(hello.protocol)?;
        if hello.checkpointed > hello.trained {
            return Err(ProtocolError::field("learner_hello.checkpointed", "is ahead of what was trained"));
        }
        Ok(Self {
            member: MemberId::try_from(hello.member)?,
            incarnation: Incarnation(hello.incarnation),
            run: known_run(hello.run)?,
            world_size: hello.world_size,
            trained: BatchId(hello.trained),
            checkpointed: BatchId(hello.checkpointed),
            manifest: required("learner_hello.manifest", hello.manifest)?.try_into()?,
            store: address("learner_hello.store", hello.store)?,
            weights: address("learner_hello.weights", hello.weights)?,
            steps: hello.steps.into_iter().map(MeasuredStep::try_from).collect::<Result<_, _>>()?,
            vocabulary: hello.vocabulary.map(Vocabulary::try_from).transpose()?,
            gpu: gpu(&hello.gpu),
        })
    }
}

impl From<LearnerPhase> for pb::LearnerPhase {
    fn from(phase: LearnerPhase) -> Self {
        match phase {
            LearnerPhase::Waiting => Self::Waiting,
            LearnerPhase::Training => Self::Training,
            LearnerPhase::Checkpointing => Self::Checkpointing,
        }
    }
}

impl TryFrom<pb::LearnerPhase> for LearnerPhase {
    type Error = ProtocolError;

    fn try_from(phase: pb::LearnerPhase) -> Result<Self, ProtocolError> {
        Ok(match phase {
            pb::LearnerPhase::Waiting => Self::Waiting,
            pb::LearnerPhase::Training => Self::Training,
            pb::LearnerPhase::Checkpointing => Self::Checkpointing,
            pb::LearnerPhase::Unspecified => return Err(ProtocolError::Missing("alive.phase")),
        })
    }
}

impl From<LearnerReport> for pb::LearnerReport {
    fn from(report: LearnerReport) -> Self {
        use pb::learner_report::Report;
        let report = match report {
            LearnerReport::Trained { batch, manifest, metrics } => Report::Trained(pb::Trained {
                batch: batch.0,
                manifest: Some(manifest.into()),
                metrics: Some((*metrics).into()),
            }),
            LearnerReport::Checkpointed(batch) => Report::Checkpointed(pb::Checkpointed { batch: batch.0 }),
            LearnerReport::Published { group, version, seconds } => {
                Report::Published(pb::Published { group: group.0, version: version.0, seconds })
            }
            LearnerReport::PublishFailed { group, version, detail } => {
                Report::PublishFailed(pb::PublishFailed { group: group.0, version: version.0, detail })
            }
            LearnerReport::BroadcastGroupReady(id) => {
                Report::BroadcastGroupReady(pb::BroadcastGroupReady { group: id.0 })
            }
            LearnerReport::BroadcastGroupFailed { group, detail } => {
                Report::BroadcastGroupFailed(pb::BroadcastGroupFailed { group: group.0, detail })
            }
            LearnerReport::Alive(phase) => {
                Report::Alive(pb::Alive { phase: pb::LearnerPhase::from(phase).into() })
            }
        };
        Self { report: Some(report) }
    }
}

impl TryFrom<pb::LearnerReport> for LearnerReport {
    type Error = ProtocolError;

    fn try_from(report: pb::LearnerReport) -> Result<Self, ProtocolError> {
        use pb::learner_report::Report;
        Ok(match required("learner report", report.report)? {
            Report::Hello(_) => return Err(ProtocolError::HelloOutOfPlace),
            Report::Trained(trained) => Self::Trained {
                batch: BatchId(trained.batch),
                manifest: required("trained.manifest", trained.manifest)?.try_into()?,
                metrics: Box::new(required("trained.metrics", trained.metrics)?.try_into()?),
            },
            Report::Checkpointed(done) => Self::Checkpointed(BatchId(done.batch)),
            Report::Published(published) => Self::Published {
                group: BroadcastGroupId(published.group),
                version: PolicyVersion(published.version),
                seconds: finite("published.seconds", published.seconds)?,
            },
            Report::PublishFailed(failed) => Self::PublishFailed {
                group: BroadcastGroupId(failed.group),
                version: PolicyVersion(failed.version),
                detail: plain_text(&failed.detail),
            },
            Report::BroadcastGroupReady(ready) => Self::BroadcastGroupReady(BroadcastGroupId(ready.group)),
            Report::BroadcastGroupFailed(failed) => Self::BroadcastGroupFailed {
                group: BroadcastGroupId(failed.group),
                detail: plain_text(&failed.detail),
            },
            Report::Alive(alive) => Self::Alive(alive.phase().try_into()?),
        })
    }
}

/// Every command but a batch is one message.
pub(crate) fn single_command(command: LearnerCommand) -> Result<pb::LearnerCommand, types::Batch> {
    use pb::learner_command::Command;
    let command = match command {
        LearnerCommand::Batch(batch) => return Err(batch),
        LearnerCommand::Welcome { run, last_batch, sampling, term, run_began } => {
            Command::Welcome(pb::LearnerWelcome {
                run: run.into(),
                last_batch: last_batch.0,
                sampling: Some(sampling.into()),
                term: term.0,
                run_began_ms: run_began.0,
            })
        }
        LearnerCommand::JoinBroadcastGroup(group) => Command::JoinBroadcastGroup(group.into()),
        LearnerCommand::Publish { group, version } => {
            Command::Publish(pb::Publish { group: group.0, version: version.0 })
        }
        LearnerCommand::LeaveBroadcastGroup(group) => Command::LeaveBroadcastGroup(group.0),
        LearnerCommand::Checkpoint => Command::Checkpoint(pb::Empty {}),
        LearnerCommand::KeepBest(batch) => Command::KeepBest(batch.0),
        LearnerCommand::Finish => Command::Finish(pb::Empty {}),
    };
    Ok(pb::LearnerCommand { command: Some(command) })
}
