//! The receiving end of the weight plane (design D6): one OS thread that takes part in broadcasts, fills a buffer of its
//! own, and hands over weights only when every hash is right. What the engine uses meanwhile is untouched.

use std::collections::BTreeMap;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use collective::{Backend, GlooAddress, GroupConfig, ProcessGroup, Store};
use engine::{EngineConfig, PolicyWeights};
use model::{ModelConfig, buffer};
use tch::{Device, Kind, Tensor};
use tokio::sync::mpsc;
use types::link::actor::BroadcastGroup;
use types::{BROADCAST_CHUNK_BYTES, BroadcastGroupId, DType, Manifest, MemberId, PolicyVersion};

/// Orders that may wait; one that finds no room is an error that the sender reports.
const ORDERS: usize = 16;
/// Groups that may be forming or standing at a time.
const MAX_GROUPS: usize = 4;

/// What the thread is to do.
#[derive(Debug)]
enum Order {
    /// Connect to a group in the background.
    Join(BroadcastGroup),
    /// A group is connected, or could not be.
    Joined(BroadcastGroupId, anyhow::Result<ProcessGroup>),
    /// Take part in a broadcast.
    Receive(BroadcastGroupId, Manifest),
    /// Check and unpack what was pulled.
    Unpack(Manifest, Bytes),
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum WeightEvent {
    /// Ready to use; every hash was right.
    Arrived {
        /// What they are.
        manifest: Manifest,
        /// The weights, ready for the engine.
        weights: Box<PolicyWeights>,
    },
    /// They did not arrive.
    Failed { version: PolicyVersion, detail: String },
    /// The group stands.
    GroupReady(BroadcastGroupId),
    /// The group could not be formed, or is dead.
    GroupFailed(BroadcastGroupId, String),
}

/// How this actor receives.
#[derive(Debug, Clone)]
pub(crate) struct ReceiverConfig {
    pub(crate) member: MemberId,
    pub(crate) model: ModelConfig,
    pub(crate) engine: EngineConfig,
    /// The deadline of forming a group, and of each chunk of a broadcast.
    pub(crate) time_limit: Duration,
}

/// The way to the thread. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct WeightReceiver {
    orders: std_mpsc::SyncSender<Order>,
}

impl WeightReceiver {
    /// Starts the thread; what comes of the orders goes to `events`.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub(crate) fn start(config: ReceiverConfig, events: mpsc::Sender<WeightEvent>) -> anyhow::Result<Self> {
        let (orders, inbox) = std_mpsc::sync_channel(ORDERS);
        let worker = Worker { config, events, orders: orders.clone(), groups: BTreeMap::new() };
        std::thread::Builder::new()
            .name("weights".to_owned())
            .spawn(move || worker.run(&inbox))
            .context("start the weight receiver's thread")?;
        Ok(Self { orders })
    }

    /// Connects to a group in the background.
    ///
    /// # Errors
    /// When too many orders wait.
    pub(crate) fn join(&self, group: BroadcastGroup) -> anyhow::Result<()> {
        self.order(Order::Join(group))
    }

    /// Takes part in a broadcast.
    ///
    /// # Errors
    /// When too many orders wait.
    pub(crate) fn receive(&self, group: BroadcastGroupId, manifest: Manifest) -> anyhow::Result<()> {
        self.order(Order::Receive(group, manifest))
    }

    /// Checks and unpacks a pulled buffer.
    ///
    /// # Errors
    /// When too many orders wait.
    pub(crate) fn unpack(&self, manifest: Manifest, buffer: Bytes) -> anyhow::Result<()> {
        self.order(Order::Unpack(manifest, buffer))
    }

    fn order(&self, order: Order) -> anyhow::Result<()> {
        self.orders.try_send(order).map_err(|_| anyhow::anyhow!("the weight receiver does not keep up"))
    }
}

struct Worker {
    config: ReceiverConfig,
    events: mpsc::Sender<WeightEvent>,
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
        match order {
            Order::Join(group) => self.join(group),
            Order::Joined(id, Ok(group)) => {
                self.groups.insert(id, group);
                while self.groups.len() > MAX_GROUPS {
                    self.groups.pop_first();
                }
                self.say(WeightEvent::GroupReady(id));
            }
            Order::Joined(id, Err(error)) => self.say(WeightEvent::GroupFailed(id, format!("{error:#}"))),
            Order::Receive(id, manifest) => {
                let received = self.receive(id, &manifest);
                if received.is_err() {
                    // Whatever is wrong, the ranks of this group no longer agree on what comes next.
                    self.groups.remove(&id);
                }
                self.hand_over(manifest, received);
            }
            Order::Unpack(manifest, buffer) => {
                let weights = self.unpack(&manifest, &buffer);
                self.hand_over(manifest, weights);
            }
        }
    }

    fn hand_over(&self, manifest: Manifest, weights: anyhow::Result<PolicyWeights>) {
        self.say(match weights {
            Ok(weights) => WeightEvent::Arrived { manifest, weights: Box::new(weights) },
            Err(error) => WeightEvent::Failed { version: manifest.version, detail: format!("{error:#}") },
        });
    }

    fn say(&self, event: WeightEvent) {
        // Nobody listening means that the actor is ending.
        let _ = self.events.blocking_send(event);
    }

    /// Groups form on a thread of their own, because waiting for the others must not hold up a broadcast.
    fn join(&mut self, group: BroadcastGroup) {
        let (config, orders, id) = (self.config.clone(), self.orders.clone(), group.id);
        let form = move || {
            // When the actor is ending the inbox may be full or gone; the group is dropped with the order.
            let _ = orders.send(Order::Joined(id, form_group(&config, &group)));
        };
        if let Err(error) = std::thread::Builder::new().name(format!("join {id}")).spawn(form) {
            self.say(WeightEvent::GroupFailed(id, format!("no thread to form it: {error}")));
        }
    }

    fn receive(&mut self, id: BroadcastGroupId, manifest: &Manifest) -> anyhow::Result<PolicyWeights> {
        let group = self.groups.get(&id).with_context(|| format!("not a member of broadcast group {id}"))?;
        let total = i64::try_from(manifest.total_bytes()?)?;
        let buffer = Tensor::f_empty([total], (Kind::Uint8, group.device()))?;
        let chunk = i64::try_from(BROADCAST_CHUNK_BYTES)?;
        let mut at = 0;
        while at < total {
            let bytes = chunk.min(total - at);
            group.broadcast(&mut buffer.narrow(0, at, bytes), 0)?;
            at += bytes;
        }
        buffer::with_bytes(&buffer, |bytes| self.unpack(manifest, bytes))
    }

    /// Weights from a buffer that holds exactly what the manifest says.
    fn unpack(&self, manifest: &Manifest, bytes: &[u8]) -> anyhow::Result<PolicyWeights> {
        manifest.verify(bytes)?;
        let kind = buffer_kind(manifest)?;
        let expected = buffer::parameters(&self.config.model);
        let sent = manifest.tensors.iter().map(|entry| (&entry.name, &entry.shape));
        anyhow::ensure!(
            sent.eq(expected.iter().map(|(name, shape)| (name, shape))),
            "the learner's policy has other parameters than this actor's model"
        );
        let weights = buffer::PackedWeights::new(&self.config.model, bytes, kind, Device::Cpu)?;
        Ok(PolicyWeights::prepare(&self.config.model, &weights, manifest.version, &self.config.engine)?)
    }
}

fn form_group(config: &ReceiverConfig, group: &BroadcastGroup) -> anyhow::Result<ProcessGroup> {
    let rank = group.members.iter().position(|member| *member == config.member);
    let rank = rank.with_context(|| format!("{} is not on the list", config.member))?;
    let (host, port) = group.store.rsplit_once(':').context("the store's address is no host:port")?;
    let store = Store::connect(host, port.parse()?, config.time_limit)?;
    let backend = match config.engine.device.to_torch() {
        Device::Cuda(device) => Backend::Nccl { device },
        _ => Backend::Gloo(GlooAddress::TowardsStore),
    };
    let group = GroupConfig {
        name: format!("weights-{}", group.id),
        rank,
        world_size: group.members.len(),
        backend,
        timeout: config.time_limit,
        join_timeout: config.time_limit,
    };
    Ok(ProcessGroup::new(&store, group)?)
}

/// The one element type of a manifest.
fn buffer_kind(manifest: &Manifest) -> anyhow::Result<Kind> {
    let first = manifest.tensors.first().context("the manifest names no tensor")?.dtype;
    let mixed = manifest.tensors.iter().any(|entry| entry.dtype != first);
    anyhow::ensure!(!mixed, "the manifest mixes element types");
    Ok(match first {
        DType::F32 => Kind::Float,
        DType::Bf16 => Kind::BFloat16,
        DType::F16 => Kind::Half,
    })
}
