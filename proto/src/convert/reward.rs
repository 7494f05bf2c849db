//! The reward server's two streams.

use std::time::Duration;

use types::link::reward::{RewardCommand, RewardHello, RewardReport, ScoreReply, ScoreRequest};
use types::{Incarnation, MemberId, RunId, Vocabulary};

use super::data::plain_text;
use super::{address, check_version, known_run, millis};
use crate::error::required;
use crate::{ProtocolError, pb};

impl From<ScoreRequest> for pb::ScoreRequest {
    fn from(request: ScoreRequest) -> Self {
        use pb::score_request::Request;
        let request = match request {
            ScoreRequest::Hello { run, member } => {
                Request::Hello(pb::ScoreHello { run: run.into(), member: member.into() })
            }
            ScoreRequest::Rollout { rollout, time_left } => Request::Rollout(pb::RolloutToScore {
                rollout: Some(rollout.into()),
                time_left_ms: millis(time_left),
            }),
        };
        Self { request: Some(request) }
    }
}

impl TryFrom<pb::ScoreRequest> for ScoreRequest {
    type Error = ProtocolError;

    fn try_from(request: pb::ScoreRequest) -> Result<Self, ProtocolError> {
        use pb::score_request::Request;
        Ok(match required("score request", request.request)? {
            Request::Hello(hello) => {
                Self::Hello { run: RunId::try_from(hello.run)?, member: MemberId::try_from(hello.member)? }
            }
            Request::Rollout(offered) => Self::Rollout {
                rollout: required("rollout_to_score.rollout", offered.rollout)?.try_into()?,
                time_left: Duration::from_millis(offered.time_left_ms),
            },
        })
    }
}

impl From<ScoreReply> for pb::ScoreReply {
    fn from(reply: ScoreReply) -> Self {
        use pb::score_reply::Reply;
        let reply = match reply {
            ScoreReply::Recorded(id) => Reply::Recorded(id.into()),
            ScoreReply::Overloaded { id, retry_after } => {
                Reply::Overloaded(pb::Overloaded { id: Some(id.into()), retry_after_ms: millis(retry_after) })
            }
        };
        Self { reply: Some(reply) }
    }
}

impl TryFrom<pb::ScoreReply> for ScoreReply {
    type Error = ProtocolError;

    fn try_from(reply: pb::ScoreReply) -> Result<Self, ProtocolError> {
        use pb::score_reply::Reply;
        Ok(match required("score reply", reply.reply)? {
            Reply::Recorded(id) => Self::Recorded(id.try_into()?),
            Reply::Overloaded(overloaded) => Self::Overloaded {
                id: required("overloaded.id", overloaded.id)?.try_into()?,
                retry_after: Duration::from_millis(overloaded.retry_after_ms),
            },
        })
    }
}

impl From<RewardHello> for pb::RewardReport {
    fn from(hello: RewardHello) -> Self {
        let hello = pb::RewardHello {
            member: hello.member.into(),
            incarnation: hello.incarnation.0,
            run: hello.run.map(String::from).unwrap_or_default(),
            address: hello.address,
            protocol: crate::PROTOCOL_VERSION,
            vocabulary: hello.vocabulary.map(Into::into),
        };
        Self { report: Some(pb::reward_report::Report::Hello(hello)) }
    }
}

impl TryFrom<pb::RewardReport> for RewardHello {
    type Error = ProtocolError;

    fn try_from(report: pb::RewardReport) -> Result<Self, ProtocolError> {
        let pb::reward_report::Report::Hello(hello) = required("reward report", report.report)? else {
            return Err(ProtocolError::HelloOutOfPlace);
        };
        check_version(hello.protocol)?;
        Ok(Self {
            member: MemberId::try_from(hello.member)?,
            incarnation: Incarnation(hello.incarnation),
            run: known_run(hello.run)?,
            address: address("reward_hello.address", hello.address)?,
            vocabulary: hello.vocabulary.map(Vocabulary::try_from).transpose()?,
        })
    }
}

impl From<RewardReport> for pb::RewardReport {
    fn from(report: RewardReport) -> Self {
        use pb::reward_report::Report;
        let report = match report {
            RewardReport::Scored(scored) => Report::Scored(scored.into()),
            RewardReport::Failed(failure) => Report::Failed(failure.into()),
            RewardReport::Load { queued } => Report::Load(pb::RewardLoad { queued }),
        };
        Self { report: Some(report) }
    }
}

impl TryFrom<pb::RewardReport> for RewardReport {
    type Error = ProtocolError;

    fn try_from(report: pb::RewardReport) -> Result<Self, ProtocolError> {
        use pb::reward_report::Report;
        Ok(match required("reward report", report.report)? {
            Report::Hello(_) => return Err(ProtocolError::HelloOutOfPlace),
            Report::Scored(scored) => Self::Scored(scored.try_into()?),
            Report::Failed(failure) => Self::Failed(failure.try_into()?),
            Report::Load(load) => Self::Load { queued: load.queued },
        })
    }
}

impl From<RewardCommand> for pb::RewardCommand {
    fn from(command: RewardCommand) -> Self {
        use pb::reward_command::Command;
        let command = match command {
            RewardCommand::Welcome { run, sampling } => {
                Command::Welcome(pb::RewardWelcome { run: run.into(), sampling: sampling.map(Into::into) })
            }
            RewardCommand::Recorded(ids) => {
                Command::Recorded(pb::RecordedRollouts { ids: ids.into_iter().map(Into::into).collect() })
            }
            RewardCommand::Rejected { id, reason } => {
                Command::Rejected(pb::Rejected { id: Some(id.into()), reason })
            }
            RewardCommand::Finish => Command::Finish(pb::Empty {}),
        };
        Self { command: Some(command) }
    }
}

impl TryFrom<pb::RewardCommand> for RewardCommand {
    type Error = ProtocolError;

    fn try_from(command: pb::RewardCommand) -> Result<Self, ProtocolError> {
        use pb::reward_command::Command;
        Ok(match required("reward command", command.command)? {
            Command::Welcome(welcome) => Self::Welcome {
                run: RunId::try_from(welcome.run)?,
                sampling: welcome.sampling.map(TryInto::try_into).transpose()?,
            },
            Command::Recorded(recorded) => {
                let ids = recorded.ids.into_iter().map(TryInto::try_into);
                Self::Recorded(ids.collect::<Result<_, _>>()?)
            }
            Command::Rejected(rejected) => Self::Rejected {
                id: required("rejected.id", rejected.id)?.try_into()?,
                reason: plain_text(&rejected.reason),
            },
            Command::Finish(_) => Self::Finish,
        })
    }
}
