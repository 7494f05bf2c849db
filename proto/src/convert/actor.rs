//! The actor's stream.

use std::time::Duration;

use types::link::actor::{
    ActorCommand, ActorHello, ActorLoad, ActorReport, ActorWelcome, BroadcastGroup, GroupBackend, Lease,
    LeasedPrompt, RewardServerAddress,
};
use types::{
    BroadcastGroupId, Incarnation, LeaseId, MemberId, PolicyVersion, RolloutId, RunId, Vocabulary, WeightHash,
};

use super::data::{hash, plain_text};
use super::{address, check_version, gpu, known_run, millis};
use crate::error::required;
use crate::{ProtocolError, pb};

fn rollout_ids(ids: Vec<pb::RolloutId>) -> Result<Vec<RolloutId>, ProtocolError> {
    ids.into_iter().map(RolloutId::try_from).collect()
}

fn confirmed(version: PolicyVersion, hash: WeightHash) -> pb::WeightsConfirmed {
    pb::WeightsConfirmed { version: version.0, hash: hash.0.to_vec() }
}

fn weights(confirmed: pb::WeightsConfirmed) -> Result<(PolicyVersion, WeightHash), ProtocolError> {
    Ok((PolicyVersion(confirmed.version), hash("weights_confirmed.hash", &confirmed.hash)?))
}

impl From<ActorHello> for pb::ActorReport {
    fn from(hello: ActorHello) -> Self {
        let hello = pb::ActorHello {
            member: hello.member.into(),
            incarnation: hello.incarnation.0,
            run: hello.run.map(String::from).unwrap_or_default(),
            holding: hello.holding.into_iter().map(Into::into).collect(),
            weights: hello.weights.map(|(version, hash)| confirmed(version, hash)),
            protocol: crate::PROTOCOL_VERSION,
            source: hello.source.unwrap_or_default(),
            vocabulary: hello.vocabulary.map(Into::into),
            gpu: hello.gpu.unwrap_or_default(),
        };
        Self { report: Some(pb::actor_report::Report::Hello(hello)) }
    }
}

impl TryFrom<pb::ActorReport> for ActorHello {
    type Error = ProtocolError;

    fn try_from(report: pb::ActorReport) -> Result<Self, ProtocolError> {
        let pb::actor_report::Report::Hello(hello) = required("actor report", report.report)? else {
            return Err(ProtocolError::HelloOutOfPlace);
        };
        check_version(hello.protocol)?;
        Ok(Self {
            member: MemberId::try_from(hello.member)?,
            incarnation: Incarnation(hello.incarnation),
            run: known_run(hello.run)?,
            holding: rollout_ids(hello.holding)?,
            weights: hello.weights.map(weights).transpose()?,
            source: match hello.source.is_empty() {
                true => None,
                false => Some(address("actor_hello.source", hello.source)?),
            },
            vocabulary: hello.vocabulary.map(Vocabulary::try_from).transpose()?,
            gpu: gpu(&hello.gpu),
        })
    }
}

impl From<ActorLoad> for pb::ActorLoad {
    fn from(load: ActorLoad) -> Self {
        Self {
            free_slots: load.free_slots,
            last_lease: load.last_lease.0,
            running: load.running,
            unacknowledged: load.unacknowledged,
            generated_tokens: load.generated_tokens,
            pulled_bytes: load.pulled_bytes,
        }
    }
}

impl From<pb::ActorLoad> for ActorLoad {
    fn from(load: pb::ActorLoad) -> Self {
        Self {
            free_slots: load.free_slots,
            last_lease: LeaseId(load.last_lease),
            running: load.running,
            unacknowledged: load.unacknowledged,
            generated_tokens: load.generated_tokens,
            pulled_bytes: load.pulled_bytes,
        }
    }
}

impl From<ActorReport> for pb::ActorReport {
    fn from(report: ActorReport) -> Self {
        use pb::actor_report::Report;
        let report = match report {
            ActorReport::Load(load) => Report::Load(load.into()),
            ActorReport::WeightsConfirmed { version, hash } => {
                Report::WeightsConfirmed(confirmed(version, hash))
            }
            ActorReport::WeightsFailed { version, detail } => {
                Report::WeightsFailed(pb::WeightsFailed { version: version.0, detail })
            }
            ActorReport::BroadcastGroupReady(group) => {
                Report::BroadcastGroupReady(pb::BroadcastGroupReady { group: group.0 })
            }
            ActorReport::BroadcastGroupFailed { group, detail } => {
                Report::BroadcastGroupFailed(pb::BroadcastGroupFailed { group: group.0, detail })
            }
            ActorReport::Failed(failure) => Report::Failed(failure.into()),
            ActorReport::Draining => Report::Draining(pb::Empty {}),
        };
        Self { report: Some(report) }
    }
}

impl TryFrom<pb::ActorReport> for ActorReport {
    type Error = ProtocolError;

    fn try_from(report: pb::ActorReport) -> Result<Self, ProtocolError> {
        use pb::actor_report::Report;
        Ok(match required("actor report", report.report)? {
            Report::Hello(_) => return Err(ProtocolError::HelloOutOfPlace),
            Report::Load(load) => Self::Load(load.into()),
            Report::WeightsConfirmed(confirmed) => {
                let (version, hash) = weights(confirmed)?;
                Self::WeightsConfirmed { version, hash }
            }
            Report::WeightsFailed(failed) => Self::WeightsFailed {
                version: PolicyVersion(failed.version),
                detail: plain_text(&failed.detail),
            },
            Report::BroadcastGroupReady(ready) => Self::BroadcastGroupReady(BroadcastGroupId(ready.group)),
            Report::BroadcastGroupFailed(failed) => Self::BroadcastGroupFailed {
                group: BroadcastGroupId(failed.group),
                detail: plain_text(&failed.detail),
            },
            Report::Failed(failure) => Self::Failed(failure.try_into()?),
            Report::Draining(_) => Self::Draining,
        })
    }
}

impl From<BroadcastGroup> for pb::BroadcastGroup {
    fn from(group: BroadcastGroup) -> Self {
        Self {
            id: group.id.0,
            store: group.store,
            members: group.members.into_iter().map(String::from).collect(),
            nccl: group.backend == GroupBackend::Nccl,
        }
    }
}

impl TryFrom<pb::BroadcastGroup> for BroadcastGroup {
    type Error = ProtocolError;

    fn try_from(group: pb::BroadcastGroup) -> Result<Self, ProtocolError> {
        Ok(Self {
            id: BroadcastGroupId(group.id),
            store: address("broadcast_group.store", group.store)?,
            members: group.members.into_iter().map(MemberId::try_from).collect::<Result<_, _>>()?,
            backend: if group.nccl { GroupBackend::Nccl } else { GroupBackend::Gloo },
        })
    }
}

impl From<LeasedPrompt> for pb::LeasedPrompt {
    fn from(leased: LeasedPrompt) -> Self {
        Self {
            prompt: Some(leased.prompt.into()),
            group_size: leased.group_size.into(),
            wanted: leased.wanted.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::LeasedPrompt> for LeasedPrompt {
    type Error = ProtocolError;

    fn try_from(leased: pb::LeasedPrompt) -> Result<Self, ProtocolError> {
        let prompt = types::Prompt::try_from(required("leased.prompt", leased.prompt)?)?;
        let wanted = rollout_ids(leased.wanted)?;
        let group_size = u16::try_from(leased.group_size)
            .map_err(|_| ProtocolError::field("leased.group_size", "is out of range"))?;
        if wanted.iter().any(|id| id.prompt != prompt.id() || id.sibling >= group_size) {
            return Err(ProtocolError::field(
                "leased.wanted",
                format!("names no sibling of {}", prompt.id()),
            ));
        }
        Ok(Self { prompt, group_size, wanted })
    }
}

impl From<Lease> for pb::Lease {
    fn from(lease: Lease) -> Self {
        Self {
            id: lease.id.0,
            prompts: lease.prompts.into_iter().map(Into::into).collect(),
            timeout_ms: millis(lease.timeout),
            sampling: lease.sampling.map(Into::into),
        }
    }
}

impl TryFrom<pb::Lease> for Lease {
    type Error = ProtocolError;

    fn try_from(lease: pb::Lease) -> Result<Self, ProtocolError> {
        Ok(Self {
            id: LeaseId(lease.id),
            prompts: lease.prompts.into_iter().map(LeasedPrompt::try_from).collect::<Result<_, _>>()?,
            timeout: Duration::from_millis(lease.timeout_ms),
            sampling: lease.sampling.map(types::Sampling::try_from).transpose()?,
        })
    }
}

impl From<ActorWelcome> for pb::ActorWelcome {
    fn from(welcome: ActorWelcome) -> Self {
        Self {
            run: welcome.run.into(),
            seed: welcome.seed,
            sampling: Some(welcome.sampling.into()),
            deterministic: welcome.deterministic,
            heartbeat_timeout_ms: millis(welcome.heartbeat_timeout),
            episodes: welcome.episodes,
        }
    }
}

impl TryFrom<pb::ActorWelcome> for ActorWelcome {
    type Error = ProtocolError;

    fn try_from(welcome: pb::ActorWelcome) -> Result<Self, ProtocolError> {
        Ok(Self {
            run: RunId::try_from(welcome.run)?,
            seed: welcome.seed,
            sampling: required("welcome.sampling", welcome.sampling)?.try_into()?,
            deterministic: welcome.deterministic,
            heartbeat_timeout: Duration::from_millis(welcome.heartbeat_timeout_ms),
            episodes: welcome.episodes,
        })
    }
}

impl From<RewardServerAddress> for pb::RewardServerAddress {
    fn from(server: RewardServerAddress) -> Self {
        Self { member: server.member.into(), address: server.address }
    }
}

impl TryFrom<pb::RewardServerAddress> for RewardServerAddress {
    type Error = ProtocolError;

    fn try_from(server: pb::RewardServerAddress) -> Result<Self, ProtocolError> {
        Ok(Self {
            member: MemberId::try_from(server.member)?,
            address: address("reward_server.address", server.address)?,
        })
    }
}

impl From<ActorCommand> for pb::ActorCommand {
    fn from(command: ActorCommand) -> Self {
        use pb::actor_command::Command;
        let command = match command {
            ActorCommand::Welcome(welcome) => Command::Welcome(welcome.into()),
            ActorCommand::RewardServers(servers) => Command::RewardServers(pb::RewardServers {
                servers: servers.into_iter().map(Into::into).collect(),
            }),
            ActorCommand::PullWeights { source, version, hash } => {
                Command::PullWeights(pb::PullWeights { source, version: version.0, hash: hash.0.to_vec() })
            }
            ActorCommand::JoinBroadcastGroup(group) => Command::JoinBroadcastGroup(group.into()),
            ActorCommand::ReceiveWeights { group, manifest } => Command::ReceiveWeights(pb::ReceiveWeights {
                group: group.0,
                manifest: Some(manifest.into()),
            }),
            ActorCommand::LeaveBroadcastGroup(group) => Command::LeaveBroadcastGroup(group.0),
            ActorCommand::Lease(lease) => Command::Lease(lease.into()),
            ActorCommand::Drain => Command::Drain(pb::Empty {}),
            ActorCommand::Finish => Command::Finish(pb::Empty {}),
        };
        Self { command: Some(command) }
    }
}

impl TryFrom<pb::ActorCommand> for ActorCommand {
    type Error = ProtocolError;

    fn try_from(command: pb::ActorCommand) -> Result<Self, ProtocolError> {
        use pb::actor_command::Command;
        Ok(match required("actor command", command.command)? {
            Command::Welcome(welcome) => Self::Welcome(welcome.try_into()?),
            Command::RewardServers(list) => Self::RewardServers(
                list.servers.into_iter().map(RewardServerAddress::try_from).collect::<Result<_, _>>()?,
            ),
            Command::PullWeights(pull) => Self::PullWeights {
                source: address("pull_weights.source", pull.source)?,
                version: PolicyVersion(pull.version),
                hash: hash("pull_weights.hash", &pull.hash)?,
            },
            Command::JoinBroadcastGroup(group) => Self::JoinBroadcastGroup(group.try_into()?),
            Command::ReceiveWeights(receive) => Self::ReceiveWeights {
                group: BroadcastGroupId(receive.group),
                manifest: required("receive_weights.manifest", receive.manifest)?.try_into()?,
            },
            Command::LeaveBroadcastGroup(group) => Self::LeaveBroadcastGroup(BroadcastGroupId(group)),
            Command::Lease(lease) => Self::Lease(lease.try_into()?),
            Command::Drain(_) => Self::Drain,
            Command::Finish(_) => Self::Finish,
        })
    }
}
