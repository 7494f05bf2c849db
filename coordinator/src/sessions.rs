//! Open streams by member: where commands go, and which stream of a member counts.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use types::MemberId;
use types::link::actor::ActorCommand;
use types::link::learner::LearnerCommand;
use types::link::reward::RewardCommand;

/// Commands that may wait for a member's stream. A member that does not read is disconnected when they are
/// full.
pub(crate) const OUTBOX_CAPACITY: usize = 1024;

/// A member's stream. A member that connects again gets a new number, and what the old stream still carries
/// is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionId {
    pub(crate) member: MemberId,
    pub(crate) number: u64,
}

/// Why a stream is closed from this side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Closing {
    /// Come back.
    Disconnect(String),
    /// Do not come back.
    Refuse(String),
}

/// Where a stream's commands are put; an error is the last thing on it.
pub(crate) type CommandSender<C> = mpsc::Sender<Result<C, Closing>>;

/// The way to one member.
#[derive(Debug)]
pub(crate) enum Outbox {
    Actor(CommandSender<ActorCommand>),
    Reward(CommandSender<RewardCommand>),
    Learner(CommandSender<LearnerCommand>),
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

    fn finish(&self) {
        match self {
            Self::Actor(sender) => drop(sender.try_send(Ok(ActorCommand::Finish))),
            Self::Reward(sender) => drop(sender.try_send(Ok(RewardCommand::Finish))),
            Self::Learner(sender) => drop(sender.try_send(Ok(LearnerCommand::Finish))),
        }
    }
}

#[derive(Debug)]
struct Session {
    number: u64,
    outbox: Outbox,
}

/// All open streams.
#[derive(Debug, Default)]
pub(crate) struct Sessions(BTreeMap<MemberId, Session>);

impl Sessions {
    /// A member has a new stream; an older one is closed.
    pub(crate) fn open(&mut self, SessionId { member, number }: SessionId, outbox: Outbox) {
        if let Some(old) = self.0.insert(member, Session { number, outbox }) {
            old.outbox.close(Closing::Refuse("another process has joined under this name".to_owned()));
        }
    }

    /// Whether this is the stream of its member that counts.
    pub(crate) fn is_current(&self, id: &SessionId) -> bool {
        self.0.get(&id.member).is_some_and(|session| session.number == id.number)
    }

    /// The member's stream has ended by itself.
    pub(crate) fn ended(&mut self, member: &MemberId) {
        self.0.remove(member);
    }

    /// Ends the stream.
    pub(crate) fn close(&mut self, member: &MemberId, closing: Closing) {
        if let Some(session) = self.0.remove(member) {
            session.outbox.close(closing);
        }
    }

    /// Sends a command to an actor; one that is not connected is told nothing.
    pub(crate) fn send_to_actor(&mut self, member: &MemberId, command: ActorCommand) {
        if let Some(Session { outbox: Outbox::Actor(sender), .. }) = self.0.get(member)
            && sender.try_send(Ok(command)).is_err()
        {
            self.drop_unread(member);
        }
    }

    /// Sends a command to a reward server; one that is not connected is told nothing.
    pub(crate) fn send_to_reward_server(&mut self, member: &MemberId, command: RewardCommand) {
        if let Some(Session { outbox: Outbox::Reward(sender), .. }) = self.0.get(member)
            && sender.try_send(Ok(command)).is_err()
        {
            self.drop_unread(member);
        }
    }

    /// Sends a command to the learner, if it is connected.
    pub(crate) fn send_to_learner(&mut self, command: LearnerCommand) {
        let learner = self.0.iter().find_map(|(member, session)| match &session.outbox {
            Outbox::Learner(sender) => Some((member, sender)),
            Outbox::Actor(_) | Outbox::Reward(_) => None,
        });
        if let Some((member, sender)) = learner
            && sender.try_send(Ok(command)).is_err()
        {
            let member = member.clone();
            self.drop_unread(&member);
        }
    }

    /// Tells everybody that the run is over.
    pub(crate) fn finish(&mut self) {
        for (member, session) in std::mem::take(&mut self.0) {
            tracing::debug!(%member, "told to finish");
            session.outbox.finish();
        }
    }

    fn drop_unread(&mut self, member: &MemberId) {
        tracing::warn!(%member, capacity = OUTBOX_CAPACITY, "does not read its commands: disconnected");
        self.0.remove(member);
    }
}
