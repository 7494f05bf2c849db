//! Open streams by member: where commands go, and which stream of a member counts.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use types::MemberId;
use types::link::actor::ActorCommand;
use types::link::learner::LearnerCommand;
use types::link::reward::RewardCommand;

/// Commands that may wait for a member's stream. A member that does not read is disconnected when they are full.
pub(crate) const OUTBOX_CAPACITY: usize = 1024;

/// A stream's number; a member that connects again gets a new one, and what the old stream still carries is ignored.
pub(crate) type SessionNumber = u64;

/// Why a stream is closed from this side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Closing {
    /// Come back.
    Disconnect(String),
    /// Do not come back.
    Refuse(String),
}

/// Where a stream's commands are put; an error is the last thing on it.
pub(crate) type Sender<C> = mpsc::Sender<Result<C, Closing>>;

/// The way to one member.
#[derive(Debug)]
pub(crate) enum Outbox {
    Actor(Sender<ActorCommand>),
    Reward(Sender<RewardCommand>),
    Learner(Sender<LearnerCommand>),
}

impl Outbox {
    fn close(&self, closing: Closing) {
        // A full or closed outbox ends with its session all the same.
        match self {
            Self::Actor(sender) => drop(sender.try_send(Err(closing))),
            Self::Reward(sender) => drop(sender.try_send(Err(closing))),
            Self::Learner(sender) => drop(sender.try_send(Err(closing))),
        }
    }
}

#[derive(Debug)]
struct Session {
    number: SessionNumber,
    outbox: Outbox,
}

/// All open streams.
#[derive(Debug, Default)]
pub(crate) struct Sessions(BTreeMap<MemberId, Session>);

impl Sessions {
    /// A member has a new stream; an older one is closed.
    pub(crate) fn open(&mut self, member: MemberId, number: SessionNumber, outbox: Outbox) {
        if let Some(old) = self.0.insert(member, Session { number, outbox }) {
            old.outbox.close(Closing::Refuse("another process has joined under this name".to_owned()));
        }
    }

    /// Whether this is the stream of the member that counts.
    pub(crate) fn is_current(&self, member: &MemberId, number: SessionNumber) -> bool {
        self.0.get(member).is_some_and(|session| session.number == number)
    }

    /// The stream has ended by itself.
    pub(crate) fn ended(&mut self, member: &MemberId) {
        self.0.remove(member);
    }

    /// Ends the stream.
    pub(crate) fn close(&mut self, member: &MemberId, closing: Closing) {
        if let Some(session) = self.0.remove(member) {
            session.outbox.close(closing);
        }
    }

    /// Sends a command to an actor.
    pub(crate) fn actor(&mut self, member: &MemberId, command: ActorCommand) {
        let sent = match self.0.get(member).map(|session| &session.outbox) {
            Some(Outbox::Actor(sender)) => sender.try_send(Ok(command)).is_ok(),
            _ => return,
        };
        self.drop_unless(sent, member);
    }

    /// Sends a command to a reward server.
    pub(crate) fn reward(&mut self, member: &MemberId, command: RewardCommand) {
        let sent = match self.0.get(member).map(|session| &session.outbox) {
            Some(Outbox::Reward(sender)) => sender.try_send(Ok(command)).is_ok(),
            _ => return,
        };
        self.drop_unless(sent, member);
    }

    /// Sends a command to the learner.
    pub(crate) fn learner(&mut self, command: LearnerCommand) {
        let learner = self.0.iter().find_map(|(member, session)| match &session.outbox {
            Outbox::Learner(sender) => Some((member.clone(), sender.try_send(Ok(command.clone())).is_ok())),
            Outbox::Actor(_) | Outbox::Reward(_) => None,
        });
        if let Some((member, sent)) = learner {
            self.drop_unless(sent, &member);
        }
    }

    /// Tells everybody that the run is over.
    pub(crate) fn finish(&mut self) {
        for (member, session) in std::mem::take(&mut self.0) {
            tracing::debug!(%member, "told to finish");
            match session.outbox {
                Outbox::Actor(sender) => drop(sender.try_send(Ok(ActorCommand::Finish))),
                Outbox::Reward(sender) => drop(sender.try_send(Ok(RewardCommand::Finish))),
                Outbox::Learner(sender) => drop(sender.try_send(Ok(LearnerCommand::Finish))),
            }
        }
    }

    fn drop_unless(&mut self, sent: bool, member: &MemberId) {
        if !sent {
            tracing::warn!(%member, capacity = OUTBOX_CAPACITY, "does not read its commands: disconnected");
            self.0.remove(member);
        }
    }
}
