//! The receiving end: one thread that takes part in broadcasts, fills a buffer of its own, and hands over
//! weights only when every hash is right. What is in use meanwhile is untouched.

use bytes::Bytes;
use model::ModelConfig;
use model::buffer::{self, PackedWeights};
use types::link::actor::BroadcastGroup;
use types::{BroadcastGroupId, Manifest, PolicyVersion};

use crate::error::{Error, Result};
use crate::group::{GroupEvent, Groups, Member};
use crate::snapshots::{Snapshot, Snapshots};
use crate::worker::{End, Worker};
use crate::{broadcast, manifest};

/// Brings weights into the form that whoever uses them takes up at once. It runs on the receiver's thread,
/// beside the use of the version before.
pub trait Prepare: Send + 'static {
    /// Weights ready for use.
    type Prepared: Send + 'static;
    /// Why they cannot be prepared.
    type Error: Into<Box<dyn std::error::Error + Send + Sync>>;

    /// Prepares weights whose hashes are right. They are gone afterwards: what is kept of them is copied.
    ///
    /// # Errors
    /// When there is no room for them, or they cannot be used.
    fn prepare(
        &mut self,
        version: PolicyVersion,
        weights: &PackedWeights<'_>,
    ) -> std::result::Result<Self::Prepared, Self::Error>;
}

/// What is received, and as whom.
#[derive(Debug, Clone)]
pub struct ReceiverConfig {
    /// This receiver in its broadcast groups.
    pub member: Member,
    /// The policy's network.
    pub model: ModelConfig,
    /// Where others find the weights that have arrived, if they are shared. Their buffer is kept for that.
    pub shared: Option<Snapshots>,
}

/// What came of the receiver's commands; `W` are prepared weights.
#[derive(Debug)]
pub enum ReceiveEvent<W> {
    /// A version is ready for use; every hash was right.
    Arrived {
        /// What it is.
        manifest: Manifest,
        /// The prepared weights.
        weights: W,
    },
    /// A version did not arrive, or is not what its manifest says.
    Failed {
        /// Which version.
        version: PolicyVersion,
        /// Why.
        error: Error,
    },
    /// What became of a group that was to be joined.
    Group(GroupEvent),
}

impl<W> From<GroupEvent> for ReceiveEvent<W> {
    fn from(event: GroupEvent) -> Self {
        Self::Group(event)
    }
}

/// The way to the receiver's thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct Receiver<P: Prepare> {
    worker: Worker<ReceiverEnd<P>>,
}

impl<P: Prepare> Receiver<P> {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::Thread`] when the operating system has no thread left.
    pub fn start(config: ReceiverConfig, prepare: P) -> Result<Self> {
        let ReceiverConfig { member, model, shared } = config;
        let worker = Worker::start("weights", member, ReceiverEnd { model, prepare, shared })?;
        Ok(Self { worker })
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

    /// Takes part in a broadcast: [`ReceiveEvent::Arrived`] or [`ReceiveEvent::Failed`] follows.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many commands wait.
    pub fn receive(&self, group: BroadcastGroupId, manifest: Manifest) -> Result<()> {
        self.worker.command(ReceiveCommand::Receive { group, manifest })
    }

    /// Checks and prepares a pulled buffer: [`ReceiveEvent::Arrived`] or [`ReceiveEvent::Failed`] follows.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many commands wait.
    pub fn unpack(&self, manifest: Manifest, buffer: Bytes) -> Result<()> {
        self.worker.command(ReceiveCommand::Unpack { manifest, buffer })
    }

    /// What came of a command; `None` when the thread is gone. The future may be dropped at any time.
    pub async fn next_event(&mut self) -> Option<ReceiveEvent<P::Prepared>> {
        self.worker.next_event().await
    }
}

#[derive(Debug)]
enum ReceiveCommand {
    Receive { group: BroadcastGroupId, manifest: Manifest },
    Unpack { manifest: Manifest, buffer: Bytes },
}

/// What the receiver's thread does.
struct ReceiverEnd<P> {
    model: ModelConfig,
    prepare: P,
    shared: Option<Snapshots>,
}

impl<P: Prepare> ReceiverEnd<P> {
    fn receive(
        &mut self,
        groups: &mut Groups,
        group: BroadcastGroupId,
        manifest: &Manifest,
    ) -> Result<P::Prepared> {
        groups.run(group, |group| {
            let total = usize::try_from(manifest.total_bytes()).map_err(|_| Error::OtherModel)?;
            let received = broadcast::receive(group, total)?;
            buffer::with_bytes(&received, |bytes| {
                let prepared = self.unpack(manifest, bytes)?;
                self.share(manifest, || Bytes::copy_from_slice(bytes));
                Ok(prepared)
            })
        })
    }

    /// Lets others pull weights that were found to be right.
    fn share(&self, manifest: &Manifest, buffer: impl FnOnce() -> Bytes) {
        if let Some(shared) = &self.shared {
            shared.add(Snapshot { manifest: manifest.clone(), buffer: buffer() });
        }
    }

    fn unpack(&mut self, manifest: &Manifest, bytes: &[u8]) -> Result<P::Prepared> {
        let weights = manifest::open(&self.model, manifest, bytes)?;
        let prepared = self.prepare.prepare(manifest.version(), &weights);
        prepared.map_err(|error| Error::Prepare(error.into()))
    }
}

impl<P: Prepare> End for ReceiverEnd<P> {
    type Command = ReceiveCommand;
    type Event = ReceiveEvent<P::Prepared>;

    fn carry_out(&mut self, command: ReceiveCommand, groups: &mut Groups) -> Self::Event {
        let (manifest, result) = match command {
            ReceiveCommand::Receive { group, manifest } => {
                let received = self.receive(groups, group, &manifest);
                (manifest, received)
            }
            ReceiveCommand::Unpack { manifest, buffer } => {
                let unpacked = self.unpack(&manifest, &buffer);
                if unpacked.is_ok() {
                    self.share(&manifest, || buffer);
                }
                (manifest, unpacked)
            }
        };
        match result {
            Ok(weights) => ReceiveEvent::Arrived { manifest, weights },
            Err(error) => ReceiveEvent::Failed { version: manifest.version(), error },
        }
    }
}
