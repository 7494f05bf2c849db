//! The sending end: one thread that turns trained weights into snapshots and broadcasts them. It runs beside
//! the next training step, never in front of it.

use std::time::Duration;

use bytes::Bytes;
use model::ModelConfig;
use tch::Kind;
use tokio::time::Instant;
use types::link::actor::BroadcastGroup;
use types::{BroadcastGroupId, Manifest, PolicyVersion};

use crate::error::{Error, Result};
use crate::group::{GroupEvent, Groups, Member};
use crate::snapshots::{Snapshot, Snapshots};
use crate::worker::{End, Worker};
use crate::{broadcast, manifest};

/// What is published, and as whom.
#[derive(Debug, Clone)]
pub struct PublisherConfig {
    /// The learner in its broadcast groups.
    pub member: Member,
    /// The policy's network.
    pub model: ModelConfig,
    /// The element type of the buffers.
    pub kind: Kind,
}

/// What came of the publisher's commands.
#[derive(Debug)]
pub enum PublishEvent {
    /// A version can be pulled and broadcast.
    Kept(Manifest),
    /// A version cannot be described, because its buffer is not the network's.
    Refused {
        /// Which version.
        version: PolicyVersion,
        /// What is wrong with it.
        error: Error,
    },
    /// A version went to all members of a group.
    Sent {
        /// The group.
        group: BroadcastGroupId,
        /// The version.
        version: PolicyVersion,
        /// How long it took.
        took: Duration,
    },
    /// A version did not go to all members of a group, and the group is gone.
    NotSent {
        /// The group.
        group: BroadcastGroupId,
        /// The version.
        version: PolicyVersion,
        /// Why.
        error: Error,
    },
    /// What became of a group that was to be joined.
    Group(GroupEvent),
}

impl From<GroupEvent> for PublishEvent {
    fn from(event: GroupEvent) -> Self {
        Self::Group(event)
    }
}

/// The way to the publisher's thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct Publisher {
    worker: Worker<PublisherEnd>,
}

impl Publisher {
    /// Starts the thread, which adds to `snapshots`.
    ///
    /// # Errors
    /// [`Error::Thread`] when the operating system has no thread left.
    pub fn start(config: PublisherConfig, snapshots: Snapshots) -> Result<Self> {
        let PublisherConfig { member, model, kind } = config;
        let worker = Worker::start("publisher", member, PublisherEnd { model, kind, snapshots })?;
        Ok(Self { worker })
    }

    /// Describes and keeps a version's weights: [`PublishEvent::Kept`] follows. Blocks while too many
    /// commands wait: the next step may not overtake publication for ever.
    pub fn keep(&self, version: PolicyVersion, buffer: Vec<u8>) {
        self.worker.command_blocking(PublishCommand::Keep { version, buffer });
    }

    /// Connects to a group in the background: a [`GroupEvent`] follows.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many commands wait.
    pub fn join(&self, group: BroadcastGroup) -> Result<()> {
        self.worker.join(group)
    }

    /// Ends a group at once, for all its members, and with it a broadcast that is under way in it: that one
    /// fails.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many commands wait, [`Error::Thread`] when there is no thread to end it on.
    pub fn leave(&self, group: BroadcastGroupId) -> Result<()> {
        self.worker.leave(group)
    }

    /// Broadcasts a version: [`PublishEvent::Sent`] or [`PublishEvent::NotSent`] follows.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many commands wait.
    pub fn broadcast(&self, group: BroadcastGroupId, version: PolicyVersion) -> Result<()> {
        self.worker.command(PublishCommand::Broadcast { group, version })
    }

    /// What came of a command; `None` when the thread is gone. The future may be dropped at any time.
    pub async fn next_event(&mut self) -> Option<PublishEvent> {
        self.worker.next_event().await
    }
}

#[derive(Debug)]
enum PublishCommand {
    Keep { version: PolicyVersion, buffer: Vec<u8> },
    Broadcast { group: BroadcastGroupId, version: PolicyVersion },
}

/// What the publisher's thread does.
struct PublisherEnd {
    model: ModelConfig,
    kind: Kind,
    snapshots: Snapshots,
}

impl PublisherEnd {
    fn keep(&self, version: PolicyVersion, buffer: Vec<u8>) -> Result<Manifest> {
        let manifest = manifest::describe(&self.model, self.kind, version, &buffer)?;
        self.snapshots.add(Snapshot { manifest: manifest.clone(), buffer: Bytes::from(buffer) });
        Ok(manifest)
    }

    fn broadcast(
        &self,
        groups: &mut Groups,
        group: BroadcastGroupId,
        version: PolicyVersion,
    ) -> Result<Duration> {
        let started = Instant::now();
        groups.run(group, |group| {
            let snapshot = self.snapshots.of_version(version).ok_or(Error::Replaced(version))?;
            broadcast::send(group, &snapshot.buffer)
        })?;
        Ok(started.elapsed())
    }
}

impl End for PublisherEnd {
    type Command = PublishCommand;
    type Event = PublishEvent;

    fn carry_out(&mut self, command: PublishCommand, groups: &mut Groups) -> PublishEvent {
        match command {
            PublishCommand::Keep { version, buffer } => match self.keep(version, buffer) {
                Ok(manifest) => PublishEvent::Kept(manifest),
                Err(error) => PublishEvent::Refused { version, error },
            },
            PublishCommand::Broadcast { group, version } => match self.broadcast(groups, group, version) {
                Ok(took) => PublishEvent::Sent { group, version, took },
                Err(error) => PublishEvent::NotSent { group, version, error },
            },
        }
    }
}
