//! The coordinator's gRPC services: streams translated to events, commands to messages.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use proto::pb::coordinator_server::{Coordinator, CoordinatorServer};
use proto::pb::observer_server::{Observer, ObserverServer};
use proto::{MAX_MESSAGE_BYTES, pb};
use service::{CancellationToken, OnError, Spawner};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status, Streaming};
use types::link::actor::{ActorCommand, ActorReport};
use types::link::learner::{LearnerCommand, LearnerReport};
use types::link::reward::{RewardCommand, RewardReport};
use types::{MemberId, RolloutId, ScoredRollout};

use crate::server_loop::{Ended, Handle, Input, Message};
use crate::sessions::{Closing, OUTBOX_CAPACITY, Outbox, SessionNumber};
use crate::state::{ActorEvent, Event, LearnerEvent, RewardEvent, ScoreSummary, TrainedBatch};

/// How long a new stream may take to introduce itself.
const HELLO_TIME_LIMIT: Duration = Duration::from_secs(10);

type Commands<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The services.
#[derive(Debug, Clone)]
pub(crate) struct Grpc {
    handle: Handle,
    spawner: Spawner,
    /// Cancelled when the loop has ended: streams are read no further.
    done: CancellationToken,
    sessions: Arc<AtomicU64>,
}

impl From<Ended> for Status {
    fn from(ended: Ended) -> Self {
        Status::unavailable(ended.to_string())
    }
}

impl From<Closing> for Status {
    fn from(closing: Closing) -> Self {
        match closing {
            Closing::Disconnect(reason) => Status::unavailable(reason),
            Closing::Refuse(reason) => Status::failed_precondition(reason),
        }
    }
}

/// One report as the loop wants it.
struct Report {
    event: Event,
    scored: Option<ScoredRollout>,
    acknowledge: Option<RolloutId>,
}

impl Report {
    fn plain(event: Event) -> Self {
        Self { event, scored: None, acknowledge: None }
    }
}

/// One stream's ends.
struct StreamEnds<P> {
    member: MemberId,
    reports: Streaming<P>,
    outbox: Outbox,
    joined: Event,
    closed: Event,
}

impl Grpc {
    pub(crate) fn new(handle: Handle, spawner: Spawner, done: CancellationToken) -> Self {
        Self { handle, spawner, done, sessions: Arc::default() }
    }

    /// The services on a server with our bounds.
    pub(crate) fn router(self) -> Router {
        let coordinator = CoordinatorServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        service::grpc::server().add_service(coordinator).add_service(ObserverServer::new(self))
    }

    /// Introduces a stream to the loop and carries its reports there until it ends.
    async fn serve_stream<P, F>(&self, ends: StreamEnds<P>, translate: F) -> Result<(), Status>
    where
        P: Send + 'static,
        F: Fn(&MemberId, P) -> Result<Report, Status> + Send + 'static,
    {
        let StreamEnds { member, mut reports, outbox, joined, closed } = ends;
        let session: SessionNumber = self.sessions.fetch_add(1, Ordering::Relaxed);
        tracing::info!(%member, session, "joined");
        self.handle.send(Input::Joined { member: member.clone(), session, outbox, event: joined }).await?;
        let handle = self.handle.clone();
        let name = format!("stream of {member}");
        let done = self.done.clone();
        let carry = async move {
            let ended = tokio::select! {
                ended = carry_reports(&handle, &member, session, &mut reports, translate) => ended,
                () = done.cancelled() => return Ok(()),
            };
            match ended {
                Ok(()) => tracing::info!(%member, session, "left"),
                Err(status) => tracing::info!(%member, session, reason = status.message(), "stream ended"),
            }
            // The loop may have ended meanwhile; then nobody needs to know.
            let _ = handle.send(Input::Closed { member, session, event: closed }).await;
            Ok(())
        };
        self.spawner.spawn(name, OnError::Log, carry).await;
        Ok(())
    }
}

async fn carry_reports<P>(
    handle: &Handle,
    member: &MemberId,
    session: SessionNumber,
    reports: &mut Streaming<P>,
    translate: impl Fn(&MemberId, P) -> Result<Report, Status>,
) -> Result<(), Status> {
    while let Some(report) = reports.next().await {
        let Report { event, scored, acknowledge } = translate(member, report?)?;
        let message = Message { member: member.clone(), session, event, scored, acknowledge };
        handle.send(Input::Message(Box::new(message))).await?;
    }
    Ok(())
}

/// The first message of a stream.
async fn first<P>(reports: &mut Streaming<P>) -> Result<P, Status> {
    match tokio::time::timeout(HELLO_TIME_LIMIT, reports.next()).await {
        Ok(Some(message)) => message,
        Ok(None) => Err(Status::invalid_argument("the stream ended before a hello")),
        Err(_) => Err(Status::deadline_exceeded(format!("no hello within {HELLO_TIME_LIMIT:?}"))),
    }
}

fn not_a_hello() -> Status {
    Status::invalid_argument("the first message of a stream must be a hello, and no other may be")
}

#[tonic::async_trait]
impl Coordinator for Grpc {
    type ActStream = Commands<pb::ActorCommand>;
    type RewardStream = Commands<pb::RewardCommand>;
    type LearnStream = Commands<pb::LearnerCommand>;

    async fn act(
        &self,
        request: Request<Streaming<pb::ActorReport>>,
    ) -> Result<Response<Self::ActStream>, Status> {
        let mut reports = request.into_inner();
        let ActorReport::Hello(hello) = first(&mut reports).await?.try_into()? else {
            return Err(not_a_hello());
        };
        let member = hello.member.clone();
        let (sender, commands) = mpsc::channel(OUTBOX_CAPACITY);
        let about = |event| Event::Actor { member: member.clone(), event };
        let ends = StreamEnds {
            reports,
            outbox: Outbox::Actor(sender),
            joined: about(ActorEvent::Joined(hello)),
            closed: about(ActorEvent::Disconnected),
            member: member.clone(),
        };
        self.serve_stream(ends, actor_report).await?;
        let message = |command: Result<ActorCommand, Closing>| Ok(pb::ActorCommand::from(command?));
        Ok(Response::new(Box::pin(ReceiverStream::new(commands).map(message))))
    }

    async fn reward(
        &self,
        request: Request<Streaming<pb::RewardReport>>,
    ) -> Result<Response<Self::RewardStream>, Status> {
        let mut reports = request.into_inner();
        let RewardReport::Hello(hello) = first(&mut reports).await?.try_into()? else {
            return Err(not_a_hello());
        };
        let member = hello.member.clone();
        let (sender, commands) = mpsc::channel(OUTBOX_CAPACITY);
        let about = |event| Event::Reward { member: member.clone(), event };
        let ends = StreamEnds {
            reports,
            outbox: Outbox::Reward(sender),
            joined: about(RewardEvent::Joined(hello)),
            closed: about(RewardEvent::Disconnected),
            member: member.clone(),
        };
        self.serve_stream(ends, reward_report).await?;
        let message = |command: Result<RewardCommand, Closing>| Ok(pb::RewardCommand::from(command?));
        Ok(Response::new(Box::pin(ReceiverStream::new(commands).map(message))))
    }

    async fn learn(
        &self,
        request: Request<Streaming<pb::LearnerReport>>,
    ) -> Result<Response<Self::LearnStream>, Status> {
        let mut reports = request.into_inner();
        let LearnerReport::Hello(hello) = first(&mut reports).await?.try_into()? else {
            return Err(not_a_hello());
        };
        let member = hello.member.clone();
        let (sender, commands) = mpsc::channel(OUTBOX_CAPACITY);
        let ends = StreamEnds {
            member,
            reports,
            outbox: Outbox::Learner(sender),
            joined: Event::Learner(LearnerEvent::Joined(hello)),
            closed: Event::Learner(LearnerEvent::Disconnected),
        };
        self.serve_stream(ends, learner_report).await?;
        let messages = |command: Result<LearnerCommand, Closing>| {
            let messages: Vec<Result<pb::LearnerCommand, Status>> = match command {
                Ok(command) => proto::learner_messages(command).into_iter().map(Ok).collect(),
                Err(closing) => vec![Err(closing.into())],
            };
            futures::stream::iter(messages)
        };
        Ok(Response::new(Box::pin(ReceiverStream::new(commands).flat_map(messages))))
    }
}

fn actor_report(member: &MemberId, report: pb::ActorReport) -> Result<Report, Status> {
    let event = match ActorReport::try_from(report)? {
        ActorReport::Hello(_) => return Err(not_a_hello()),
        ActorReport::Load(load) => ActorEvent::Load(load),
        ActorReport::WeightsConfirmed { version, hash } => ActorEvent::WeightsConfirmed { version, hash },
        ActorReport::WeightsFailed { version, detail } => ActorEvent::WeightsFailed { version, detail },
        ActorReport::BroadcastGroupReady(id) => ActorEvent::BroadcastGroupReady(id),
        ActorReport::BroadcastGroupFailed { group, detail } => {
            ActorEvent::BroadcastGroupFailed { group, detail }
        }
        ActorReport::Failed(failure) => ActorEvent::Failed(failure),
        ActorReport::Draining => ActorEvent::Draining,
    };
    Ok(Report::plain(Event::Actor { member: member.clone(), event }))
}

fn reward_report(member: &MemberId, report: pb::RewardReport) -> Result<Report, Status> {
    let about = |event| Event::Reward { member: member.clone(), event };
    Ok(match RewardReport::try_from(report)? {
        RewardReport::Hello(_) => return Err(not_a_hello()),
        RewardReport::Load { queued } => Report::plain(about(RewardEvent::Load { queued })),
        RewardReport::Failed(failure) => {
            Report { acknowledge: Some(failure.id), event: about(RewardEvent::Failed(failure)), scored: None }
        }
        RewardReport::Scored(scored) => Report {
            event: about(RewardEvent::Scored(ScoreSummary::of(&scored))),
            acknowledge: Some(scored.rollout.id),
            scored: Some(scored),
        },
    })
}

fn learner_report(_: &MemberId, report: pb::LearnerReport) -> Result<Report, Status> {
    let event = match LearnerReport::try_from(report)? {
        LearnerReport::Hello(_) => return Err(not_a_hello()),
        LearnerReport::Trained { batch, manifest, metrics } => {
            LearnerEvent::Trained(Box::new(TrainedBatch { batch, manifest, metrics: *metrics }))
        }
        LearnerReport::Checkpointed(batch) => LearnerEvent::Checkpointed(batch),
        LearnerReport::Published { group, version, seconds } => {
            LearnerEvent::Published { group, version, seconds }
        }
        LearnerReport::PublishFailed { group, version, detail } => {
            LearnerEvent::PublishFailed { group, version, detail }
        }
        LearnerReport::BroadcastGroupReady(id) => LearnerEvent::BroadcastGroupReady(id),
        LearnerReport::BroadcastGroupFailed { group, detail } => {
            LearnerEvent::BroadcastGroupFailed { group, detail }
        }
        LearnerReport::Alive(phase) => LearnerEvent::Alive(phase),
    };
    Ok(Report::plain(Event::Learner(event)))
}

#[tonic::async_trait]
impl Observer for Grpc {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusReply>, Status> {
        let status = self.handle.status().await?;
        let json =
            serde_json::to_string(status.as_ref()).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(pb::StatusReply { json }))
    }

    async fn drain(&self, _: Request<pb::DrainRequest>) -> Result<Response<pb::DrainReply>, Status> {
        self.handle.send(Input::Drain).await?;
        Ok(Response::new(pb::DrainReply {}))
    }
}
