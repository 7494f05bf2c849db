//! Open streams by member: where commands go, and which stream of a member counts.

use std::collections::BTreeMap;

use service::Origin;
use tokio::sync::mpsc::{self, error::TrySendError};
use types::link::actor::ActorCommand;
use types::link::learner::LearnerCommand;
use types::link::reward::RewardCommand;
use types::{Incarnation, MemberId};

use crate::state::Role;

/// Commands that may wait for a member's stream. A member that does not read is disconnected when they are
/// full.
pub(crate) const OUTBOX_CAPACITY: usize = 1024;

/// A member's stream. A member that connects again gets a new number, and what the old stream still carries
/// is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionId {
    pub(crate) role: Role,
    pub(crate) member: MemberId,
    /// The member's process.
    pub(crate) incarnation: Incarnation,
    pub(crate) number: u64,
    /// Where that process is.
    pub(crate) origin: Origin,
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
    /// Says why the stream is closed.
    pub(crate) fn close(&self, closing: Closing) {
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
    incarnation: Incarnation,
    origin: Origin,
    outbox: Outbox,
}

/// All open streams.
#[derive(Debug, Default)]
pub(crate) struct Sessions(BTreeMap<(Role, MemberId), Session>);

impl Sessions {
    /// A member has a new stream; an older one is closed.
    ///
    /// Of two streams of one process it is not known which was opened last: what lay in a socket is read
    /// late. The process is told to come back on a third one, and not that it may not.
    pub(crate) fn open(&mut self, id: SessionId, outbox: Outbox) {
        let SessionId { role, member, incarnation, number, origin } = id;
        if role == Role::Learner {
            // There is one: whoever is admitted takes the place of the one before, whatever its name.
            self.close_others(role, &member, &origin);
        }
        let newer = origin.clone();
        if let Some(old) = self.0.insert((role, member), Session { number, incarnation, origin, outbox }) {
            old.outbox.close(if old.incarnation == incarnation {
                Closing::Disconnect("another stream of this process was opened".to_owned())
            } else {
                let ours = old.origin;
                Closing::Refuse(format!(
                    "another process has joined under this name: {newer}, and this was {ours}"
                ))
            });
        }
    }

    fn close_others(&mut self, role: Role, member: &MemberId, origin: &Origin) {
        let others: Vec<MemberId> =
            self.0.keys().filter(|(of, _)| *of == role).map(|(_, name)| name.clone()).collect();
        for other in others.iter().filter(|other| *other != member) {
            let reason = format!("{member} has taken its place: {origin}");
            self.close(role, other, Closing::Refuse(reason));
        }
    }

    /// Where both are of whom one cannot join because the other has its name, or its role: the one that has
    /// it, where its stream is open, and the one that was refused.
    pub(crate) fn both(&self, refused: &SessionId) -> String {
        let other = self.0.iter().find(|((role, member), _)| {
            *role == refused.role && (*role == Role::Learner || *member == refused.member)
        });
        let ours = &refused.origin;
        match other {
            Some((_, Session { origin, .. })) => {
                format!("the one that stays is {origin}, this one is {ours}")
            }
            None => format!("this one is {ours}"),
        }
    }

    /// Whether this is the stream of its member that counts.
    pub(crate) fn is_current(&self, id: &SessionId) -> bool {
        self.0.get(&(id.role, id.member.clone())).is_some_and(|session| session.number == id.number)
    }

    /// The member's stream has ended by itself.
    pub(crate) fn ended(&mut self, role: Role, member: &MemberId) {
        self.0.remove(&(role, member.clone()));
    }

    /// Ends the stream.
    pub(crate) fn close(&mut self, role: Role, member: &MemberId, closing: Closing) {
        if let Some(session) = self.0.remove(&(role, member.clone())) {
            session.outbox.close(closing);
        }
    }

    /// Sends a command to an actor; one that is not connected is told nothing.
    pub(crate) fn send_to_actor(&mut self, member: &MemberId, command: ActorCommand) {
        let key = (Role::Actor, member.clone());
        if let Some(Session { outbox: Outbox::Actor(sender), .. }) = self.0.get(&key)
            && let Err(TrySendError::Full(_)) = sender.try_send(Ok(command))
        {
            self.drop_unread(&key);
        }
    }

    /// Sends a command to a reward server; one that is not connected is told nothing.
    pub(crate) fn send_to_reward_server(&mut self, member: &MemberId, command: RewardCommand) {
        let key = (Role::RewardServer, member.clone());
        if let Some(Session { outbox: Outbox::Reward(sender), .. }) = self.0.get(&key)
            && let Err(TrySendError::Full(_)) = sender.try_send(Ok(command))
        {
            self.drop_unread(&key);
        }
    }

    /// Sends a command to the learner, if it is connected.
    pub(crate) fn send_to_learner(&mut self, command: LearnerCommand) {
        // Roles are ordered, and the learner is the last.
        let last = self.0.last_key_value();
        let learner = last.and_then(|(key, session)| match &session.outbox {
            Outbox::Learner(sender) => Some((key, sender)),
            Outbox::Actor(_) | Outbox::Reward(_) => None,
        });
        if let Some((key, sender)) = learner
            && let Err(TrySendError::Full(_)) = sender.try_send(Ok(command))
        {
            let key = key.clone();
            self.drop_unread(&key);
        }
    }

    /// Tells everybody that the run is over.
    pub(crate) fn finish(&mut self) {
        for ((_, member), session) in std::mem::take(&mut self.0) {
            tracing::debug!(%member, "told to finish");
            session.outbox.finish();
        }
    }

    fn drop_unread(&mut self, key: &(Role, MemberId)) {
        tracing::warn!(member = %key.1, capacity = OUTBOX_CAPACITY, "does not read its commands: disconnected");
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use tonic::Request;

    use super::*;

    /// An actor's stream, and the end of it that the stream reads.
    fn actor(number: u64) -> (SessionId, Outbox, mpsc::Receiver<Result<ActorCommand, Closing>>) {
        let (sender, receiver) = mpsc::channel(OUTBOX_CAPACITY);
        let (member, incarnation) = ("actor-0".parse().unwrap(), Incarnation(number));
        let origin = Origin::of(&Request::new(()));
        (
            SessionId { role: Role::Actor, member, incarnation, number, origin },
            Outbox::Actor(sender),
            receiver,
        )
    }

    #[test]
    fn a_member_that_does_not_read_loses_its_stream() {
        let (id, outbox, mut receiver) = actor(1);
        let mut sessions = Sessions::default();
        sessions.open(id.clone(), outbox);
        for _ in 0..OUTBOX_CAPACITY {
            sessions.send_to_actor(&id.member, ActorCommand::Finish);
            assert!(sessions.is_current(&id));
        }
        sessions.send_to_actor(&id.member, ActorCommand::Finish);
        assert!(!sessions.is_current(&id));
        let mut read = 0;
        while let Some(command) = receiver.blocking_recv() {
            assert_eq!(command, Ok(ActorCommand::Finish));
            read += 1;
        }
        assert_eq!(read, OUTBOX_CAPACITY, "what it was told before is still there, and then the end");
    }

    /// Its end is on the way to the loop, which tells the state machine of it; a session that were gone by
    /// then would be nobody's, and its responses would wait for their time-out.
    #[test]
    fn a_member_that_died_while_it_was_told_something_is_noticed_by_the_end_of_its_stream() {
        let (id, outbox, receiver) = actor(1);
        let mut sessions = Sessions::default();
        sessions.open(id.clone(), outbox);
        drop(receiver);
        sessions.send_to_actor(&id.member, ActorCommand::Finish);
        assert!(sessions.is_current(&id), "the end that comes is its own");
        sessions.ended(id.role, &id.member);
        assert!(!sessions.is_current(&id));
    }

    #[test]
    fn the_end_of_an_older_stream_is_not_the_members() {
        let mut sessions = Sessions::default();
        let (old, outbox, mut receiver) = actor(1);
        sessions.open(old.clone(), outbox);
        let (new, outbox, _receiver) = actor(2);
        sessions.open(new.clone(), outbox);
        assert!(!sessions.is_current(&old) && sessions.is_current(&new));
        let Some(Err(Closing::Refuse(reason))) = receiver.blocking_recv() else { panic!("told nothing") };
        assert!(reason.contains("another process has joined under this name"), "{reason}");
    }
}
