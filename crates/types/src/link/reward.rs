//! Actor, reward server and coordinator: the way of a response.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Incarnation, MemberId, Rollout, RolloutFailure, RolloutId, RunId, Sampling, ScoredRollout, Vocabulary,
};

/// Actor to reward server.
#[derive(Debug, Clone, PartialEq)]
pub enum ScoreRequest {
    /// First on the stream.
    Hello {
        /// The run that the actor works for.
        run: RunId,
        /// The actor.
        member: MemberId,
    },
    /// One rollout to score.
    Rollout {
        /// What to score.
        rollout: Rollout,
        /// What is left of its lease: later than that nobody wants the score. A span and not a moment, since
        /// clocks differ.
        time_left: Duration,
    },
}

/// Reward server to actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScoreReply {
    /// The coordinator's journal knows how this attempt went: the actor may forget it.
    Recorded(RolloutId),
    /// The server has no room: offer it again, here or elsewhere, after this long.
    Overloaded {
        /// The rollout that was refused.
        id: RolloutId,
        /// The least pause before the next try.
        retry_after: Duration,
    },
}

/// A reward server introduces itself: the first message on every stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardHello {
    /// Its name, unique in the run.
    pub member: MemberId,
    /// Tells this start of its process from the ones before.
    pub incarnation: Incarnation,
    /// The run it worked for before the stream broke; none on the first contact.
    pub run: Option<RunId>,
    /// `host:port` under which actors reach it.
    pub address: String,
    /// That of the tokenizer with which it reads responses; none of a release that does not say.
    #[serde(default)]
    pub vocabulary: Option<Vocabulary>,
}

/// Reward server to coordinator, after the hello.
#[derive(Debug, Clone, PartialEq)]
pub enum RewardReport {
    /// A scored rollout.
    Scored(ScoredRollout),
    /// Scoring failed; never a score of zero.
    Failed(RolloutFailure),
    /// Alive, with this many rollouts waiting or being scored.
    Load {
        /// Rollouts accepted and not yet reported.
        queued: u32,
    },
}

/// Coordinator to reward server.
#[derive(Debug, Clone, PartialEq)]
pub enum RewardCommand {
    /// First on the stream.
    Welcome {
        /// The run.
        run: RunId,
        /// How the actors draw tokens: the reference's log-probs are taken at this temperature; none of a
        /// release that does not say.
        sampling: Option<Sampling>,
    },
    /// The journal knows how these attempts went: the reward server and the actors may forget them.
    Recorded(Vec<RolloutId>),
    /// This result cannot be accepted, and is not to be sent again: the attempt counts as failed. The reward
    /// server and the actor may forget it.
    Rejected {
        /// The attempt.
        id: RolloutId,
        /// What is wrong with its result.
        reason: String,
    },
    /// The run is over: leave now.
    Finish,
}
