//! What happens to a run. Events are journaled; they carry summaries, the tokens themselves lie beside them
//! in the journal's store.

use serde::{Deserialize, Serialize};
use types::link::actor::{ActorHello, ActorReport};
use types::link::learner::{LearnerHello, LearnerReport};
use types::link::reward::RewardHello;
use types::{MemberId, PolicyVersion, RolloutFailure, RolloutId, ScoredRollout};

use super::plan::RunPlan;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The coordinator started again over its journal.
    Restarted(Box<RunPlan>),
    /// From or about an actor.
    Actor {
        /// The actor.
        member: MemberId,
        /// What happened to it.
        event: ActorEvent,
    },
    /// From or about a reward server.
    Reward {
        /// The reward server.
        member: MemberId,
        /// What happened to it.
        event: RewardEvent,
    },
    /// From or about the learner.
    Learner(LearnerEvent),
    /// Somebody asked the run to stop.
    DrainRequested,
    /// A deadline passed.
    Tick,
}

impl Event {
    /// The attempt whose result a reward server reports, to be acknowledged to it.
    pub(crate) fn reward_result(&self) -> Option<RolloutId> {
        match self {
            Self::Reward { event: RewardEvent::Scored(summary), .. } => Some(summary.id),
            Self::Reward { event: RewardEvent::Failed(failure), .. } => Some(failure.id),
            _ => None,
        }
    }
}

/// From or about an actor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorEvent {
    /// Its stream is open.
    Joined(ActorHello),
    /// Its stream is closed. An actor that comes back in the same incarnation keeps its leases until it is
    /// lost.
    Disconnected,
    /// What it says on it.
    Report(ActorReport),
}

/// From or about a reward server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardEvent {
    /// Its stream is open.
    Joined(RewardHello),
    /// Its stream is closed.
    Disconnected,
    /// Its load.
    Load {
        /// Rollouts accepted and not yet reported.
        queued: u32,
    },
    /// It scored a response.
    Scored(ScoreSummary),
    /// It could not score a response.
    Failed(RolloutFailure),
}

/// What decisions need to know of a scored rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreSummary {
    /// The response.
    pub id: RolloutId,
    /// Its score.
    pub score: f32,
    /// Share of hidden tests passed, if it has any.
    pub outcome: Option<f32>,
    /// Response tokens.
    pub tokens: u32,
    /// The oldest version that drew one of them.
    pub oldest: PolicyVersion,
    /// Whether the response was cut off by the length limit.
    pub truncated: bool,
}

impl ScoreSummary {
    /// The summary of a scored rollout.
    pub fn of(scored: &ScoredRollout) -> Self {
        let rollout = scored.rollout();
        Self {
            id: rollout.id(),
            score: scored.score(),
            outcome: scored.outcome(),
            tokens: u32::try_from(rollout.response_tokens().len()).unwrap_or(u32::MAX),
            oldest: rollout.oldest_version(),
            truncated: rollout.finish_reason() == types::FinishReason::Length,
        }
    }
}

/// From or about the learner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnerEvent {
    /// Its stream is open.
    Joined(LearnerHello),
    /// Its stream is closed.
    Disconnected,
    /// What it says on it.
    Report(LearnerReport),
}
