//! Rank 0's loop between coordinator, trainer and publisher. See the picture at the head of `ring`.

use anyhow::Context as _;
use service::{CancellationToken, LinkEvent, Readiness};
use tokio::sync::mpsc;
use tokio::time::Instant;
use types::link::learner::{
    LearnerCommand, LearnerHello, LearnerPhase, LearnerReport, MeasuredStep, RecentSteps,
};
use types::{Batch, BatchId, Incarnation, Manifest, MemberId, PolicyVersion, RunId};

use super::config::Config;
use super::coordinator_client::CoordinatorLink;
use super::publisher::{PublishEvent, Publisher};
use super::rank::{Order, Outcome, RankHandle};
use crate::metrics;

/// Where actors find this learner.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    /// `host:port` of the store for broadcast groups.
    pub(crate) store: String,
    /// `host:port` of the weight service.
    pub(crate) weights: String,
}

/// The loop with all that it owns.
#[derive(Debug)]
pub(crate) struct RingLoop {
    config: Config,
    member: MemberId,
    incarnation: Incarnation,
    addresses: Addresses,
    link: CoordinatorLink,
    rank: RankHandle,
    publisher: Publisher,
    outcomes: mpsc::Receiver<Outcome>,
    events: mpsc::Receiver<PublishEvent>,
    readiness: Readiness,
    token: CancellationToken,
    /// The run, from the checkpoint or the coordinator's welcome.
    run: Option<RunId>,
    /// The newest weights that can be pulled.
    manifest: Manifest,
    phase: LearnerPhase,
    /// The last batch given to the trainer, that is in the weights, and in a checkpoint.
    ordered: BatchId,
    trained: BatchId,
    checkpointed: BatchId,
    /// What the last steps measured, for a coordinator that has not heard of them.
    measured: RecentSteps,
    /// A checkpoint that is whole, but of weights that the publisher is still describing: said after them.
    unsaid: Option<BatchId>,
    heard: Instant,
    /// Asked to leave: a checkpoint comes first.
    leaving: bool,
}

/// What the loop is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) addresses: Addresses,
    pub(crate) rank: RankHandle,
    pub(crate) publisher: Publisher,
    pub(crate) outcomes: mpsc::Receiver<Outcome>,
    pub(crate) events: mpsc::Receiver<PublishEvent>,
    pub(crate) readiness: Readiness,
    pub(crate) token: CancellationToken,
    pub(crate) run: Option<RunId>,
    pub(crate) trained: BatchId,
    pub(crate) steps: RecentSteps,
    pub(crate) manifest: Manifest,
}

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    Leave,
}

impl RingLoop {
    /// A loop that is not running.
    ///
    /// # Errors
    /// When the learner's name is none.
    pub(crate) fn new(parts: Parts) -> anyhow::Result<Self> {
        let Parts {
            config,
            addresses,
            rank,
            publisher,
            outcomes,
            events,
            readiness,
            token,
            run,
            trained,
            steps,
            manifest,
        } = parts;
        let link = CoordinatorLink::new(config.coordinator.clone(), config.connect_time_limit);
        Ok(Self {
            member: config.member.parse()?,
            incarnation: Incarnation(new_incarnation()),
            addresses,
            link,
            rank,
            publisher,
            outcomes,
            events,
            readiness,
            token,
            run,
            manifest,
            phase: LearnerPhase::Waiting,
            ordered: trained,
            trained,
            checkpointed: trained,
            measured: steps,
            unsaid: None,
            heard: Instant::now(),
            leaving: false,
            config,
        })
    }

    /// Runs until the run is over, or a checkpoint is written after the token was cancelled.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        loop {
            let alive_due = self.heard + self.config.heartbeat_interval;
            let next = tokio::select! {
                event = self.link.next() => self.link_event(event).await?,
                outcome = self.outcomes.recv() => self.outcome(outcome.context("the trainer is gone")?).await?,
                event = self.events.recv() => self.published(event.context("the publisher is gone")?).await?,
                () = tokio::time::sleep_until(alive_due), if self.link.is_connected() => {
                    self.report(LearnerReport::Alive(self.phase)).await;
                    Next::GoOn
                }
                () = self.token.cancelled(), if !self.leaving => self.begin_to_leave()?,
            };
            if next == Next::Leave {
                break;
            }
        }
        // The other ranks leave with rank 0's thread.
        let _ = self.rank.order(Order::Finish);
        self.token.cancel();
        Ok(())
    }

    async fn report(&mut self, report: LearnerReport) {
        self.heard = Instant::now();
        self.link.report(report).await;
    }

    fn begin_to_leave(&mut self) -> anyhow::Result<Next> {
        self.leaving = true;
        if self.checkpointed >= self.trained && self.unsaid.is_none() && self.ordered == self.trained {
            return Ok(Next::Leave);
        }
        tracing::info!(trained = self.trained.0, "writing a checkpoint before leaving");
        self.rank.order(Order::Checkpoint)?;
        Ok(Next::GoOn)
    }

    async fn link_event(&mut self, event: LinkEvent<LearnerCommand>) -> anyhow::Result<Next> {
        let mut event = Some(event);
        while let Some(happened) = event.take() {
            match happened {
                LinkEvent::Due => {
                    let hello = self.hello();
                    event = self.link.connect(hello).await;
                }
                LinkEvent::Command(command) => return self.command(command).await,
                LinkEvent::Lost(reason) => {
                    tracing::info!(reason, "coordinator lost; trying again");
                    self.readiness.set(false);
                }
                LinkEvent::Refused(reason) => anyhow::bail!("the coordinator refuses this learner: {reason}"),
                LinkEvent::GaveUp(reason) => anyhow::bail!(reason),
            }
        }
        Ok(Next::GoOn)
    }

    fn hello(&self) -> LearnerHello {
        // What the newest weights hold that can be pulled; a batch whose weights are still being described is reported when
        // they are.
        let trained = BatchId(self.manifest.version.0);
        LearnerHello {
            member: self.member.clone(),
            incarnation: self.incarnation,
            run: self.run.clone(),
            world_size: u32::try_from(self.config.world_size).unwrap_or(u32::MAX),
            trained,
            checkpointed: self.checkpointed.min(trained),
            manifest: self.manifest.clone(),
            steps: self.measured.up_to(trained),
            store: self.addresses.store.clone(),
            weights: self.addresses.weights.clone(),
        }
    }

    async fn command(&mut self, command: LearnerCommand) -> anyhow::Result<Next> {
        match command {
            LearnerCommand::Welcome { run, last_batch, sampling } => {
                tracing::info!(%run, trained = self.trained.0, last_batch = last_batch.0, "welcome");
                self.readiness.set(true);
                self.run = Some(run.clone());
                self.rank.order(Order::Run { run, sampling, last_batch })?;
            }
            LearnerCommand::Batch(batch) => self.train(batch)?,
            LearnerCommand::JoinBroadcastGroup(group) => {
                let id = group.id;
                if let Err(error) = self.publisher.join(group) {
                    let detail = format!("{error:#}");
                    self.report(LearnerReport::BroadcastGroupFailed { group: id, detail }).await;
                }
            }
            LearnerCommand::Publish { group, version } => {
                if let Err(error) = self.publisher.broadcast(group, version) {
                    let detail = format!("{error:#}");
                    self.report(LearnerReport::PublishFailed { group, version, detail }).await;
                }
            }
            LearnerCommand::Checkpoint => self.rank.order(Order::Checkpoint)?,
            LearnerCommand::Finish => {
                tracing::info!("the run is over");
                return Ok(Next::Leave);
            }
        }
        Ok(Next::GoOn)
    }

    /// Gives a batch to the trainer, unless it has it already: after a reconnection the coordinator sends again what it does
    /// not know to be trained.
    fn train(&mut self, batch: Batch) -> anyhow::Result<()> {
        if batch.id <= self.ordered || self.leaving {
            return Ok(());
        }
        anyhow::ensure!(
            batch.id == self.ordered.next(),
            "batch {} came, but {} is next",
            batch.id,
            self.ordered.next()
        );
        self.ordered = batch.id;
        self.phase = LearnerPhase::Training;
        self.rank.order(Order::Train(batch))
    }

    async fn outcome(&mut self, outcome: Outcome) -> anyhow::Result<Next> {
        match outcome {
            Outcome::Ready(_) => {}
            Outcome::Trained { batch, metrics, buffer } => {
                metrics::step(&metrics);
                self.trained = batch;
                self.phase =
                    if self.ordered == batch { LearnerPhase::Waiting } else { LearnerPhase::Training };
                self.measured.push(MeasuredStep { batch, metrics: *metrics });
                self.publisher.snapshot(PolicyVersion(batch.0), buffer);
            }
            Outcome::Checkpointing => self.phase = LearnerPhase::Checkpointing,
            Outcome::Checkpointed(batch) => {
                tracing::info!(batch = batch.0, "checkpoint complete");
                metrics::checkpointed(batch);
                self.checkpointed = batch;
                let idle = self.ordered == self.trained;
                self.phase = if idle { LearnerPhase::Waiting } else { LearnerPhase::Training };
                self.unsaid = Some(batch);
                return Ok(self.say_checkpointed().await);
            }
            Outcome::Failed(error) => return Err(error),
        }
        Ok(Next::GoOn)
    }

    /// Says that a checkpoint is whole, once the batches in it have been reported: the coordinator forgets them then.
    async fn say_checkpointed(&mut self) -> Next {
        if let Some(batch) = self.unsaid
            && batch.0 <= self.manifest.version.0
        {
            self.unsaid = None;
            self.report(LearnerReport::Checkpointed(batch)).await;
            if self.leaving && self.ordered == self.trained {
                return Next::Leave;
            }
        }
        Next::GoOn
    }

    async fn published(&mut self, event: PublishEvent) -> anyhow::Result<Next> {
        let report = match event {
            PublishEvent::Ready(manifest) => {
                self.manifest = manifest.clone();
                let batch = BatchId(manifest.version.0);
                if let Some(metrics) = self.measured.of(batch) {
                    let metrics = Box::new(metrics.clone());
                    self.report(LearnerReport::Trained { batch, manifest, metrics }).await;
                }
                return Ok(self.say_checkpointed().await);
            }
            PublishEvent::Broken(detail) => anyhow::bail!("the new weights cannot be described: {detail}"),
            PublishEvent::GroupReady(id) => LearnerReport::BroadcastGroupReady(id),
            PublishEvent::GroupFailed(group, detail) => LearnerReport::BroadcastGroupFailed { group, detail },
            PublishEvent::Sent { group, version, seconds } => {
                metrics::broadcast(seconds);
                LearnerReport::Published { group, version, seconds }
            }
            PublishEvent::NotSent { group, version, detail } => {
                tracing::warn!(%group, %version, detail, "broadcast failed");
                metrics::broadcast_failed();
                LearnerReport::PublishFailed { group, version, detail }
            }
        };
        self.report(report).await;
        Ok(Next::GoOn)
    }
}

/// A number that no other life of this learner has: the time it began, in microseconds.
fn new_incarnation() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
