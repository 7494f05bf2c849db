//! What the members of a run say and do. What of it changes the run becomes a [`Fact`](super::fact::Fact).

use std::time::Duration;

use types::link::actor::{ActorHello, ActorReport};
use types::link::learner::{LearnerHello, LearnerReport};
use types::link::reward::RewardHello;
use types::{MemberId, RolloutFailure, RolloutId};

use super::fact::ScoreSummary;
use super::plan::RunPlan;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A coordinator started over its journal, with this plan.
    Started(Box<RunPlan>),
    /// The coordinator itself did nothing for this long: it was stopped, or its disk was slow. Nobody could
    /// be heard meanwhile.
    WasAway(Duration),
    /// The journal's disk has become short of room, in words for people; or it has enough again.
    Room {
        /// What the run waits for, if it does.
        short_of: Option<String>,
    },
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
}

impl Event {
    /// Whether it says only that a member is there, and how loaded.
    pub(crate) fn is_sign_of_life(&self) -> bool {
        matches!(
            self,
            Self::Actor { event: ActorEvent::Report(ActorReport::Load(_)), .. }
                | Self::Reward { event: RewardEvent::Load { .. }, .. }
                | Self::Learner(LearnerEvent::Report(LearnerReport::Alive(_)))
        )
    }

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
#[derive(Debug, Clone, PartialEq)]
pub enum ActorEvent {
    /// Its stream is open.
    Joined(ActorHello),
    /// Its stream is closed. An actor that comes back keeps its leases until it is lost.
    Disconnected,
    /// What it says on it.
    Report(ActorReport),
}

/// From or about a reward server.
#[derive(Debug, Clone, PartialEq)]
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

/// From or about the learner.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a learner joins once, and events are moved one at a time")]
pub enum LearnerEvent {
    /// Its stream is open.
    Joined(LearnerHello),
    /// Its stream is closed.
    Disconnected,
    /// What it says on it.
    Report(LearnerReport),
}
