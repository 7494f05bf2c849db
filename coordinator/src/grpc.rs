//! The coordinator's gRPC services: streams translated to events, commands to messages.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{Stream, StreamExt};
use proto::pb::coordinator_server::{Coordinator, CoordinatorServer};
use proto::pb::observer_server::{Observer, ObserverServer};
use proto::{CALLERS, MAX_MESSAGE_BYTES, ProtocolError, pb};
use serde::Serialize;
use service::grpc::{Router, first_message, next_message};
use service::{CancellationToken, CoordinatorTerm, OnError, Origin, Security, Spawner};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use types::link::actor::{ActorCommand, ActorHello, ActorReport};
use types::link::learner::{LearnerCommand, LearnerHello, LearnerReport};
use types::link::reward::{RewardCommand, RewardHello, RewardReport};
use types::{FailReason, Incarnation, MemberId, PromptId, RolloutFailure, RolloutId};

use crate::data::DataSet;
use crate::inbox::{Handle, Input, LoopEnded, Report};
use crate::metrics;
use crate::sessions::{Closing, CommandSender, OUTBOX_CAPACITY, Outbox, SessionId};
use crate::state::{ActorEvent, Event, LearnerEvent, RewardEvent, Role, ScoreSummary, StepRecord};

type Commands<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The services.
#[derive(Debug, Clone)]
pub(crate) struct Grpc {
    handle: Handle,
    spawner: Spawner,
    /// Cancelled when the loop has ended: streams are read no further.
    done: CancellationToken,
    /// The number of the next stream.
    next_session: Arc<AtomicU64>,
    /// Which coordinator this is.
    term: Arc<CoordinatorTerm>,
    data: Arc<DataSet>,
}

impl From<LoopEnded> for Status {
    fn from(ended: LoopEnded) -> Self {
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

/// One kind of member: what it says on its stream, and what is said to it.
trait Link: 'static {
    /// What comes, as generated.
    type Message: Send + 'static;
    /// The first message.
    type Hello: TryFrom<Self::Message, Error = ProtocolError>;
    /// Every later one.
    type Report: TryFrom<Self::Message, Error = ProtocolError>;
    /// What goes out.
    type Command: Send + 'static;
    /// What it is.
    const ROLE: Role;

    /// Who introduces itself.
    fn member(hello: &Self::Hello) -> &MemberId;

    /// Which of its processes.
    fn incarnation(hello: &Self::Hello) -> Incarnation;

    /// Where its commands are put.
    fn outbox(commands: CommandSender<Self::Command>) -> Outbox;

    /// Its stream is open.
    fn joined(hello: Self::Hello) -> Event;

    /// Its stream is closed.
    fn disconnected(member: MemberId) -> Event;

    /// It has said something.
    fn reported(session: SessionId, report: Self::Report) -> Report;

    /// The attempt whose result a message tells, where that much of it can be read.
    fn result_of(message: &Self::Message) -> Option<RolloutId>;

    /// What stands instead of a result that cannot be accepted.
    fn failed(session: SessionId, failure: RolloutFailure) -> Option<Report>;
}

/// What becomes of a message that cannot be understood.
enum Unreadable {
    /// The attempt that it is about has failed.
    Instead(Box<Report>),
    /// It is counted and passed over.
    PassedOver,
    /// The stream ends: without this message the others mean nothing.
    Ends(String),
}

impl Grpc {
    pub(crate) fn new(
        handle: Handle,
        spawner: Spawner,
        done: CancellationToken,
        term: CoordinatorTerm,
        data: Arc<DataSet>,
    ) -> Self {
        Self { handle, spawner, done, next_session: Arc::default(), term: Arc::new(term), data }
    }

    /// The services on a server with our bounds.
    pub(crate) fn router(self, security: &Security) -> Router {
        let coordinator = CoordinatorServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        service::grpc::server(security, CALLERS)
            .add_service(coordinator)
            .add_service(ObserverServer::new(self))
    }

    /// A member that a later coordinator has served is not served any more: it says what happened since, and
    /// this one does not know.
    fn check_term(&self, role: Role, metadata: &MetadataMap) -> Result<(), Status> {
        match CoordinatorTerm::read(metadata) {
            Some(known) if self.term.is_before(&known) => {
                let ours = &self.term;
                let reason = format!("this is {ours}, and {known} has taken its place: stop this one");
                tracing::error!(?role, reason, "refused");
                // It may find the other one at this address the next time.
                Err(Status::unavailable(reason))
            }
            _ => Ok(()),
        }
    }

    /// The answer to a member, which says who gives it.
    fn answer<C>(&self, commands: Commands<C>) -> Response<Commands<C>> {
        let mut response = Response::new(commands);
        self.term.write(response.metadata_mut());
        response
    }

    /// Introduces a stream to the loop, carries its reports there until it ends, and yields the commands for
    /// it.
    async fn serve<L: Link>(
        &self,
        request: Request<Streaming<L::Message>>,
    ) -> Result<ReceiverStream<Result<L::Command, Closing>>, Status> {
        self.check_term(L::ROLE, request.metadata())?;
        let origin = Origin::of(&request);
        let mut messages = request.into_inner();
        let hello = L::Hello::try_from(first_message(&mut messages).await?)?;
        let number = self.next_session.fetch_add(1, Ordering::Relaxed);
        let incarnation = L::incarnation(&hello);
        let member = L::member(&hello).clone();
        let session = SessionId { role: L::ROLE, member, incarnation, number, origin };
        let (sender, commands) = mpsc::channel(OUTBOX_CAPACITY);
        tracing::info!(member = %session.member, session = number, origin = %session.origin, "joined");
        let joined =
            Input::Joined { session: session.clone(), outbox: L::outbox(sender), event: L::joined(hello) };
        self.handle.send(joined).await?;
        let name = format!("stream of {}", session.member);
        let carrying = carry::<L>(self.handle.clone(), session, messages, self.done.clone());
        self.spawner.spawn(name, OnError::Log, carrying).await;
        Ok(ReceiverStream::new(commands))
    }
}

/// Carries a stream's reports to the loop until the stream or the loop ends, and tells the loop when the
/// stream did.
async fn carry<L: Link>(
    handle: Handle,
    session: SessionId,
    mut messages: Streaming<L::Message>,
    done: CancellationToken,
) -> anyhow::Result<()> {
    let ended = tokio::select! {
        ended = carry_reports::<L>(&handle, &session, &mut messages) => ended,
        () = done.cancelled() => return Ok(()),
    };
    let SessionId { member, number, .. } = &session;
    match &ended {
        Ok(()) => tracing::info!(%member, session = number, "left"),
        Err(StreamEnded { reason, .. }) => tracing::info!(%member, session = number, reason, "stream ended"),
    }
    let event = L::disconnected(member.clone());
    let refused = ended.err().and_then(|ended| ended.refused);
    // The loop may have ended meanwhile; then nobody needs to know.
    let _ = handle.send(Input::Closed { session, event, refused }).await;
    Ok(())
}

/// Why a stream ended that did not end well.
struct StreamEnded {
    reason: String,
    /// What the member is told, so that it does not come back and say the same.
    refused: Option<String>,
}

impl From<Status> for StreamEnded {
    fn from(status: Status) -> Self {
        Self { reason: status.message().to_owned(), refused: None }
    }
}

impl From<LoopEnded> for StreamEnded {
    fn from(ended: LoopEnded) -> Self {
        Self { reason: ended.to_string(), refused: None }
    }
}

async fn carry_reports<L: Link>(
    handle: &Handle,
    session: &SessionId,
    messages: &mut Streaming<L::Message>,
) -> Result<(), StreamEnded> {
    while let Some(message) = next_message(messages).await? {
        let result = L::result_of(&message);
        let report = match L::Report::try_from(message) {
            Ok(report) => L::reported(session.clone(), report),
            Err(error) => match unreadable::<L>(session, result, &error) {
                Unreadable::Instead(report) => *report,
                Unreadable::PassedOver => continue,
                Unreadable::Ends(reason) => {
                    return Err(StreamEnded { refused: Some(reason.clone()), reason });
                }
            },
        };
        handle.send(Input::Report(Box::new(report))).await?;
    }
    Ok(())
}

/// What becomes of a message that cannot be understood. One message never ends the stream of a member that
/// only reports results: what came with it would be sent again, and this message too, for ever.
fn unreadable<L: Link>(session: &SessionId, result: Option<RolloutId>, error: &ProtocolError) -> Unreadable {
    metrics::rejected(L::ROLE);
    tracing::warn!(member = %session.member, ?result, %error, "a report that cannot be accepted");
    if L::ROLE == Role::Learner || *error == ProtocolError::HelloOutOfPlace {
        return Unreadable::Ends(format!("cannot accept a report: {error}"));
    }
    let detail = error.to_string();
    let failure =
        result.map(|id| RolloutFailure { id, reason: FailReason::Invalid, detail, response_tokens: 0 });
    match failure.and_then(|failure| L::failed(session.clone(), failure)) {
        Some(report) => Unreadable::Instead(Box::new(report)),
        None => Unreadable::PassedOver,
    }
}

/// The link of an actor.
enum ActorLink {}

impl Link for ActorLink {
    type Message = pb::ActorReport;
    type Hello = ActorHello;
    type Report = ActorReport;
    type Command = ActorCommand;
    const ROLE: Role = Role::Actor;

    fn member(hello: &ActorHello) -> &MemberId {
        &hello.member
    }

    fn incarnation(hello: &ActorHello) -> Incarnation {
        hello.incarnation
    }

    fn outbox(commands: CommandSender<ActorCommand>) -> Outbox {
        Outbox::Actor(commands)
    }

    fn joined(hello: ActorHello) -> Event {
        Event::Actor { member: hello.member.clone(), event: ActorEvent::Joined(hello) }
    }

    fn disconnected(member: MemberId) -> Event {
        Event::Actor { member, event: ActorEvent::Disconnected }
    }

    fn reported(session: SessionId, report: ActorReport) -> Report {
        let event = Event::Actor { member: session.member.clone(), event: ActorEvent::Report(report) };
        Report { session, event, scored: None, rejected: None }
    }

    fn result_of(message: &pb::ActorReport) -> Option<RolloutId> {
        match message.report.as_ref()? {
            pb::actor_report::Report::Failed(failure) => RolloutId::try_from(failure.id?).ok(),
            _ => None,
        }
    }

    fn failed(session: SessionId, failure: RolloutFailure) -> Option<Report> {
        Some(Self::reported(session, ActorReport::Failed(failure)))
    }
}

/// The link of a reward server.
enum RewardLink {}

impl Link for RewardLink {
    type Message = pb::RewardReport;
    type Hello = RewardHello;
    type Report = RewardReport;
    type Command = RewardCommand;
    const ROLE: Role = Role::RewardServer;

    fn member(hello: &RewardHello) -> &MemberId {
        &hello.member
    }

    fn incarnation(hello: &RewardHello) -> Incarnation {
        hello.incarnation
    }

    fn outbox(commands: CommandSender<RewardCommand>) -> Outbox {
        Outbox::Reward(commands)
    }

    fn joined(hello: RewardHello) -> Event {
        Event::Reward { member: hello.member.clone(), event: RewardEvent::Joined(hello) }
    }

    fn disconnected(member: MemberId) -> Event {
        Event::Reward { member, event: RewardEvent::Disconnected }
    }

    fn reported(session: SessionId, report: RewardReport) -> Report {
        let (event, scored) = match report {
            RewardReport::Load { queued } => (RewardEvent::Load { queued }, None),
            RewardReport::Failed(failure) => (RewardEvent::Failed(failure), None),
            RewardReport::Scored(scored) => (RewardEvent::Scored(ScoreSummary::of(&scored)), Some(scored)),
        };
        let event = Event::Reward { member: session.member.clone(), event };
        Report { session, event, scored, rejected: None }
    }

    fn result_of(message: &pb::RewardReport) -> Option<RolloutId> {
        use pb::reward_report::Report;
        let id = match message.report.as_ref()? {
            Report::Scored(scored) => scored.rollout.as_ref()?.id,
            Report::Failed(failure) => failure.id,
            Report::Hello(_) | Report::Load(_) => None,
        };
        RolloutId::try_from(id?).ok()
    }

    fn failed(session: SessionId, failure: RolloutFailure) -> Option<Report> {
        let rejected = Some(failure.detail.clone());
        let event = RewardEvent::Failed(failure);
        let event = Event::Reward { member: session.member.clone(), event };
        Some(Report { session, event, scored: None, rejected })
    }
}

/// The link of the learner.
enum LearnerLink {}

impl Link for LearnerLink {
    type Message = pb::LearnerReport;
    type Hello = LearnerHello;
    type Report = LearnerReport;
    type Command = LearnerCommand;
    const ROLE: Role = Role::Learner;

    fn member(hello: &LearnerHello) -> &MemberId {
        &hello.member
    }

    fn incarnation(hello: &LearnerHello) -> Incarnation {
        hello.incarnation
    }

    fn outbox(commands: CommandSender<LearnerCommand>) -> Outbox {
        Outbox::Learner(commands)
    }

    fn joined(hello: LearnerHello) -> Event {
        Event::Learner(LearnerEvent::Joined(hello))
    }

    fn disconnected(_: MemberId) -> Event {
        Event::Learner(LearnerEvent::Disconnected)
    }

    fn reported(session: SessionId, report: LearnerReport) -> Report {
        let event = Event::Learner(LearnerEvent::Report(report));
        Report { session, event, scored: None, rejected: None }
    }

    fn result_of(_: &pb::LearnerReport) -> Option<RolloutId> {
        None
    }

    fn failed(_: SessionId, _: RolloutFailure) -> Option<Report> {
        None
    }
}

/// The message of a command for an actor or a reward server.
fn message<C, M: From<C>>(command: Result<C, Closing>) -> Result<M, Status> {
    Ok(command?.into())
}

/// The messages of a command for the learner: a batch takes several.
fn learner_messages(command: Result<LearnerCommand, Closing>) -> Vec<Result<pb::LearnerCommand, Status>> {
    match command {
        Ok(command) => proto::learner_messages(command).into_iter().map(Ok).collect(),
        Err(closing) => vec![Err(closing.into())],
    }
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
        let commands = self.serve::<ActorLink>(request).await?;
        Ok(self.answer(Box::pin(commands.map(message))))
    }

    async fn reward(
        &self,
        request: Request<Streaming<pb::RewardReport>>,
    ) -> Result<Response<Self::RewardStream>, Status> {
        let commands = self.serve::<RewardLink>(request).await?;
        Ok(self.answer(Box::pin(commands.map(message))))
    }

    async fn learn(
        &self,
        request: Request<Streaming<pb::LearnerReport>>,
    ) -> Result<Response<Self::LearnStream>, Status> {
        let commands = self.serve::<LearnerLink>(request).await?;
        let messages = commands.flat_map(|command| futures::stream::iter(learner_messages(command)));
        Ok(self.answer(Box::pin(messages)))
    }

    async fn fields(&self, request: Request<pb::FieldsRequest>) -> Result<Response<pb::FieldsReply>, Status> {
        let pb::FieldsRequest { run, epoch, ordinal } = request.into_inner();
        let ours = &self.term.run;
        if run != *ours {
            return Err(Status::failed_precondition(format!("this is run {ours}, not run {run}")));
        }
        let id = PromptId { epoch, ordinal };
        let prompt = self.data.prompt(id);
        let prompt = prompt.ok_or_else(|| Status::not_found(format!("no prompt {id} is in the data set")))?;
        Ok(Response::new(pb::FieldsReply { fields: prompt.fields().as_ref().to_owned() }))
    }
}

fn to_json(told: &impl Serialize) -> Result<String, Status> {
    serde_json::to_string(told).map_err(|error| Status::internal(error.to_string()))
}

#[tonic::async_trait]
impl Observer for Grpc {
    async fn status(&self, asked: Request<pb::StatusRequest>) -> Result<Response<pb::StatusReply>, Status> {
        let status = self.handle.status().await?;
        let json = to_json(status.as_ref())?;
        let steps_json = match asked.into_inner().steps_after {
            Some(after) => {
                let steps = self.handle.steps();
                let new: Vec<&StepRecord> =
                    steps.iter().map(AsRef::as_ref).filter(|step| step.batch.0 > after).collect();
                to_json(&new)?
            }
            None => String::new(),
        };
        Ok(Response::new(pb::StatusReply { json, steps_json }))
    }

    async fn drain(&self, _: Request<pb::DrainRequest>) -> Result<Response<pb::DrainReply>, Status> {
        self.handle.send(Input::Drain).await?;
        Ok(Response::new(pb::DrainReply {}))
    }
}
