//! Actor and reward server: the turns of an episode (`docs/decisions.md`, D24).
//!
//! An episode is one response of several turns. The actor resets an environment for it, tells each of its
//! turns, and is told for each what the environment says, or that there is no further one. At most one answer
//! of an episode is due at a time.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{EpisodeEnd, FailReason, MemberId, RolloutId, RunId};

/// Most bytes of text that an environment says at a time, and of its tools' descriptions.
pub const MAX_ENVIRONMENT_BYTES: usize = 1 << 20;

/// Actor to reward server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvironmentRequest {
    /// First on the stream.
    Hello {
        /// The run that the actor works for.
        run: RunId,
        /// The actor.
        member: MemberId,
    },
    /// An episode begins: answered by [`EnvironmentReply::Ready`].
    Reset {
        /// The response that it is.
        id: RolloutId,
        /// What is left of its lease.
        time_left: Duration,
    },
    /// The policy has ended a turn: answered by [`EnvironmentReply::Observed`] or
    /// [`EnvironmentReply::Done`].
    Step {
        /// The episode.
        id: RolloutId,
        /// What the policy wrote, special tokens included, without the token that ended it.
        text: String,
        /// How many tokens that were.
        tokens: u32,
        /// Whether it was cut off at its longest length: there is no further turn then.
        truncated: bool,
    },
    /// Nobody waits for the episode any more. Not answered.
    Close(RolloutId),
}

/// Reward server to actor.
#[derive(Debug, Clone, PartialEq)]
pub enum EnvironmentReply {
    /// An episode has begun.
    Ready {
        /// The episode.
        id: RolloutId,
        /// What the environment says behind the prompt, before the first turn.
        messages: Vec<EnvironmentMessage>,
        /// JSON schemas of the tools that the policy may call, as a JSON list; none where it has none.
        tools: Option<String>,
        /// Most tokens that the policy may draw in all turns together.
        max_tokens: u32,
        /// What becomes of it where the chat template rewrites what came before.
        on_rewrite: OnRewrite,
    },
    /// What the environment says to a turn; the next one follows.
    Observed {
        /// The episode.
        id: RolloutId,
        /// What it says, at least one message.
        messages: Vec<EnvironmentMessage>,
        /// What it says that the episode is worth so far, where it says so.
        reward: Option<f32>,
    },
    /// There is no further turn.
    Done {
        /// The episode.
        id: RolloutId,
        /// Why.
        end: EpisodeEnd,
        /// What the environment says that the episode is worth, where it says so.
        reward: Option<f32>,
    },
    /// The environment failed, which says nothing about the policy.
    Failed {
        /// The episode.
        id: RolloutId,
        /// The reason as it is counted.
        reason: FailReason,
        /// What happened, for a person.
        detail: String,
    },
    /// There is no room for another episode: reset it again, here or elsewhere, after this long.
    Overloaded {
        /// The episode.
        id: RolloutId,
        /// The least pause before the next try.
        retry_after: Duration,
    },
}

impl EnvironmentReply {
    /// The episode that it is about.
    pub fn id(&self) -> RolloutId {
        match self {
            Self::Ready { id, .. }
            | Self::Observed { id, .. }
            | Self::Done { id, .. }
            | Self::Failed { id, .. }
            | Self::Overloaded { id, .. } => *id,
        }
    }
}

/// What becomes of an episode whose chat template writes what came before otherwise than the tokens have it:
/// that drops the thoughts of turns before, say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnRewrite {
    /// It goes on in a further sequence, whose prompt is the conversation as the template writes it then: the
    /// policy draws behind what it will be given where it is served. All sequences share the reward.
    #[default]
    Split,
    /// It ends there, and is scored as it is.
    End,
}

/// Something that an environment says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentMessage {
    /// Who speaks.
    pub speaker: Speaker,
    /// What is said.
    pub text: String,
}

/// Who speaks where the policy does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaker {
    /// A tool that the policy has called.
    Tool,
    /// The environment, as a user.
    User,
}

impl Speaker {
    /// The role of its messages in a chat.
    pub fn role(self) -> &'static str {
        match self {
            Self::Tool => "tool",
            Self::User => "user",
        }
    }
}
