//! The thread at either end of the weight plane: it owns the broadcast groups, and carries out commands one
//! after the other.
//!
//! Groups form on threads of their own, which hand them over through the same inbox: waiting for the other
//! members must not hold up a broadcast in a group that stands.

use std::fmt;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use collective::ProcessGroup;
use tokio::sync::mpsc;
use types::BroadcastGroupId;
use types::link::actor::BroadcastGroup;

use crate::error::{Error, Result};
use crate::group::{GroupEvent, Groups, Member};
use crate::leaving::Leaving;

/// Commands that may wait; one that finds no room is an error that the caller reports.
const COMMAND_CAPACITY: usize = 64;
/// Events that may wait for whoever listens; the thread waits for room.
const EVENT_CAPACITY: usize = 16;
/// How often an idle thread looks whether anybody still listens to it.
const LISTENER_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What one end does, beside forming groups.
pub(crate) trait End: Send + 'static {
    /// What it can be told.
    type Command: Send + 'static;
    /// What it tells back.
    type Event: From<GroupEvent> + Send + 'static;

    /// Carries out a command; what came of it.
    fn carry_out(&mut self, command: Self::Command, groups: &mut Groups) -> Self::Event;
}

/// What lies in a thread's inbox.
enum Message<C> {
    /// Connect to a group in the background.
    Join(BroadcastGroup),
    /// A group is connected, or could not be.
    Joined(BroadcastGroupId, Result<ProcessGroup>),
    /// A group was left.
    Left(BroadcastGroupId),
    /// What the end itself is to do.
    Command(C),
}

/// The way to the thread, and what it tells back. Dropping it ends the thread.
pub(crate) struct Worker<E: End> {
    name: &'static str,
    inbox: std_mpsc::SyncSender<Message<E::Command>>,
    events: mpsc::Receiver<E::Event>,
    leaving: Leaving,
}

impl<E: End> fmt::Debug for Worker<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<E: End> Worker<E> {
    /// Starts the thread of one end under a name.
    pub(crate) fn start(name: &'static str, member: Member, end: E) -> Result<Self> {
        let (inbox, messages) = std_mpsc::sync_channel(COMMAND_CAPACITY);
        let (event_sender, events) = mpsc::channel(EVENT_CAPACITY);
        let leaving = Leaving::default();
        let loop_of_end = EndLoop {
            end,
            member,
            groups: Groups::default(),
            leaving: leaving.clone(),
            inbox: inbox.clone(),
            events: event_sender,
        };
        spawn(name.to_owned(), move || loop_of_end.run(&messages))?;
        Ok(Self { name, inbox, events, leaving })
    }

    /// Connects to a group in the background; a [`GroupEvent`] says what came of it.
    pub(crate) fn join(&self, group: BroadcastGroup) -> Result<()> {
        self.send(Message::Join(group))
    }

    /// Ends a group, and with it what is under way in it, also while the thread waits for that. Who formed or
    /// used it hears of the failure.
    pub(crate) fn leave(&self, id: BroadcastGroupId) -> Result<()> {
        if let Some(handle) = self.leaving.leave(id) {
            spawn(format!("leave {id}"), move || handle.abort("the coordinator ended the group"))?;
        }
        self.send(Message::Left(id))
    }

    /// Gives a command.
    pub(crate) fn command(&self, command: E::Command) -> Result<()> {
        self.send(Message::Command(command))
    }

    /// Gives a command, and waits for room.
    pub(crate) fn command_blocking(&self, command: E::Command) {
        // A thread that is gone shows in `next_event`.
        let _ = self.inbox.send(Message::Command(command));
    }

    /// What the thread tells next; `None` when it is gone. The future may be dropped at any time.
    pub(crate) async fn next_event(&mut self) -> Option<E::Event> {
        self.events.recv().await
    }

    fn send(&self, message: Message<E::Command>) -> Result<()> {
        self.inbox.try_send(message).map_err(|_| Error::Busy(self.name))
    }
}

/// What the thread owns.
struct EndLoop<E: End> {
    end: E,
    member: Member,
    groups: Groups,
    leaving: Leaving,
    /// Its own inbox, for the threads that form groups. It keeps the inbox open, so the end shows in
    /// `events`.
    inbox: std_mpsc::SyncSender<Message<E::Command>>,
    events: mpsc::Sender<E::Event>,
}

impl<E: End> EndLoop<E> {
    fn run(mut self, messages: &std_mpsc::Receiver<Message<E::Command>>) {
        loop {
            let message = messages.recv_timeout(LISTENER_CHECK_INTERVAL);
            if self.events.is_closed() {
                return;
            }
            let event = match message {
                Ok(message) => self.handle(message),
                Err(std_mpsc::RecvTimeoutError::Timeout) => None,
                Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
            };
            if let Some(event) = event {
                // Nobody listening means that the process is ending.
                let _ = self.events.blocking_send(event);
            }
        }
    }

    fn handle(&mut self, message: Message<E::Command>) -> Option<E::Event> {
        match message {
            Message::Join(group) => {
                let id = group.id;
                let failed = |error| GroupEvent::Failed { group: id, error }.into();
                self.form(group).err().map(failed)
            }
            Message::Joined(id, Ok(group)) if self.leaving.stands(id, &group) => {
                self.groups.add(id, group);
                Some(GroupEvent::Ready(id).into())
            }
            Message::Joined(id, Ok(_)) => {
                Some(GroupEvent::Failed { group: id, error: Error::Left(id) }.into())
            }
            Message::Left(id) => {
                self.groups.remove(id);
                None
            }
            Message::Joined(group, Err(error)) => Some(GroupEvent::Failed { group, error }.into()),
            Message::Command(command) => Some(self.end.carry_out(command, &mut self.groups)),
        }
    }

    fn form(&self, group: BroadcastGroup) -> Result<()> {
        let (member, inbox) = (self.member.clone(), self.inbox.clone());
        spawn(format!("join {}", group.id), move || {
            // When the process is ending the inbox may be gone; the group is dropped with the message.
            let _ = inbox.send(Message::Joined(group.id, member.form(&group)));
        })
    }
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = thread::Builder::new().name(name.clone()).spawn(work);
    started.map(|_| ()).map_err(|source| Error::Thread { name, source })
}
