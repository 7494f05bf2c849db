//! The stream of an episode's turns.

use std::time::Duration;

use types::link::environment::{
    EnvironmentMessage, EnvironmentReply, EnvironmentRequest, MAX_ENVIRONMENT_BYTES, OnRewrite, Speaker,
};
use types::{EpisodeEnd, MemberId, RolloutId, RunId};

use super::data::{fail_reason_from_pb, fail_reason_to_pb, plain_text};
use super::millis;
use crate::error::required;
use crate::{ProtocolError, pb};

/// Most messages of one observation.
const MAX_MESSAGES: usize = 256;

/// The id of a message about an episode.
fn episode(id: Option<pb::RolloutId>) -> Result<RolloutId, ProtocolError> {
    required("episode.id", id)?.try_into()
}

/// A text that is not longer than it may be.
fn bounded(field: &'static str, text: String, most: usize) -> Result<String, ProtocolError> {
    let bytes = text.len();
    if bytes <= most {
        return Ok(text);
    }
    Err(ProtocolError::field(field, format!("has {bytes} bytes, at most {most} travel")))
}

impl From<EnvironmentRequest> for pb::EnvironmentRequest {
    fn from(request: EnvironmentRequest) -> Self {
        use pb::environment_request::Request;
        let request = match request {
            EnvironmentRequest::Hello { run, member } => {
                Request::Hello(pb::ScoreHello { run: run.into(), member: member.into() })
            }
            EnvironmentRequest::Reset { id, time_left } => {
                let time_left_ms = millis(time_left);
                Request::Reset(pb::EnvironmentReset { id: Some(id.into()), time_left_ms })
            }
            EnvironmentRequest::Step { id, text, tokens, truncated } => {
                Request::Step(pb::EnvironmentStep { id: Some(id.into()), text, tokens, truncated })
            }
            EnvironmentRequest::Close(id) => Request::Close(id.into()),
        };
        Self { request: Some(request) }
    }
}

impl TryFrom<pb::EnvironmentRequest> for EnvironmentRequest {
    type Error = ProtocolError;

    fn try_from(request: pb::EnvironmentRequest) -> Result<Self, ProtocolError> {
        use pb::environment_request::Request;
        Ok(match required("environment request", request.request)? {
            Request::Hello(hello) => {
                Self::Hello { run: RunId::try_from(hello.run)?, member: MemberId::try_from(hello.member)? }
            }
            Request::Reset(reset) => {
                Self::Reset { id: episode(reset.id)?, time_left: Duration::from_millis(reset.time_left_ms) }
            }
            Request::Step(step) => Self::Step {
                id: episode(step.id)?,
                text: step.text,
                tokens: step.tokens,
                truncated: step.truncated,
            },
            Request::Close(id) => Self::Close(id.try_into()?),
        })
    }
}

impl From<EnvironmentMessage> for pb::EnvironmentMessage {
    fn from(EnvironmentMessage { speaker, text }: EnvironmentMessage) -> Self {
        let speaker = match speaker {
            Speaker::Tool => pb::Speaker::Tool,
            Speaker::User => pb::Speaker::User,
        };
        Self { speaker: speaker.into(), text }
    }
}

impl TryFrom<pb::EnvironmentMessage> for EnvironmentMessage {
    type Error = ProtocolError;

    fn try_from(message: pb::EnvironmentMessage) -> Result<Self, ProtocolError> {
        let speaker = match message.speaker() {
            pb::Speaker::Tool => Speaker::Tool,
            pb::Speaker::User => Speaker::User,
            pb::Speaker::Unspecified => {
                return Err(ProtocolError::Missing("environment_message.speaker"));
            }
        };
        Ok(Self { speaker, text: message.text })
    }
}

fn messages(messages: Vec<pb::EnvironmentMessage>) -> Result<Vec<EnvironmentMessage>, ProtocolError> {
    let bytes: usize = messages.iter().map(|message| message.text.len()).sum();
    if messages.len() > MAX_MESSAGES || bytes > MAX_ENVIRONMENT_BYTES {
        let problem = format!(
            "{} messages of {bytes} bytes, at most {MAX_MESSAGES} of {MAX_ENVIRONMENT_BYTES} travel",
            messages.len()
        );
        return Err(ProtocolError::field("environment_observation.messages", problem));
    }
    messages.into_iter().map(EnvironmentMessage::try_from).collect()
}

fn episode_end_to_pb(end: EpisodeEnd) -> pb::EpisodeEnd {
    match end {
        EpisodeEnd::Finished => pb::EpisodeEnd::Finished,
        EpisodeEnd::Length => pb::EpisodeEnd::Length,
        EpisodeEnd::Turns => pb::EpisodeEnd::Turns,
        EpisodeEnd::Tokens => pb::EpisodeEnd::Tokens,
        EpisodeEnd::WallTime => pb::EpisodeEnd::WallTime,
        EpisodeEnd::ToolTime => pb::EpisodeEnd::ToolTime,
        EpisodeEnd::Context => pb::EpisodeEnd::Context,
        EpisodeEnd::Template => pb::EpisodeEnd::Template,
    }
}

fn episode_end_from_pb(end: pb::EpisodeEnd) -> Result<EpisodeEnd, ProtocolError> {
    Ok(match end {
        pb::EpisodeEnd::Unspecified => return Err(ProtocolError::Missing("environment_done.end")),
        pb::EpisodeEnd::Finished => EpisodeEnd::Finished,
        pb::EpisodeEnd::Length => EpisodeEnd::Length,
        pb::EpisodeEnd::Turns => EpisodeEnd::Turns,
        pb::EpisodeEnd::Tokens => EpisodeEnd::Tokens,
        pb::EpisodeEnd::WallTime => EpisodeEnd::WallTime,
        pb::EpisodeEnd::ToolTime => EpisodeEnd::ToolTime,
        pb::EpisodeEnd::Context => EpisodeEnd::Context,
        pb::EpisodeEnd::Template => EpisodeEnd::Template,
    })
}

impl From<EnvironmentReply> for pb::EnvironmentReply {
    fn from(reply: EnvironmentReply) -> Self {
        use pb::environment_reply::Reply;
        let id = Some(reply.id().into());
        let reply = match reply {
            EnvironmentReply::Ready { messages, tools, max_tokens, on_rewrite, .. } => {
                let messages = messages.into_iter().map(Into::into).collect();
                let ends_on_rewrite = on_rewrite == OnRewrite::End;
                Reply::Ready(pb::EnvironmentReady { id, messages, tools, max_tokens, ends_on_rewrite })
            }
            EnvironmentReply::Observed { messages, reward, .. } => {
                let messages = messages.into_iter().map(Into::into).collect();
                Reply::Observed(pb::EnvironmentObservation { id, messages, reward })
            }
            EnvironmentReply::Done { end, reward, .. } => {
                Reply::Done(pb::EnvironmentDone { id, end: episode_end_to_pb(end).into(), reward })
            }
            EnvironmentReply::Failed { reason, detail, .. } => {
                let reason = fail_reason_to_pb(reason).into();
                Reply::Failed(pb::EnvironmentFailed { id, reason, detail })
            }
            EnvironmentReply::Overloaded { retry_after, .. } => {
                Reply::Overloaded(pb::Overloaded { id, retry_after_ms: millis(retry_after) })
            }
        };
        Self { reply: Some(reply) }
    }
}

impl TryFrom<pb::EnvironmentReply> for EnvironmentReply {
    type Error = ProtocolError;

    fn try_from(reply: pb::EnvironmentReply) -> Result<Self, ProtocolError> {
        use pb::environment_reply::Reply;
        Ok(match required("environment reply", reply.reply)? {
            Reply::Ready(ready) => Self::Ready {
                id: episode(ready.id)?,
                messages: messages(ready.messages)?,
                tools: ready
                    .tools
                    .map(|tools| bounded("environment_ready.tools", tools, MAX_ENVIRONMENT_BYTES))
                    .transpose()?,
                max_tokens: ready.max_tokens,
                on_rewrite: if ready.ends_on_rewrite { OnRewrite::End } else { OnRewrite::Split },
            },
            Reply::Observed(observed) => {
                let (id, messages, reward) =
                    (episode(observed.id)?, messages(observed.messages)?, observed.reward);
                if messages.is_empty() {
                    return Err(ProtocolError::Missing("environment_observation.messages"));
                }
                Self::Observed { id, messages, reward }
            }
            Reply::Done(done) => {
                let end = episode_end_from_pb(done.end())?;
                Self::Done { id: episode(done.id)?, end, reward: done.reward }
            }
            Reply::Failed(failed) => Self::Failed {
                id: episode(failed.id)?,
                reason: fail_reason_from_pb(failed.reason())?,
                detail: plain_text(&failed.detail),
            },
            Reply::Overloaded(overloaded) => Self::Overloaded {
                id: episode(overloaded.id)?,
                retry_after: Duration::from_millis(overloaded.retry_after_ms),
            },
        })
    }
}
