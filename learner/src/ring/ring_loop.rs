//! Rank 0's loop between coordinator, trainer and publisher. See the picture at the head of `ring`.

use std::ops::ControlFlow;

use anyhow::Context as _;
use service::{BadInput, CancellationToken, LinkEvent, Readiness, Security};
use tokio::time::Instant;
use types::link::learner::{LearnerCommand, LearnerHello, LearnerReport};
use types::{Batch, BatchId, Incarnation, Manifest, MemberId, PolicyVersion, RunId, Vocabulary};
use weights::{GroupEvent, PublishEvent, Publisher};

use super::command::{RankCommand, RunTerms};
use super::config::Config;
use super::coordinator_client::CoordinatorLink;
use super::progress::Progress;
use super::rank::{RankEvent, RankHandle, Resumed};
use crate::checkpoint::Writer;
use crate::metrics;

/// Where actors find this learner.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    /// `host:port` of the store for broadcast groups.
    pub(crate) store: String,
    /// `host:port` of the weight service.
    pub(crate) weights: String,
}

/// What the loop is told and given by its process.
#[derive(Debug)]
pub(crate) struct RingContext {
    pub(crate) member: MemberId,
    pub(crate) config: Config,
    pub(crate) addresses: Addresses,
    pub(crate) readiness: Readiness,
    /// Cancelled with the process.
    pub(crate) token: CancellationToken,
    pub(crate) security: Security,
}

/// What actors get from here before the first step.
#[derive(Debug)]
pub(crate) struct Offered {
    /// The weights.
    pub(crate) manifest: Manifest,
    /// That of the policy's tokenizer.
    pub(crate) vocabulary: Vocabulary,
}

/// The loop with all that it owns.
#[derive(Debug)]
pub(crate) struct RingLoop {
    context: RingContext,
    incarnation: Incarnation,
    link: CoordinatorLink,
    rank: RankHandle,
    publisher: Publisher,
    /// The run, from the checkpoint or the coordinator's welcome.
    run: Option<RunId>,
    /// The newest weights that can be pulled.
    manifest: Manifest,
    vocabulary: Vocabulary,
    progress: Progress,
    /// When the coordinator last heard from here.
    reported_at: Instant,
    /// Asked to leave: a checkpoint comes first.
    leaving: bool,
}

impl RingLoop {
    /// A loop that is not running, over a trainer that is ready and the description of its weights.
    pub(crate) fn new(
        context: RingContext,
        rank: RankHandle,
        publisher: Publisher,
        resumed: Resumed,
        offered: Offered,
    ) -> Self {
        let Offered { manifest, vocabulary } = offered;
        let config = &context.config;
        metrics::checkpoint_every(config.checkpoint_every);
        Self {
            link: CoordinatorLink::new(
                config.coordinator.clone(),
                context.security.clone(),
                config.connect_timeout,
            ),
            incarnation: Incarnation(service::new_incarnation()),
            rank,
            publisher,
            run: resumed.run,
            manifest,
            vocabulary,
            progress: Progress::new(resumed.trained, resumed.steps),
            reported_at: Instant::now(),
            leaving: false,
            context,
        }
    }

    /// Runs until the run is over, or a checkpoint is written after the token was cancelled.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let ended = self.run_to_the_end().await;
        ended.map_err(|error| self.rank.cause_of(error))
    }

    async fn run_to_the_end(&mut self) -> anyhow::Result<()> {
        loop {
            let alive_due = self.reported_at + self.context.config.heartbeat_interval;
            let flow = tokio::select! {
                event = self.link.next() => self.link_event(event).await?,
                event = self.rank.next_event() => self.rank_event(event?).await?,
                event = self.publisher.next_event() => {
                    self.publish_event(event.context("the publisher is gone")?).await?
                }
                () = tokio::time::sleep_until(alive_due), if self.link.is_connected() => {
                    self.report(LearnerReport::Alive(self.progress.phase())).await;
                    ControlFlow::Continue(())
                }
                () = self.context.token.cancelled(), if !self.leaving => self.begin_to_leave()?,
            };
            if flow.is_break() {
                break;
            }
        }
        // The other ranks leave with rank 0's thread.
        let _ = self.rank.command(RankCommand::Finish);
        self.context.token.cancel();
        Ok(())
    }

    async fn report(&mut self, report: LearnerReport) {
        self.reported_at = Instant::now();
        self.link.report(report).await;
    }

    fn begin_to_leave(&mut self) -> anyhow::Result<ControlFlow<()>> {
        self.leaving = true;
        if self.progress.is_checkpointed() {
            return Ok(ControlFlow::Break(()));
        }
        tracing::info!(trained = self.progress.trained().0, "writing a checkpoint before leaving");
        self.rank.command(RankCommand::Checkpoint)?;
        Ok(ControlFlow::Continue(()))
    }

    async fn link_event(&mut self, event: LinkEvent<LearnerCommand>) -> anyhow::Result<ControlFlow<()>> {
        match event {
            LinkEvent::Due => {
                let hello = self.hello();
                self.link.connect(hello).await;
            }
            LinkEvent::Command(command) => return self.command(command).await,
            LinkEvent::Lost(reason) => {
                tracing::info!(reason, "coordinator lost; trying again");
                self.context.readiness.set(false);
            }
            LinkEvent::Refused(reason) => {
                let problem = format!("the coordinator refuses this learner: {reason}");
                return Err(BadInput(problem).into());
            }
            LinkEvent::GaveUp(reason) => anyhow::bail!(reason),
        }
        Ok(ControlFlow::Continue(()))
    }

    fn hello(&self) -> LearnerHello {
        // What the newest weights hold that can be pulled; a batch whose weights are still being described is
        // reported when they are.
        let trained = BatchId(self.manifest.version().0);
        let RingContext { member, config, addresses, .. } = &self.context;
        LearnerHello {
            member: member.clone(),
            incarnation: self.incarnation,
            run: self.run.clone(),
            world_size: u32::try_from(config.world_size).unwrap_or(u32::MAX),
            trained,
            checkpointed: self.progress.checkpointed().min(trained),
            manifest: self.manifest.clone(),
            steps: self.progress.steps().up_to(trained),
            store: addresses.store.clone(),
            weights: addresses.weights.clone(),
            vocabulary: Some(self.vocabulary.clone()),
            gpu: config.device.gpu_name(),
        }
    }

    async fn command(&mut self, command: LearnerCommand) -> anyhow::Result<ControlFlow<()>> {
        match command {
            LearnerCommand::Welcome { run, last_batch, sampling, term, run_began } => {
                tracing::info!(
                    %run,
                    %term,
                    trained = self.progress.trained().0,
                    last_batch = last_batch.0,
                    "welcome"
                );
                self.context.readiness.set(true);
                self.run = Some(run.clone());
                let writer = Writer { term, incarnation: self.incarnation, run_began };
                self.rank.command(RankCommand::Begin(RunTerms { run, sampling, last_batch, writer }))?;
            }
            LearnerCommand::Batch(batch) => self.train(batch)?,
            LearnerCommand::JoinBroadcastGroup(group) => {
                let id = group.id;
                if let Err(error) = self.publisher.join(group) {
                    self.group_event(GroupEvent::Failed { group: id, error }).await;
                }
            }
            LearnerCommand::Publish { group, version } => {
                if let Err(error) = self.publisher.broadcast(group, version) {
                    let detail = error.to_string();
                    self.report(LearnerReport::PublishFailed { group, version, detail }).await;
                }
            }
            LearnerCommand::LeaveBroadcastGroup(group) => {
                if let Err(error) = self.publisher.leave(group) {
                    tracing::warn!(%group, %error, "broadcast group not left; its timeout ends it");
                }
            }
            LearnerCommand::Checkpoint => self.rank.command(RankCommand::Checkpoint)?,
            LearnerCommand::KeepBest(batch) => self.rank.command(RankCommand::KeepBest(batch))?,
            LearnerCommand::Finish => {
                tracing::info!("the run is over");
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Gives a batch to the trainer, unless it has it already: after a reconnection the coordinator sends
    /// again what it does not know to be trained.
    fn train(&mut self, batch: Batch) -> anyhow::Result<()> {
        if self.progress.has_begun(batch.id()) || self.leaving {
            return Ok(());
        }
        self.progress.begin(batch.id())?;
        self.rank.command(RankCommand::Train(batch))
    }

    async fn rank_event(&mut self, event: RankEvent) -> anyhow::Result<ControlFlow<()>> {
        match event {
            RankEvent::Ready(_) => {}
            RankEvent::Trained { batch, metrics, buffer } => {
                metrics::step(&metrics);
                self.progress.trained_batch(batch, *metrics);
                self.publisher.keep(PolicyVersion(batch.0), buffer);
            }
            RankEvent::Checkpointing => self.progress.begin_checkpoint(),
            RankEvent::Checkpointed(batch) => {
                tracing::info!(batch = batch.0, "checkpoint complete");
                metrics::checkpointed(batch);
                self.progress.wrote_checkpoint(batch);
                return Ok(self.report_checkpoint().await);
            }
            RankEvent::CheckpointPutOff => {
                metrics::checkpoint_put_off();
                self.progress.put_off_checkpoint();
            }
            RankEvent::Failed(error) => return Err(error),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Says that a checkpoint is whole, once the batches in it have been reported: the coordinator forgets
    /// them then.
    async fn report_checkpoint(&mut self) -> ControlFlow<()> {
        let Some(batch) = self.progress.take_checkpoint_to_report(BatchId(self.manifest.version().0)) else {
            return ControlFlow::Continue(());
        };
        self.report(LearnerReport::Checkpointed(batch)).await;
        if self.leaving && self.progress.is_idle() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    async fn publish_event(&mut self, event: PublishEvent) -> anyhow::Result<ControlFlow<()>> {
        match event {
            PublishEvent::Kept(manifest) => {
                self.manifest = manifest.clone();
                let batch = BatchId(manifest.version().0);
                if let Some(metrics) = self.progress.steps().of(batch) {
                    let metrics = Box::new(metrics.clone());
                    self.report(LearnerReport::Trained { batch, manifest, metrics }).await;
                }
                return Ok(self.report_checkpoint().await);
            }
            PublishEvent::Refused { version, error } => {
                anyhow::bail!("the weights of {version} cannot be described: {error}")
            }
            PublishEvent::Sent { group, version, took } => {
                let seconds = took.as_secs_f64();
                metrics::broadcast(seconds);
                self.report(LearnerReport::Published { group, version, seconds }).await;
            }
            PublishEvent::NotSent { group, version, error } => {
                tracing::warn!(%group, %version, %error, "broadcast failed");
                metrics::broadcast_failed();
                let detail = error.to_string();
                self.report(LearnerReport::PublishFailed { group, version, detail }).await;
            }
            PublishEvent::Group(event) => self.group_event(event).await,
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn group_event(&mut self, event: GroupEvent) {
        let report = match event {
            GroupEvent::Ready(group) => LearnerReport::BroadcastGroupReady(group),
            GroupEvent::Failed { group, error } => {
                LearnerReport::BroadcastGroupFailed { group, detail: error.to_string() }
            }
        };
        self.report(report).await;
    }
}
