//! One rank: the OS thread that owns trainer and process group (docs/decisions.md, D8).
//!
//! Rank 0 takes commands from the ring's loop through a bounded queue and passes each on to the other ranks
//! before it carries it out, so that all ranks do the same in the same order. The other ranks take commands
//! from rank 0 alone. While there is nothing to do rank 0 passes on that there is nothing to do, so that a
//! rank that is gone is noticed and no wait is without a deadline.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use collective::{Backend, GroupConfig, ProcessGroup, Store};
use model::ModelConfig;
use service::Pulse;
use tch::Kind;
use tokio::sync::mpsc;
use tokio::time::Instant;
use types::link::learner::{RecentSteps, StepMetrics};
use types::{BatchId, HostPort, RunId};

use super::command::{RankCommand, RunTerms, decode, encode};
use super::config::Config;
use crate::checkpoint::{self, Checkpoints, PendingCheckpoint, WrittenCheckpoint};
use crate::error::Error;
use crate::metrics;
use crate::ppo::{CriticSource, Trainer, TrainerConfig};

/// Commands that may wait: the coordinator sends two batches ahead.
const COMMAND_CAPACITY: usize = 8;
/// Events that may wait for the ring's loop.
const EVENT_CAPACITY: usize = 16;
/// How often the other ranks hear from an idle rank 0.
const IDLE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a rank that waits for a command may hear nothing, not even that there is none, before it counts
/// as stuck (`/health`).
const IDLE_LIMIT: Duration = Duration::from_secs(300);
/// How long a command may take before its rank counts as stuck: this, or so many times the longest until
/// then.
const COMMAND_LIMIT: Duration = Duration::from_secs(3600);
const COMMAND_FACTOR: u32 = 5;
/// How soon an idle rank 0 looks whether a checkpoint that is being written is whole.
const WRITING_INTERVAL: Duration = Duration::from_millis(50);
/// When a checkpoint that found no room is tried again.
const PUT_OFF_DELAY: Duration = Duration::from_secs(10);

/// What rank 0 tells. The other ranks tell nothing.
#[derive(Debug)]
pub(crate) enum RankEvent {
    /// The trainer is ready.
    Ready(Box<Ready>),
    /// A batch is part of the weights.
    Trained { batch: BatchId, metrics: Box<StepMetrics>, buffer: Vec<u8> },
    /// A checkpoint begins.
    Checkpointing,
    /// A checkpoint that holds this batch is complete on disk.
    Checkpointed(BatchId),
    /// There was no room for a checkpoint; it is tried again.
    CheckpointPutOff,
    /// It cannot go on.
    Failed(anyhow::Error),
}

/// A trainer that is ready.
#[derive(Debug)]
pub(crate) struct Ready {
    /// Where training goes on.
    pub(crate) resumed: Resumed,
    /// The policy's network.
    pub(crate) model: ModelConfig,
    /// The element type of the buffers.
    pub(crate) kind: Kind,
    /// The policy's weights.
    pub(crate) buffer: Vec<u8>,
    /// The folder that configuration and tokenizer are in.
    pub(crate) folder: PathBuf,
}

/// Where training goes on: after the newest checkpoint, or at the beginning.
#[derive(Debug, Default)]
pub(crate) struct Resumed {
    /// The run of the checkpoint.
    pub(crate) run: Option<RunId>,
    /// The last batch in the weights.
    pub(crate) trained: BatchId,
    /// What the last steps up to it measured.
    pub(crate) steps: RecentSteps,
}

/// The way to rank 0's thread, and what it tells.
#[derive(Debug)]
pub(crate) struct RankHandle {
    commands: std_mpsc::SyncSender<RankCommand>,
    events: mpsc::Receiver<RankEvent>,
}

impl RankHandle {
    /// Starts rank 0's thread, which ends when the handle is dropped, behind the command that it carries out
    /// then. `store` is where the ranks meet; a rank that is alone has none.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub(crate) fn start(
        config: Config,
        store: Option<Store>,
        pulse: Pulse,
    ) -> anyhow::Result<(Self, JoinHandle<()>)> {
        let (commands, inbox) = std_mpsc::sync_channel(COMMAND_CAPACITY);
        let (event_sender, events) = mpsc::channel(EVENT_CAPACITY);
        let work = move || {
            if let Err(error) = lead(&config, store, &pulse, &inbox, &event_sender) {
                // Nobody listening means that the process is ending anyway.
                let _ = event_sender.blocking_send(RankEvent::Failed(error));
            }
        };
        let thread = std::thread::Builder::new().name("rank 0".to_owned()).spawn(work);
        Ok((Self { commands, events }, thread.context("start the rank's thread")?))
    }

    /// Gives a command.
    ///
    /// # Errors
    /// When too many wait, which the coordinator's bound on batches in flight rules out, or the thread is
    /// gone.
    pub(crate) fn command(&self, command: RankCommand) -> anyhow::Result<()> {
        self.commands.try_send(command).map_err(|error| match error {
            std_mpsc::TrySendError::Full(_) => {
                anyhow::anyhow!("{COMMAND_CAPACITY} commands wait for the trainer already")
            }
            std_mpsc::TrySendError::Disconnected(_) => anyhow::anyhow!("the trainer's thread is gone"),
        })
    }

    /// Why the thread is gone, where that is what `error` comes from: its own error, which it told last.
    pub(crate) fn cause_of(&mut self, error: anyhow::Error) -> anyhow::Error {
        while let Ok(event) = self.events.try_recv() {
            if let RankEvent::Failed(cause) = event {
                return cause;
            }
        }
        error
    }

    /// What the thread tells next. The future may be dropped at any time.
    ///
    /// # Errors
    /// When the thread is gone.
    pub(crate) async fn next_event(&mut self) -> anyhow::Result<RankEvent> {
        self.events.recv().await.context("the trainer is gone")
    }
}

/// What rank 0's thread does, until it is told to finish.
fn lead(
    config: &Config,
    store: Option<Store>,
    pulse: &Pulse,
    inbox: &std_mpsc::Receiver<RankCommand>,
    events: &mpsc::Sender<RankEvent>,
) -> anyhow::Result<()> {
    let (mut rank, ready) = Rank::prepare(config, store)?;
    events.blocking_send(RankEvent::Ready(Box::new(ready)))?;
    rank.events = Some(events.clone());
    let mut watch = Watch::new(pulse);
    loop {
        watch.idle();
        let command = if rank.is_checkpoint_due() {
            Some(RankCommand::Checkpoint)
        } else {
            let interval = if rank.pending.is_some() { WRITING_INTERVAL } else { IDLE_INTERVAL };
            match inbox.recv_timeout(interval) {
                Ok(command) => Some(command),
                // While nothing is to be trained nothing is gained by waiting any longer.
                Err(std_mpsc::RecvTimeoutError::Timeout) if rank.is_written() => {
                    Some(RankCommand::Checkpoint)
                }
                Err(std_mpsc::RecvTimeoutError::Timeout) => None,
                // The ring's loop is gone without a word: the others must not wait for us.
                Err(std_mpsc::RecvTimeoutError::Disconnected) => Some(RankCommand::Finish),
            }
        };
        rank.pass_on(command.as_ref())?;
        let Some(command) = command else { continue };
        if watch.over(|| rank.carry_out(command))?.is_break() {
            return Ok(());
        }
    }
}

/// What any other rank does: it blocks this thread until rank 0 says that the run is over.
///
/// # Errors
/// When this rank or another one fails.
pub(crate) fn follow(config: &Config, pulse: &Pulse, ready: impl FnOnce()) -> anyhow::Result<()> {
    let rendezvous: HostPort = config.rendezvous.parse()?;
    let store = Store::connect(&rendezvous.host, rendezvous.port, config.join_timeout)?;
    let (mut rank, _) = Rank::prepare(config, Some(store))?;
    tracing::info!(rank = config.rank, world_size = config.world_size, "rank ready");
    ready();
    let mut watch = Watch::new(pulse);
    loop {
        watch.idle();
        let Some(command) = rank.hear()? else { continue };
        if watch.over(|| rank.carry_out(command))?.is_break() {
            return Ok(());
        }
    }
}

/// Beats the pulse of a rank's work.
struct Watch<'a> {
    pulse: &'a Pulse,
    /// The longest command until now.
    longest: Duration,
}

impl<'a> Watch<'a> {
    fn new(pulse: &'a Pulse) -> Self {
        Self { pulse, longest: Duration::ZERO }
    }

    /// The rank waits for a command, and hears now and then that there is none.
    fn idle(&self) {
        self.pulse.beat(IDLE_LIMIT);
    }

    /// The rank carries out a command.
    fn over<T>(&mut self, command: impl FnOnce() -> T) -> T {
        self.pulse.beat(COMMAND_LIMIT.max(self.longest * COMMAND_FACTOR));
        let begun = Instant::now();
        let done = command();
        self.longest = self.longest.max(begun.elapsed());
        self.idle();
        done
    }
}

/// Whether a checkpoint has its name now; otherwise it was put off.
struct IsWhole(bool);

struct Rank {
    trainer: Trainer,
    checkpoints: Checkpoints,
    run: Option<RunId>,
    last_batch: Option<BatchId>,
    /// The last batch in the weights, and in the newest checkpoint.
    trained: BatchId,
    written: BatchId,
    checkpoint_every: u64,
    /// A checkpoint that is being written beside the next step. It is finished behind that step, so that
    /// there is one at most.
    pending: Option<PendingCheckpoint>,
    /// A checkpoint found no room on the disk, and is tried again then. Rank 0 decides when.
    put_off_until: Option<Instant>,
    kind: Kind,
    /// Where rank 0 tells what comes of its commands.
    events: Option<mpsc::Sender<RankEvent>>,
    /// Where the ranks met: on rank 0 the server. A rank that joins, or finds out why an operation failed,
    /// still needs it.
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
        let group = match &store {
            Some(store) if config.world_size > 1 => Some(meet(config, store, device)?),
            _ => None,
        };
        let critic = config.critic.clone().map_or(CriticSource::Policy, CriticSource::Folder);
        let trainer =
            TrainerConfig { ppo: config.ppo.clone(), policy: config.policy.clone(), critic, device };
        let mut trainer = Trainer::new(trainer, group)?;
        let checkpoints = Checkpoints::new(&config.checkpoints, config.keep_checkpoints);
        let resumed = match checkpoints.restore_newest(&mut trainer)? {
            Some(found) => {
                Resumed { run: Some(found.run), trained: found.batch, steps: trainer.steps().clone() }
            }
            None => Resumed { steps: trainer.steps().clone(), ..Resumed::default() },
        };
        let kind = config.ppo.dtype_on(device.into()).kind();
        let rank = Self {
            checkpoints,
            run: resumed.run.clone(),
            last_batch: None,
            trained: resumed.trained,
            written: resumed.trained,
            checkpoint_every: config.checkpoint_every,
            pending: None,
            put_off_until: None,
            kind,
            events: None,
            _store: store,
            trainer,
        };
        let ready = Ready {
            resumed,
            model: rank.trainer.policy_config().clone(),
            kind,
            buffer: rank.buffer()?,
            folder: rank.trainer.policy_folder().to_owned(),
        };
        Ok((rank, ready))
    }

    /// Carries out a command on this rank; breaks after the last one.
    fn carry_out(&mut self, command: RankCommand) -> anyhow::Result<ControlFlow<()>> {
        match command {
            RankCommand::Begin(RunTerms { run, sampling, last_batch, writer }) => {
                self.trainer.set_run(&sampling, last_batch)?;
                let is_first = self.trainer.ranks().rank() == 0;
                match self.checkpoints.claim(writer, is_first) {
                    Err(error) if error.is_disk_full() => tracing::warn!(%error, "no room to say who writes"),
                    claimed => claimed?,
                }
                (self.run, self.last_batch) = (Some(run), Some(last_batch));
            }
            RankCommand::Train(batch) => {
                let mut metrics = Box::new(self.trainer.step(&batch).map_err(given_up)?);
                self.trained = batch.id();
                let published = Instant::now();
                let buffer = self.buffer()?;
                metrics.publish_seconds = published.elapsed().as_secs_f64();
                self.tell(RankEvent::Trained { batch: batch.id(), metrics, buffer });
                self.finish_checkpoint()?;
                if self.last_batch == Some(batch.id()) {
                    self.checkpoint()?;
                } else if batch.id().0.is_multiple_of(self.checkpoint_every) {
                    self.begin_checkpoint()?;
                }
            }
            RankCommand::Checkpoint => self.checkpoint()?,
            RankCommand::KeepBest(batch) => self.keep_best(batch)?,
            RankCommand::Finish => {
                self.finish_checkpoint()?;
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The policy's weights, as rank 0 publishes them; nothing on other ranks.
    fn buffer(&self) -> crate::Result<Vec<u8>> {
        self.trainer.published(self.kind)
    }

    /// Brings everything that was trained into a checkpoint, and waits until that is whole.
    fn checkpoint(&mut self) -> anyhow::Result<()> {
        match self.finish_checkpoint()? {
            Some(IsWhole(true)) if self.written == self.trained => {}
            Some(IsWhole(false)) => {}
            None if self.written == self.trained => self.tell(RankEvent::Checkpointed(self.written)),
            Some(IsWhole(true)) | None => {
                self.begin_checkpoint()?;
                self.finish_checkpoint()?;
            }
        }
        Ok(())
    }

    /// Copies what a checkpoint holds and begins to write it, beside the next step. None is being written.
    fn begin_checkpoint(&mut self) -> anyhow::Result<()> {
        let run = self.run.clone().context("no checkpoint before the coordinator's welcome")?;
        self.tell(RankEvent::Checkpointing);
        match self.checkpoints.start(&self.trainer, &run, self.trained) {
            // Every rank knows of it, and nothing of it is left.
            Err(Error::Checkpoint(error)) if error.is_disk_full() => self.put_off(&error),
            started => self.pending = Some(started?),
        }
        Ok(())
    }

    /// Waits until the checkpoint that is being written is whole, or put off; `None` where there is none.
    fn finish_checkpoint(&mut self) -> anyhow::Result<Option<IsWhole>> {
        let Some(pending) = self.pending.take() else { return Ok(None) };
        let batch = pending.batch();
        match self.checkpoints.finish(&self.trainer, pending) {
            Err(Error::Checkpoint(error)) if error.is_disk_full() => {
                self.put_off(&error);
                return Ok(Some(IsWhole(false)));
            }
            written => {
                let WrittenCheckpoint { bytes, time, .. } = written?;
                metrics::checkpoint_written(bytes, time.as_secs_f64());
            }
        }
        (self.written, self.put_off_until) = (batch, None);
        self.tell(RankEvent::Checkpointed(batch));
        Ok(Some(IsWhole(true)))
    }

    /// Whether this rank's part of the checkpoint that is being written is on the disk.
    fn is_written(&self) -> bool {
        self.pending.as_ref().is_some_and(PendingCheckpoint::is_written)
    }

    /// Keeps a checkpoint because no evaluation was better than its. Written first where the weights are
    /// still those.
    fn keep_best(&mut self, batch: BatchId) -> anyhow::Result<()> {
        self.finish_checkpoint()?;
        if self.trained == batch && self.written < batch {
            self.checkpoint()?;
        }
        if self.trainer.ranks().rank() > 0 {
            return Ok(());
        }
        match self.checkpoints.keep_best(batch) {
            Ok(true) => tracing::info!(batch = batch.0, "best checkpoint so far: kept"),
            Ok(false) => tracing::warn!(
                batch = batch.0,
                "the best version so far has no checkpoint: set coordinator.eval.every to a multiple of checkpoint_every"
            ),
            Err(error) if error.is_disk_full() => tracing::warn!(%error, "no room to say which is the best"),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn is_checkpoint_due(&self) -> bool {
        self.put_off_until.is_some_and(|moment| moment <= Instant::now())
    }

    /// There is no room for a checkpoint: training goes on, and it is tried again after a while.
    fn put_off(&mut self, error: &checkpoint::Error) {
        self.put_off_until = Some(Instant::now() + PUT_OFF_DELAY);
        let path = self.checkpoints.folder();
        tracing::warn!(
            path = %path.display(),
            free_bytes = service::free_bytes(path).unwrap_or(0),
            trained = self.trained.0,
            written = self.written.0,
            again_in_seconds = PUT_OFF_DELAY.as_secs(),
            %error,
            "no room for a checkpoint: training goes on without"
        );
        self.tell(RankEvent::CheckpointPutOff);
    }

    fn tell(&self, event: RankEvent) {
        if let Some(events) = &self.events {
            // Nobody listening means that the process is ending.
            let _ = events.blocking_send(event);
        }
    }

    /// Passes a command, or that there is none, on to the other ranks.
    fn pass_on(&self, command: Option<&RankCommand>) -> anyhow::Result<()> {
        if let Some(group) = self.trainer.ranks().group() {
            group.broadcast_bytes(&mut encode(command)?, 0)?;
        }
        Ok(())
    }

    /// Waits for what rank 0 passes on.
    fn hear(&self) -> anyhow::Result<Option<RankCommand>> {
        let group = self.trainer.ranks().group().context("a single rank has nobody to hear from")?;
        let mut bytes = Vec::new();
        group.broadcast_bytes(&mut bytes, 0)?;
        Ok(decode(&bytes)?)
    }
}

/// Training that has diverged goes the same way again: nobody is to start it anew.
fn given_up(error: crate::Error) -> anyhow::Error {
    match error {
        crate::Error::Diverged { .. } => service::Hopeless(error.to_string()).into(),
        error => error.into(),
    }
}

fn meet(config: &Config, store: &Store, device: tch::Device) -> anyhow::Result<ProcessGroup> {
    let group = GroupConfig {
        name: "ranks".to_owned(),
        rank: config.rank,
        world_size: config.world_size,
        backend: Backend::for_device(device),
        timeout: config.rank_timeout,
        join_timeout: config.join_timeout,
    };
    ProcessGroup::new(store, group).context("meet the other ranks")
}
