//! What follows from events. Effects are values; the server loop performs them once the facts are durable.

use types::link::actor::ActorCommand;
use types::link::learner::LearnerCommand;
use types::link::reward::RewardCommand;
use types::{MemberId, RolloutId};

use super::batches::BatchPlan;
use super::evaluations::EvaluationRecord;
use super::fact::Fact;
use super::group_end::GroupEnd;
use super::history::StepRecord;
use super::leases::Grant;
use super::notice::Notice;
use super::phase::Phase;
use super::refusal::Refusal;
use super::role::Role;
use super::weights::WeightCommand;

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Tell an actor.
    Actor {
        /// The actor.
        member: MemberId,
        /// What it is told.
        command: Box<ActorCommand>,
    },
    /// Give an actor prompts; the texts are looked up in the data set.
    Lease {
        /// The actor.
        member: MemberId,
        /// The lease.
        grant: Grant,
    },
    /// Tell a reward server.
    Reward {
        /// The reward server.
        member: MemberId,
        /// What it is told.
        command: RewardCommand,
    },
    /// Tell the learner.
    Learner(LearnerCommand),
    /// Send the learner a batch; the tokens are looked up in the journal's store.
    SendBatch(BatchPlan),
    /// Close a member's stream; it may come back.
    Disconnect {
        /// What it is.
        role: Role,
        /// The member.
        member: MemberId,
        /// Why, for a person.
        reason: String,
    },
    /// Close a member's stream for good: it cannot take part in this run.
    Refuse {
        /// What it is.
        role: Role,
        /// The member.
        member: MemberId,
        /// Why, and what to do.
        refusal: Refusal,
    },
    /// A group is complete, and its fate decided.
    GroupEnded(Box<GroupEnd>),
    /// A training step is complete.
    Step(Box<StepRecord>),
    /// An evaluation is over.
    Evaluated(Box<EvaluationRecord>),
    /// Something a person reading the log wants to know.
    Notice(Notice),
    /// The run has ended: tell everybody, then leave.
    Finish(Phase),
}

/// How the tokens that lie beside the facts change, together with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreChanges {
    /// Responses that count from now on: their tokens have to become durable.
    pub keep: Vec<RolloutId>,
    /// Responses whose tokens are needed no more, those of `keep` included that were needed for a moment.
    pub forget: Vec<RolloutId>,
}

/// What follows from events.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// What becomes durable, in order.
    pub facts: Vec<Fact>,
    /// What becomes durable with it.
    pub store: StoreChanges,
    /// What is to be done, in order, once that is durable.
    pub effects: Vec<Effect>,
}

impl Applied {
    pub(super) fn tell_actor(&mut self, member: MemberId, command: ActorCommand) {
        self.effects.push(Effect::Actor { member, command: Box::new(command) });
    }

    pub(super) fn tell_learner(&mut self, command: LearnerCommand) {
        self.effects.push(Effect::Learner(command));
    }

    pub(super) fn tell_about_weights(&mut self, command: WeightCommand) {
        match command {
            WeightCommand::Actor(member, command) => self.tell_actor(member, command),
            WeightCommand::Learner(command) => self.tell_learner(command),
            WeightCommand::ThroughHosts(group, reason) => {
                self.notice(Notice::BroadcastThroughHosts { group, reason });
            }
        }
    }

    pub(super) fn disconnect(&mut self, role: Role, member: MemberId, reason: impl ToString) {
        self.effects.push(Effect::Disconnect { role, member, reason: reason.to_string() });
    }

    pub(super) fn refuse(&mut self, role: Role, member: MemberId, refusal: Refusal) {
        self.effects.push(Effect::Refuse { role, member, refusal });
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        self.effects.push(Effect::Notice(notice));
    }

    pub(super) fn keep(&mut self, response: RolloutId) {
        self.store.keep.push(response);
    }

    /// The tokens of these responses are needed no more.
    pub(super) fn forget(&mut self, responses: impl IntoIterator<Item = RolloutId>) {
        self.store.forget.extend(responses);
    }
}
