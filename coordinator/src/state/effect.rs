//! What follows from an event. Effects are values; the server loop performs them once the event is durable.

use std::time::Duration;

use types::link::actor::ActorCommand;
use types::link::learner::LearnerCommand;
use types::link::reward::RewardCommand;
use types::{LeaseId, MemberId, PromptId, RolloutId};

use super::{BatchPlan, Phase, StepRecord};

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Tell an actor.
    Actor {
        /// Which.
        member: MemberId,
        /// What.
        command: Box<ActorCommand>,
    },
    /// Give an actor prompts; the texts are looked up in the data set.
    Lease {
        /// Which actor.
        member: MemberId,
        /// The lease.
        grant: Grant,
    },
    /// Tell a reward server.
    Reward {
        /// Which.
        member: MemberId,
        /// What.
        command: RewardCommand,
    },
    /// Tell the learner.
    Learner(LearnerCommand),
    /// Send the learner a batch; the tokens are looked up in the journal's store.
    SendBatch(BatchPlan),
    /// This response counts: its tokens have to become durable together with the event.
    Keep(RolloutId),
    /// These responses' tokens are needed no more.
    Forget(Vec<RolloutId>),
    /// Close a member's stream; it may come back.
    Disconnect {
        /// Which member.
        member: MemberId,
        /// Why.
        reason: String,
    },
    /// Close a member's stream for good: it cannot take part in this run.
    Refuse {
        /// Which member.
        member: MemberId,
        /// Why, and what to do.
        reason: String,
    },
    /// A training step is complete.
    Step(Box<StepRecord>),
    /// Something a person reading the log wants to know.
    Explain(String),
    /// The run has ended: tell everybody, then leave.
    Finish(Phase),
}

impl Effect {
    /// A command for an actor.
    pub fn actor(member: MemberId, command: ActorCommand) -> Self {
        Self::Actor { member, command: Box::new(command) }
    }
}

/// A lease without the prompts' texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its number.
    pub id: LeaseId,
    /// The groups to generate for.
    pub groups: Vec<LeasedGroup>,
    /// Its time limit.
    pub timeout: Duration,
}

/// One group of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasedGroup {
    /// The prompt.
    pub prompt: PromptId,
    /// The attempts wanted.
    pub wanted: Vec<RolloutId>,
}
