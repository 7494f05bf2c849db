//! The sending end of the weight plane (design D6): one OS thread that turns trained weights into snapshots, connects to
//! broadcast groups, and broadcasts. It runs beside the next training step, never in front of it.

use std::collections::BTreeMap;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use collective::{Backend, GlooAddress, GroupConfig, ProcessGroup, Store};
use tch::{Device, Tensor};
use tokio::sync::mpsc;
use tokio::time::Instant;
use types::link::actor::BroadcastGroup;
use types::{BROADCAST_CHUNK_BYTES, BroadcastGroupId, DType, Manifest, PolicyVersion};

use super::snapshots::{Snapshot, Snapshots};

/// Orders that may wait.
const ORDERS: usize = 64;
/// Groups that may stand at a time.
const MAX_GROUPS: usize = 4;

/// What the thread is to do.
#[derive(Debug)]
enum Order {
    /// Describe these weights and keep them.
    Snapshot(PolicyVersion, Vec<u8>),
    /// Connect to a group in the background.
    Join(BroadcastGroup),
    /// A group is connected, or could not be.
    Joined(BroadcastGroupId, anyhow::Result<ProcessGroup>),
    /// Broadcast a version.
    Broadcast(BroadcastGroupId, PolicyVersion),
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum PublishEvent {
    /// A version can be pulled and broadcast.
    Ready(Manifest),
    /// It could not be described.
    Broken(String),
    /// A group stands.
    GroupReady(BroadcastGroupId),
    /// A group could not be formed.
    GroupFailed(BroadcastGroupId, String),
    /// Broadcast.
    Sent { group: BroadcastGroupId, version: PolicyVersion, seconds: f64 },
    /// Not broadcast; the group is dead.
    NotSent { group: BroadcastGroupId, version: PolicyVersion, detail: String },
}

/// What is published.
#[derive(Debug, Clone)]
pub(crate) struct PublisherConfig {
    /// Names and shapes of the parameters, in buffer order.
    pub(crate) parameters: Vec<(String, Vec<u64>)>,
    /// Their element type on the way.
    pub(crate) dtype: DType,
    /// Where broadcast tensors lie: the CPU for Gloo, a GPU for NCCL.
    pub(crate) device: Device,
    /// The deadline of forming a group, and of each chunk of a broadcast.
    pub(crate) time_limit: Duration,
    /// `host:port` of our own store.
    pub(crate) store: String,
}

/// The way to the thread. Dropping it ends the thread.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    orders: std_mpsc::SyncSender<Order>,
}

impl Publisher {
    /// Starts the thread; what comes of the orders goes to `events`.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub(crate) fn start(
        config: PublisherConfig,
        snapshots: Snapshots,
        events: mpsc::Sender<PublishEvent>,
    ) -> anyhow::Result<Self> {
        let (orders, inbox) = std_mpsc::sync_channel(ORDERS);
        let worker = Worker { config, snapshots, events, orders: orders.clone(), groups: BTreeMap::new() };
        std::thread::Builder::new()
            .name("publisher".to_owned())
            .spawn(move || worker.run(&inbox))
            .context("start the publisher's thread")?;
        Ok(Self { orders })
    }

    /// Describes weights and keeps them. Waits for room: the next step may not overtake publication for ever.
    pub(crate) fn snapshot(&self, version: PolicyVersion, buffer: Vec<u8>) {
        // A thread that is gone has reported why.
        let _ = self.orders.send(Order::Snapshot(version, buffer));
    }

    /// Connects to a group in the background.
    ///
    /// # Errors
    /// When too many orders wait.
    pub(crate) fn join(&self, group: BroadcastGroup) -> anyhow::Result<()> {
        self.order(Order::Join(group))
    }

    /// Broadcasts a version.
    ///
    /// # Errors
    /// When too many orders wait.
    pub(crate) fn broadcast(&self, group: BroadcastGroupId, version: PolicyVersion) -> anyhow::Result<()> {
        self.order(Order::Broadcast(group, version))
    }

    fn order(&self, order: Order) -> anyhow::Result<()> {
        self.orders.try_send(order).map_err(|_| anyhow::anyhow!("the publisher does not keep up"))
    }
}

struct Worker {
    config: PublisherConfig,
    snapshots: Snapshots,
    events: mpsc::Sender<PublishEvent>,
    /// Its own inbox, for the threads that form groups. It keeps the inbox open, so the end shows in `events`.
    orders: std_mpsc::SyncSender<Order>,
    groups: BTreeMap<BroadcastGroupId, ProcessGroup>,
}

impl Worker {
    fn run(mut self, inbox: &std_mpsc::Receiver<Order>) {
        loop {
            // Waking up now and then notices that nobody listens any more.
            let order = inbox.recv_timeout(Duration::from_secs(1));
            if self.events.is_closed() {
                return;
            }
            match order {
                Ok(order) => self.carry_out(order),
                Err(std_mpsc::RecvTimeoutError::Timeout) => {}
                Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        let event = match order {
            Order::Snapshot(version, buffer) => match self.describe(version, &buffer) {
                Ok(manifest) => {
                    self.snapshots.add(Snapshot { manifest: manifest.clone(), buffer: Bytes::from(buffer) });
                    PublishEvent::Ready(manifest)
                }
                Err(error) => PublishEvent::Broken(error.to_string()),
            },
            Order::Join(group) => match self.join(group) {
                Ok(()) => return,
                Err((id, error)) => PublishEvent::GroupFailed(id, format!("no thread to form it: {error}")),
            },
            Order::Joined(id, Ok(group)) => {
                self.groups.insert(id, group);
                while self.groups.len() > MAX_GROUPS {
                    self.groups.pop_first();
                }
                PublishEvent::GroupReady(id)
            }
            Order::Joined(id, Err(error)) => PublishEvent::GroupFailed(id, format!("{error:#}")),
            Order::Broadcast(group, version) => {
                let started = Instant::now();
                match self.broadcast(group, version) {
                    Ok(()) => {
                        let seconds = started.elapsed().as_secs_f64();
                        PublishEvent::Sent { group, version, seconds }
                    }
                    Err(error) => {
                        // Dropping the group ends it for the receivers too: they fail at once instead of waiting.
                        self.groups.remove(&group);
                        PublishEvent::NotSent { group, version, detail: format!("{error:#}") }
                    }
                }
            }
        };
        // Nobody listening means that the learner is ending.
        let _ = self.events.blocking_send(event);
    }

    fn describe(&self, version: PolicyVersion, buffer: &[u8]) -> Result<Manifest, types::Invalid> {
        let dtype = self.config.dtype;
        let parameters = self.config.parameters.iter().cloned();
        let tensors = parameters.map(|(name, shape)| (name, shape, dtype)).collect();
        Manifest::of_buffer(version, tensors, buffer)
    }

    /// Groups form on a thread of their own, because waiting for the others must not hold up a broadcast.
    fn join(&mut self, group: BroadcastGroup) -> Result<(), (BroadcastGroupId, std::io::Error)> {
        let (config, orders, id) = (self.config.clone(), self.orders.clone(), group.id);
        let form = move || {
            // When the learner is ending the inbox may be gone; the group is dropped with the order.
            let _ = orders.send(Order::Joined(id, form_group(&config, &group)));
        };
        let thread = std::thread::Builder::new().name(format!("join {id}")).spawn(form);
        thread.map(|_| ()).map_err(|error| (id, error))
    }

    fn broadcast(&mut self, id: BroadcastGroupId, version: PolicyVersion) -> anyhow::Result<()> {
        let group = self.groups.get(&id).with_context(|| format!("not a member of broadcast group {id}"))?;
        let snapshot = self.snapshots.of_version(version);
        let snapshot = snapshot.with_context(|| format!("{version} has been replaced by a newer version"))?;
        let mut under_way = None;
        for chunk in snapshot.buffer.chunks(BROADCAST_CHUNK_BYTES) {
            // The next chunk is copied while the one before is on the wire.
            let mut tensor = Tensor::from_slice(chunk).to_device(group.device());
            if let Some((work, _tensor)) = under_way.take() {
                let work: collective::Work = work;
                work.wait(self.config.time_limit)?;
            }
            let work = group.start_broadcast(&mut tensor, 0)?;
            under_way = Some((work, tensor));
        }
        if let Some((work, _tensor)) = under_way {
            work.wait(self.config.time_limit)?;
        }
        Ok(())
    }
}

fn form_group(config: &PublisherConfig, group: &BroadcastGroup) -> anyhow::Result<ProcessGroup> {
    let (host, port) = config.store.rsplit_once(':').context("the store's address is no host:port")?;
    let store = Store::connect(host, port.parse()?, config.time_limit)?;
    let backend = match config.device {
        Device::Cuda(device) => Backend::Nccl { device },
        _ => Backend::Gloo(GlooAddress::TowardsStore),
    };
    let group = GroupConfig {
        name: format!("weights-{}", group.id),
        rank: 0,
        world_size: group.members.len(),
        backend,
        timeout: config.time_limit,
        join_timeout: config.time_limit,
    };
    Ok(ProcessGroup::new(&store, group)?)
}
