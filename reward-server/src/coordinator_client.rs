//! The stream to the coordinator: results up, records down; again and again until the run is over.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use proto::MAX_MESSAGE_BYTES;
use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use service::grpc::Channel;
use service::{BadInput, CancellationToken, Link, LinkEvent, Opening, Readiness, Security, sleep_until};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use types::link::reward::{RewardCommand, RewardHello, RewardReport};
use types::{Incarnation, MemberId, Vocabulary};

use crate::metrics;
use crate::registry::RolloutRegistry;
use crate::scorer_set::ScorerSet;

/// How long the coordinator may take to answer a hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two reports of the load. The coordinator gives a member up after ten seconds of silence by
/// default.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// How long the coordinator may take to close a stream that this server has closed.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// This process as a member of the run.
pub(crate) struct Membership {
    pub(crate) member: MemberId,
    /// `host:port` of the coordinator.
    pub(crate) coordinator: String,
    /// How long there may be no stream to it.
    pub(crate) connect_timeout: Duration,
    /// `host:port` under which actors reach this server.
    pub(crate) address: String,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) registry: RolloutRegistry,
    /// What is told how the run draws.
    pub(crate) scorers: Arc<ScorerSet>,
    pub(crate) readiness: Readiness,
    pub(crate) security: Security,
    /// Cancelled when the process is to stop; cancelled from here when the run is over.
    pub(crate) token: CancellationToken,
    /// Cancelled from here when this server has left the run.
    pub(crate) done: CancellationToken,
}

type CoordinatorLink = Link<pb::RewardReport, pb::RewardCommand>;

/// Where this server stands with the coordinator.
#[derive(Debug, Clone, Copy)]
enum Standing {
    /// There is no stream.
    Away,
    /// It has said hello, and waits for the welcome until then.
    Introduced(Instant),
    /// It may report.
    Welcomed,
}

impl Membership {
    /// Stays in the run until it is over or the process is to stop and nothing is in work.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let _done = self.done.clone().drop_guard();
        let timeout = Some(self.connect_timeout);
        let mut link =
            Link::new(self.coordinator.clone(), "coordinator", self.security.clone(), reward, timeout);
        let incarnation = Incarnation(service::new_incarnation());
        let mut standing = Standing::Away;
        let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let reports = link.reports().filter(|_| matches!(standing, Standing::Welcomed));
            let welcome_deadline = match standing {
                Standing::Introduced(deadline) => Some(deadline),
                Standing::Away | Standing::Welcomed => None,
            };
            let event = tokio::select! {
                event = link.next() => event,
                () = sleep_until(welcome_deadline) => {
                    link.broke(format!("no welcome within {WELCOME_TIMEOUT:?}"))
                }
                () = self.send_result(reports.clone()) => continue,
                () = self.send_load(reports, &mut ticks) => continue,
                () = self.registry.drained() => {
                    link.close(GOODBYE_TIMEOUT).await;
                    return Ok(());
                }
            };
            let event = match event {
                LinkEvent::Due => tokio::select! {
                    failed = link.connect(self.hello(incarnation).into()) => {
                        standing = Standing::Introduced(Instant::now() + WELCOME_TIMEOUT);
                        failed
                    }
                    () = self.registry.drained() => return Ok(()),
                },
                event => Some(event),
            };
            if let Some(event) = event
                && self.take(event, &mut link, &mut standing)?.is_break()
            {
                return Ok(());
            }
        }
    }

    /// Does what an event asks for; breaks when the run is over.
    fn take(
        &self,
        event: LinkEvent<pb::RewardCommand>,
        link: &mut CoordinatorLink,
        standing: &mut Standing,
    ) -> anyhow::Result<ControlFlow<()>> {
        let coordinator = &self.coordinator;
        match event {
            LinkEvent::Command(command) => match (RewardCommand::try_from(command), &standing) {
                (Ok(RewardCommand::Welcome { run, sampling }), Standing::Introduced(_)) => {
                    if let Err(problem) = self.scorers.of_run(sampling.as_ref()) {
                        return Err(BadInput(format!("coordinator {coordinator}: {problem}")).into());
                    }
                    let resent = self.registry.welcomed(run.clone());
                    metrics::connected(resent);
                    tracing::info!(coordinator, %run, resent, "joined");
                    self.readiness.set(true);
                    *standing = Standing::Welcomed;
                }
                (Ok(RewardCommand::Recorded(ids)), _) => {
                    ids.into_iter().for_each(|id| self.registry.recorded(id));
                }
                (Ok(RewardCommand::Rejected { id, reason }), _) => {
                    tracing::warn!(%id, reason, "the coordinator cannot accept this result: not sent again");
                    metrics::rejected();
                    self.registry.recorded(id);
                }
                (Ok(RewardCommand::Finish), _) => {
                    tracing::info!("the run is over");
                    self.token.cancel();
                    return Ok(ControlFlow::Break(()));
                }
                (Ok(RewardCommand::Welcome { .. }), _) => {
                    anyhow::bail!("coordinator {coordinator}: a second welcome on one stream")
                }
                (Err(error), _) => {
                    let broken = link.broke(format!("a command that cannot be understood: {error}"));
                    return self.take(broken, link, standing);
                }
            },
            LinkEvent::Lost(reason) => {
                *standing = Standing::Away;
                metrics::disconnected();
                tracing::warn!(coordinator, reason, "no coordinator");
            }
            LinkEvent::Refused(reason) => {
                let problem = format!("coordinator {coordinator} refuses this server: {reason}");
                return Err(BadInput(problem).into());
            }
            LinkEvent::GaveUp(reason) => anyhow::bail!("no coordinator: {reason}"),
            LinkEvent::Due => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    fn hello(&self, incarnation: Incarnation) -> RewardHello {
        RewardHello {
            member: self.member.clone(),
            incarnation,
            run: self.registry.run(),
            address: self.address.clone(),
            vocabulary: Some(self.vocabulary.clone()),
        }
    }

    /// Sends a result as soon as there is one and room for it. Never ends without a stream: the link says
    /// why there is none.
    async fn send_result(&self, reports: Option<mpsc::Sender<pb::RewardReport>>) {
        if let Some(reports) = reports
            && let Ok(place) = reports.reserve().await
        {
            // Once it is taken it is sent: nothing is awaited in between.
            return place.send(self.registry.next_unsent().await.into());
        }
        std::future::pending().await
    }

    /// Sends the load, which is also the sign of life, when it is time.
    async fn send_load(&self, reports: Option<mpsc::Sender<pb::RewardReport>>, ticks: &mut Interval) {
        if let Some(reports) = reports
            && let Ok(place) = reports.reserve().await
        {
            ticks.tick().await;
            let load = RewardReport::Load { queued: self.registry.observe() };
            return place.send(load.into());
        }
        std::future::pending().await
    }
}

fn reward(
    channel: Channel,
    reports: Request<ReceiverStream<pb::RewardReport>>,
) -> Opening<pb::RewardCommand> {
    let mut client = CoordinatorClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Box::pin(async move { client.reward(reports).await })
}
