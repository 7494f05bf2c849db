//! The stream to the coordinator: results up, records down; again and again until the run is over.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use proto::MAX_MESSAGE_BYTES;
use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use service::grpc::connect;
use service::{Backoff, CancellationToken, Readiness};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use types::link::reward::{RewardCommand, RewardHello, RewardReport};
use types::{Incarnation, MemberId, RunId};

use crate::metrics;
use crate::registry::RolloutRegistry;

/// How long the coordinator may take to answer a hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two reports of the load. The coordinator gives a member up after ten seconds of silence by
/// default.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Results on their way into the stream.
const OUTBOX_CAPACITY: usize = 16;
/// How long the coordinator may take to close a stream that this server has closed.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// From a broken stream to the next try; doubled each time, up to the longest.
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(100);
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);

/// This process as a member of the run.
pub(crate) struct Membership {
    pub(crate) member: MemberId,
    /// `host:port` of the coordinator.
    pub(crate) coordinator: String,
    /// `host:port` under which actors reach this server.
    pub(crate) address: String,
    pub(crate) registry: RolloutRegistry,
    pub(crate) readiness: Readiness,
    /// Cancelled when the process is to stop; cancelled from here when the run is over.
    pub(crate) token: CancellationToken,
    /// Cancelled from here when this server has left the run.
    pub(crate) done: CancellationToken,
}

/// How a stream ended that did not break.
enum Left {
    /// The coordinator said that the run is over.
    Finished,
    /// The process is to stop, and nothing is in work.
    Drained,
}

/// Why a stream broke.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// Nobody answers, or the connection broke.
    #[error("{0:#}")]
    Unreachable(anyhow::Error),
    /// The coordinator ended it.
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] Status),
}

impl Broken {
    /// Whether coming back is of no use.
    fn is_final(&self) -> bool {
        let never = [Code::FailedPrecondition, Code::InvalidArgument, Code::Unimplemented];
        matches!(self, Self::Status(status) if never.contains(&status.code()))
    }
}

impl Membership {
    /// Stays in the run until it is over or the process is to stop and nothing is in work.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let _done = self.done.clone().drop_guard();
        let incarnation = Incarnation(service::new_incarnation());
        let mut backoff = Backoff::new(MIN_RECONNECT_DELAY, MAX_RECONNECT_DELAY);
        loop {
            let broken = match self.stay(incarnation, &mut backoff).await {
                Ok(Left::Finished) => {
                    tracing::info!("the run is over");
                    self.token.cancel();
                    return Ok(());
                }
                Ok(Left::Drained) => return Ok(()),
                Err(broken) => broken,
            };
            metrics::disconnected();
            if broken.is_final() {
                return Err(broken).context(format!("coordinator {}", self.coordinator));
            }
            let delay = backoff.next_pause();
            tracing::warn!(coordinator = self.coordinator, reason = %broken, ?delay, "no coordinator");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.registry.drained() => return Ok(()),
            }
        }
    }

    /// One stream, from hello to end.
    async fn stay(&self, incarnation: Incarnation, backoff: &mut Backoff) -> Result<Left, Broken> {
        let (reports, mut commands) = tokio::select! {
            opened = self.open(incarnation) => opened?,
            () = self.registry.drained() => return Ok(Left::Drained),
        };
        let run = welcome(&mut commands).await?;
        let resent = self.registry.welcomed(run.clone());
        metrics::connected(resent);
        tracing::info!(coordinator = self.coordinator, %run, resent, "joined");
        self.readiness.set(true);
        backoff.reset();
        tokio::select! {
            left = follow(&self.registry, &mut commands) => left,
            () = self.send_results(&reports) => Err(stream_ended()),
            () = self.send_load(&reports) => Err(stream_ended()),
            () = self.registry.drained() => {
                drop(reports);
                // The coordinator may close its half in its own time, but not for ever.
                let _ = tokio::time::timeout(GOODBYE_TIMEOUT, commands.message()).await;
                Ok(Left::Drained)
            }
        }
    }

    async fn open(
        &self,
        incarnation: Incarnation,
    ) -> Result<(mpsc::Sender<pb::RewardReport>, Streaming<pb::RewardCommand>), Broken> {
        let channel = connect(&self.coordinator).await.map_err(Broken::Unreachable)?;
        let mut client = CoordinatorClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (reports, outbox) = mpsc::channel(OUTBOX_CAPACITY);
        let hello = RewardHello {
            member: self.member.clone(),
            incarnation,
            run: self.registry.run(),
            address: self.address.clone(),
        };
        // There is room: nothing else has been put in.
        let _ = reports.try_send(hello.into());
        let opening = client.reward(ReceiverStream::new(outbox));
        let opened = tokio::time::timeout(WELCOME_TIMEOUT, opening).await;
        let opened = opened.map_err(|_| no_welcome())??;
        Ok((reports, opened.into_inner()))
    }

    /// Sends every result as soon as there is one, until the stream ends.
    async fn send_results(&self, reports: &mpsc::Sender<pb::RewardReport>) {
        loop {
            let Ok(place) = reports.reserve().await else { return ended_stream_speaks().await };
            place.send(self.registry.next_unsent().await.into());
        }
    }

    /// Sends the load, which is also the sign of life, until the stream ends.
    async fn send_load(&self, reports: &mpsc::Sender<pb::RewardReport>) {
        let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let load = RewardReport::Load { queued: self.registry.observe() };
            if reports.send(load.into()).await.is_err() {
                return ended_stream_speaks().await;
            }
        }
    }
}

/// A stream that takes nothing more has ended; the commands' side says why.
async fn ended_stream_speaks() {
    std::future::pending().await
}

/// The first command.
async fn welcome(commands: &mut Streaming<pb::RewardCommand>) -> Result<RunId, Broken> {
    let first =
        tokio::time::timeout(WELCOME_TIMEOUT, commands.message()).await.map_err(|_| no_welcome())??;
    match first.map(RewardCommand::try_from).transpose().map_err(Status::from)? {
        Some(RewardCommand::Welcome { run }) => Ok(run),
        Some(other) => {
            Err(Status::invalid_argument(format!("the first command was {other:?}, not a welcome")).into())
        }
        None => Err(stream_ended()),
    }
}

/// Takes commands until the run is over.
async fn follow(
    registry: &RolloutRegistry,
    commands: &mut Streaming<pb::RewardCommand>,
) -> Result<Left, Broken> {
    while let Some(command) = commands.message().await? {
        match RewardCommand::try_from(command).map_err(Status::from)? {
            RewardCommand::Recorded(id) => registry.recorded(id),
            RewardCommand::Rejected { id, reason } => {
                tracing::warn!(%id, reason, "the coordinator cannot accept this result: not sent again");
                metrics::rejected();
                registry.recorded(id);
            }
            RewardCommand::Finish => return Ok(Left::Finished),
            RewardCommand::Welcome { .. } => {
                return Err(Status::invalid_argument("a second welcome on one stream").into());
            }
        }
    }
    Err(stream_ended())
}

fn stream_ended() -> Broken {
    Broken::Unreachable(anyhow::anyhow!("the coordinator closed the stream"))
}

fn no_welcome() -> Broken {
    Broken::Unreachable(anyhow::anyhow!("no welcome within {WELCOME_TIMEOUT:?}"))
}

/// The address that actors are told.
pub(crate) fn reachable(advertise: Option<&String>, bound: SocketAddr) -> String {
    advertise.cloned().unwrap_or_else(|| bound.to_string())
}
