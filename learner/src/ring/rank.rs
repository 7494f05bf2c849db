//! One rank: the OS thread that owns trainer and process group (design D8).
//!
//! Rank 0 takes orders from the ring's loop through a bounded queue and passes each on to the other ranks before it carries
//! it out, so that all ranks do the same in the same order. The other ranks take orders from rank 0 alone. While there is
//! nothing to do rank 0 passes on that there is nothing to do, so that a rank that is gone is noticed and no wait is
//! without a deadline.

use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use anyhow::Context as _;
use collective::{Backend, GlooAddress, GroupConfig, ProcessGroup, Store};
use tch::Kind;
use tokio::sync::mpsc;
use types::link::learner::{RecentSteps, StepMetrics};
use types::{Batch, BatchId, RunId, Sampling};

use super::config::Config;
use crate::checkpoint::Checkpoints;
use crate::ppo::{CriticSource, Trainer, TrainerConfig};

/// Orders that may wait: the coordinator sends two batches ahead.
const ORDERS: usize = 8;
/// How often the other ranks hear from rank 0.
const IDLE: Duration = Duration::from_secs(2);

/// What a rank is to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Learn how the run draws tokens and when it ends.
    Run { run: RunId, sampling: Sampling, last_batch: BatchId },
    /// Train a batch.
    Train(Batch),
    /// Write a checkpoint, unless the newest one holds everything.
    Checkpoint,
    /// Leave.
    Finish,
}

/// What came of it. Only rank 0 says anything.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The trainer is ready; these are its weights.
    Ready(Ready),
    /// A batch is part of the weights.
    Trained { batch: BatchId, metrics: Box<StepMetrics>, buffer: Vec<u8> },
    /// A checkpoint begins.
    Checkpointing,
    /// A checkpoint that holds this batch is complete on disk.
    Checkpointed(BatchId),
    /// It cannot go on.
    Failed(anyhow::Error),
}

/// A trainer that is ready.
#[derive(Debug)]
pub(crate) struct Ready {
    /// The run whose checkpoint it resumed from.
    pub(crate) run: Option<RunId>,
    /// The last batch in its weights.
    pub(crate) trained: BatchId,
    /// What the last steps up to it measured.
    pub(crate) steps: RecentSteps,
    /// Names and shapes of the policy's parameters, in buffer order.
    pub(crate) parameters: Vec<(String, Vec<u64>)>,
    /// Their element type.
    pub(crate) kind: Kind,
    /// The policy's weights.
    pub(crate) buffer: Vec<u8>,
    /// The folder that configuration and tokenizer are in.
    pub(crate) folder: std::path::PathBuf,
}

/// The way to rank 0's thread.
#[derive(Debug, Clone)]
pub(crate) struct RankHandle {
    orders: std_mpsc::SyncSender<Order>,
}

impl RankHandle {
    /// Starts rank 0's thread. `store` is where the ranks meet.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub(crate) fn start(
        config: Config,
        store: Option<Store>,
        outcomes: mpsc::Sender<Outcome>,
    ) -> anyhow::Result<Self> {
        let (orders, inbox) = std_mpsc::sync_channel(ORDERS);
        let work = move || {
            let ended = lead(&config, store, &inbox, &outcomes);
            if let Err(error) = ended {
                // Nobody listening means that the process is ending anyway.
                let _ = outcomes.blocking_send(Outcome::Failed(error));
            }
        };
        std::thread::Builder::new()
            .name("rank 0".to_owned())
            .spawn(work)
            .context("start the rank's thread")?;
        Ok(Self { orders })
    }

    /// Gives an order.
    ///
    /// # Errors
    /// When too many wait, which the coordinator's bound on batches in flight rules out, or the thread is gone.
    pub(crate) fn order(&self, order: Order) -> anyhow::Result<()> {
        self.orders.try_send(order).map_err(|error| match error {
            std_mpsc::TrySendError::Full(_) => {
                anyhow::anyhow!("{ORDERS} orders wait for the trainer already")
            }
            std_mpsc::TrySendError::Disconnected(_) => anyhow::anyhow!("the trainer's thread is gone"),
        })
    }
}

/// Rank 0's life.
fn lead(
    config: &Config,
    store: Option<Store>,
    inbox: &std_mpsc::Receiver<Order>,
    outcomes: &mpsc::Sender<Outcome>,
) -> anyhow::Result<()> {
    let (mut rank, ready) = Rank::prepare(config, store)?;
    outcomes.blocking_send(Outcome::Ready(ready))?;
    loop {
        let order = match inbox.recv_timeout(IDLE) {
            Ok(order) => Some(order),
            Err(std_mpsc::RecvTimeoutError::Timeout) => None,
            // The ring's loop is gone without a word: the others must not wait for us.
            Err(std_mpsc::RecvTimeoutError::Disconnected) => Some(Order::Finish),
        };
        rank.pass_on(order.as_ref())?;
        let Some(order) = order else { continue };
        if !rank.carry_out(order, |outcome| drop(outcomes.blocking_send(outcome)))? {
            return Ok(());
        }
    }
}

/// The life of any other rank: it blocks this thread until rank 0 says that the run is over.
///
/// # Errors
/// When this rank or another one fails.
pub(crate) fn follow(config: &Config, ready: impl FnOnce()) -> anyhow::Result<()> {
    let (host, port) = config.rendezvous.rsplit_once(':').context("rendezvous must be host:port")?;
    let store = Store::connect(host, port.parse()?, config.join_time_limit)?;
    let (mut rank, _) = Rank::prepare(config, Some(store))?;
    tracing::info!(rank = config.rank, world_size = config.world_size, "rank ready");
    ready();
    loop {
        let Some(order) = rank.hear()? else { continue };
        if !rank.carry_out(order, |_| {})? {
            return Ok(());
        }
    }
}

struct Rank {
    trainer: Trainer,
    checkpoints: Checkpoints,
    run: Option<RunId>,
    last_batch: Option<BatchId>,
    /// The last batch in the weights, and in the newest checkpoint.
    trained: BatchId,
    written: BatchId,
    checkpoint_every: u64,
    kind: Kind,
    /// Where the ranks met: on rank 0 the server. A rank that joins, or finds out why an operation failed, still needs it.
    _store: Option<Store>,
}

impl Rank {
    /// Meets the other ranks, loads the models, and goes back to the newest whole checkpoint.
    fn prepare(config: &Config, store: Option<Store>) -> anyhow::Result<(Self, Ready)> {
        let device = config.device.to_torch();
        model::keep_freed_memory();
        if config.threads > 0 {
            tch::set_num_threads(i32::try_from(config.threads)?);
        }
        let group = match (&store, config.world_size) {
            (_, 1) | (None, _) => None,
            (Some(store), _) => Some(meet(config, store, device)?),
        };
        let critic = config.critic.clone().map_or(CriticSource::Policy, CriticSource::Folder);
        let trainer =
            TrainerConfig { ppo: config.ppo.clone(), policy: config.policy.clone(), critic, device };
        let mut trainer = Trainer::new(trainer, group)?;
        let checkpoints = Checkpoints::new(&config.checkpoints, config.keep_checkpoints);
        let resumed = checkpoints.restore_newest(&mut trainer)?;
        let (run, trained) = resumed.map_or((None, BatchId(0)), |info| (Some(info.run), info.batch));
        let kind = config.ppo.dtype.kind();
        let ready = Ready {
            run: run.clone(),
            trained,
            steps: trainer.steps().clone(),
            parameters: model::buffer::parameters(trainer.policy_config()),
            kind,
            buffer: model::buffer::pack(&trainer.policy_flats()?, kind),
            folder: trainer.policy_folder().to_owned(),
        };
        let rank = Self {
            trainer,
            checkpoints,
            run,
            last_batch: None,
            trained,
            written: trained,
            checkpoint_every: config.checkpoint_every,
            kind,
            _store: store,
        };
        Ok((rank, ready))
    }

    /// Carries out an order on this rank; false when it was the last one.
    fn carry_out(&mut self, order: Order, say: impl Fn(Outcome)) -> anyhow::Result<bool> {
        match order {
            Order::Run { run, sampling, last_batch } => {
                self.trainer.set_run(&sampling, last_batch)?;
                (self.run, self.last_batch) = (Some(run), Some(last_batch));
            }
            Order::Train(batch) => {
                let id = batch.id;
                let metrics = Box::new(self.trainer.step(&batch)?);
                self.trained = id;
                let buffer = model::buffer::pack(&self.trainer.policy_flats()?, self.kind);
                say(Outcome::Trained { batch: id, metrics, buffer });
                if id.0.is_multiple_of(self.checkpoint_every) || self.last_batch == Some(id) {
                    self.checkpoint(say)?;
                }
            }
            Order::Checkpoint => self.checkpoint(say)?,
            Order::Finish => return Ok(false),
        }
        Ok(true)
    }

    fn checkpoint(&mut self, say: impl Fn(Outcome)) -> anyhow::Result<()> {
        if self.trained > self.written {
            let run = self.run.clone().context("no checkpoint before the coordinator's welcome")?;
            say(Outcome::Checkpointing);
            self.checkpoints.save(&self.trainer, &run, self.trained)?;
            self.written = self.trained;
        }
        say(Outcome::Checkpointed(self.written));
        Ok(())
    }

    /// Passes an order, or that there is none, on to the other ranks.
    fn pass_on(&self, order: Option<&Order>) -> anyhow::Result<()> {
        if let Some(group) = self.trainer.ranks().group() {
            group.broadcast_bytes(&mut encode(order)?, 0)?;
        }
        Ok(())
    }

    /// Waits for what rank 0 passes on.
    fn hear(&self) -> anyhow::Result<Option<Order>> {
        let group = self.trainer.ranks().group().context("a single rank has nobody to hear from")?;
        let mut bytes = Vec::new();
        group.broadcast_bytes(&mut bytes, 0)?;
        decode(&bytes)
    }
}

fn meet(config: &Config, store: &Store, device: tch::Device) -> anyhow::Result<ProcessGroup> {
    let backend = match device {
        tch::Device::Cuda(device) => Backend::Nccl { device },
        _ => Backend::Gloo(GlooAddress::TowardsStore),
    };
    let group = GroupConfig {
        name: "ranks".to_owned(),
        rank: config.rank,
        world_size: config.world_size,
        backend,
        timeout: config.rank_time_limit,
        join_timeout: config.join_time_limit,
    };
    ProcessGroup::new(store, group).context("meet the other ranks")
}

const IDLE_TAG: u8 = 0;
const RUN_TAG: u8 = 1;
const TRAIN_TAG: u8 = 2;
const CHECKPOINT_TAG: u8 = 3;
const FINISH_TAG: u8 = 4;

/// An order as bytes: a tag and what it carries.
fn encode(order: Option<&Order>) -> anyhow::Result<Vec<u8>> {
    let (tag, content) = match order {
        None => (IDLE_TAG, Vec::new()),
        Some(Order::Run { run, sampling, last_batch }) => {
            (RUN_TAG, serde_json::to_vec(&(run, sampling, last_batch))?)
        }
        Some(Order::Train(batch)) => (TRAIN_TAG, proto::batch_to_bytes(batch.clone())),
        Some(Order::Checkpoint) => (CHECKPOINT_TAG, Vec::new()),
        Some(Order::Finish) => (FINISH_TAG, Vec::new()),
    };
    let mut bytes = vec![tag];
    bytes.extend(content);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> anyhow::Result<Option<Order>> {
    let (tag, content) = bytes.split_first().context("an order without a tag")?;
    Ok(Some(match *tag {
        IDLE_TAG => return Ok(None),
        RUN_TAG => {
            let (run, sampling, last_batch) = serde_json::from_slice(content)?;
            Order::Run { run, sampling, last_batch }
        }
        TRAIN_TAG => Order::Train(proto::batch_from_bytes(content)?),
        CHECKPOINT_TAG => Order::Checkpoint,
        FINISH_TAG => Order::Finish,
        other => anyhow::bail!("an order with the unknown tag {other}"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_being_passed_on() {
        assert!(decode(&encode(None).unwrap()).unwrap().is_none());
        let run = Order::Run {
            run: "r".parse().unwrap(),
            sampling: Sampling { temperature: 0.7, ..Sampling::default() },
            last_batch: BatchId(9),
        };
        let Some(Order::Run { sampling, last_batch, .. }) = decode(&encode(Some(&run)).unwrap()).unwrap()
        else {
            panic!("another order came out");
        };
        assert_eq!((sampling.temperature, last_batch), (0.7, BatchId(9)));
        assert!(matches!(decode(&encode(Some(&Order::Finish)).unwrap()), Ok(Some(Order::Finish))));
        assert!(decode(&[]).is_err());
        assert!(decode(&[77]).is_err());
        assert!(decode(&[TRAIN_TAG, 1, 2, 3]).is_err());
    }
}
