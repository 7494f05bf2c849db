//! The peers' side of the wire: a coordinator and an actor that do what a test tells them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex as StdMutex};
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use proto::pb;
use proto::pb::coordinator_server::{Coordinator, CoordinatorServer};
use proto::pb::reward_server_client::RewardServerClient;
use service::Security;
use service::grpc::{Listener, connect};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use types::link::environment::{EnvironmentReply, EnvironmentRequest};
use types::link::reward::{RewardCommand, RewardHello, RewardReport, ScoreReply, ScoreRequest};
use types::{MemberId, PromptId, Rollout, RolloutId, Sampling, SamplingParams};

use crate::world::{RUN, soon};

/// A coordinator that hands its streams to the test.
pub(crate) struct FakeCoordinator {
    pub(crate) address: String,
    sessions: mpsc::Receiver<Session>,
    _server: JoinSet<()>,
}

/// One stream of a reward server.
pub(crate) struct Session {
    pub(crate) hello: RewardHello,
    reports: Streaming<pb::RewardReport>,
    commands: mpsc::Sender<Result<pb::RewardCommand, Status>>,
}

#[derive(Clone)]
struct Service {
    address: String,
    sessions: Arc<Mutex<mpsc::Sender<Session>>>,
}

/// What the coordinators' data sets say of prompts, by the coordinator's address. Whoever offers a rollout
/// writes its fields down here, because they do not travel with it.
static FIELDS: LazyLock<StdMutex<HashMap<(String, PromptId), String>>> = LazyLock::new(Default::default);
/// The coordinator of each reward server, by their addresses.
static COORDINATORS: LazyLock<StdMutex<HashMap<String, String>>> = LazyLock::new(Default::default);

/// A prompt of that server's coordinator has these fields.
pub(crate) fn note_fields(server: &str, prompt: PromptId, fields: &str) {
    if let Some(coordinator) = COORDINATORS.lock().unwrap().get(server) {
        FIELDS.lock().unwrap().insert((coordinator.clone(), prompt), fields.to_owned());
    }
}

type Commands<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Service {
    type ActStream = Commands<pb::ActorCommand>;
    type RewardStream = Commands<pb::RewardCommand>;
    type LearnStream = Commands<pb::LearnerCommand>;

    async fn act(&self, _: Request<Streaming<pb::ActorReport>>) -> Result<Response<Self::ActStream>, Status> {
        Err(Status::unimplemented("no actors here"))
    }

    async fn reward(
        &self,
        request: Request<Streaming<pb::RewardReport>>,
    ) -> Result<Response<Self::RewardStream>, Status> {
        let mut reports = request.into_inner();
        let first = reports.next().await.unwrap()?;
        let hello: RewardHello = first.try_into()?;
        COORDINATORS.lock().unwrap().insert(hello.address.clone(), self.address.clone());
        let (commands, outbox) = mpsc::channel(1024);
        let session = Session { hello, reports, commands };
        self.sessions
            .lock()
            .await
            .send(session)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox))))
    }

    async fn learn(
        &self,
        _: Request<Streaming<pb::LearnerReport>>,
    ) -> Result<Response<Self::LearnStream>, Status> {
        Err(Status::unimplemented("no learner here"))
    }

    async fn fields(&self, request: Request<pb::FieldsRequest>) -> Result<Response<pb::FieldsReply>, Status> {
        let pb::FieldsRequest { run, epoch, ordinal } = request.into_inner();
        assert_eq!(run, RUN);
        let key = (self.address.clone(), PromptId { epoch, ordinal });
        let fields = FIELDS.lock().unwrap().get(&key).cloned();
        let fields = fields.ok_or_else(|| Status::not_found("no such prompt"))?;
        Ok(Response::new(pb::FieldsReply { fields }))
    }
}

impl FakeCoordinator {
    pub(crate) async fn start() -> Self {
        let listener =
            Listener::bind("test", "127.0.0.1:0".parse().unwrap(), &Security::open()).await.unwrap();
        let address = listener.address.to_string();
        let (sender, sessions) = mpsc::channel(4);
        let service = CoordinatorServer::new(Service {
            address: address.clone(),
            sessions: Arc::new(Mutex::new(sender)),
        });
        let mut server = JoinSet::new();
        server.spawn(async move {
            service::grpc::server(&Security::open(), &[])
                .add_service(service)
                .serve_with_incoming(listener.incoming())
                .await
                .unwrap();
        });
        Self { address, sessions, _server: server }
    }

    /// The next stream of a reward server, not yet welcomed.
    pub(crate) async fn session(&mut self) -> Session {
        soon(self.sessions.recv()).await.unwrap()
    }

    /// The next stream, welcomed by a coordinator that does not say how actors draw.
    pub(crate) async fn welcomed(&mut self) -> Session {
        self.welcomed_at(None).await
    }

    /// The next stream, welcomed into a run that draws at this temperature.
    pub(crate) async fn welcomed_at(&mut self, temperature: Option<f32>) -> Session {
        let session = self.session().await;
        let sampling = temperature.map(|temperature| {
            Sampling::new(SamplingParams { temperature, ..SamplingParams::default() }).unwrap()
        });
        session.command(RewardCommand::Welcome { run: RUN.parse().unwrap(), sampling }).await;
        session
    }
}

impl Session {
    pub(crate) async fn command(&self, command: RewardCommand) {
        self.commands.send(Ok(command.into())).await.unwrap();
    }

    pub(crate) async fn record(&self, id: RolloutId) {
        self.command(RewardCommand::Recorded(vec![id])).await;
    }

    pub(crate) async fn refuse(self, status: Status) {
        self.commands.send(Err(status)).await.unwrap();
    }

    /// The next report of any kind; none when the reward server has left.
    pub(crate) async fn any_report(&mut self) -> Option<RewardReport> {
        let report = soon(self.reports.next()).await?;
        Some(report.ok()?.try_into().unwrap())
    }

    /// The next result; loads are skipped.
    pub(crate) async fn result(&mut self) -> RewardReport {
        loop {
            match self.any_report().await.expect("the reward server has left") {
                RewardReport::Load { .. } => {}
                report => return report,
            }
        }
    }
}

/// An actor's stream.
pub(crate) struct Actor {
    server: String,
    requests: mpsc::Sender<pb::ScoreRequest>,
    replies: Streaming<pb::ScoreReply>,
}

impl Actor {
    /// Connects and introduces itself.
    pub(crate) async fn connect(address: &str, run: &str, member: &str) -> Result<Self, Status> {
        let channel = connect(address, "reward-server", &Security::open())
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let (requests, outbox) = mpsc::channel(4096);
        let member: MemberId = member.parse().unwrap();
        let hello = ScoreRequest::Hello { run: run.parse().unwrap(), member };
        requests.try_send(hello.into()).unwrap();
        let replies =
            soon(RewardServerClient::new(channel).score(ReceiverStream::new(outbox))).await?.into_inner();
        Ok(Self { server: address.to_owned(), requests, replies })
    }

    /// Offers a rollout whose lease lasts.
    pub(crate) async fn offer(&self, rollout: &Rollout) {
        self.offer_for(Duration::from_secs(3600), rollout).await;
    }

    /// Offers a rollout whose lease runs out after this long.
    pub(crate) async fn offer_for(&self, time_left: Duration, rollout: &Rollout) {
        note_fields(&self.server, rollout.id().prompt, rollout.fields());
        let request = ScoreRequest::Rollout { rollout: rollout.clone(), time_left };
        self.requests.send(request.into()).await.unwrap();
    }

    /// Offers what a correct actor would not.
    pub(crate) async fn offer_broken(&self, rollout: &Rollout, break_it: impl FnOnce(&mut pb::Rollout)) {
        note_fields(&self.server, rollout.id().prompt, rollout.fields());
        let mut message = pb::Rollout::from(rollout.clone());
        break_it(&mut message);
        let offered = pb::RolloutToScore { rollout: Some(message), time_left_ms: 3_600_000 };
        let request = pb::score_request::Request::Rollout(offered);
        self.requests.send(pb::ScoreRequest { request: Some(request) }).await.unwrap();
    }

    /// The next answer.
    pub(crate) async fn reply(&mut self) -> Result<ScoreReply, Status> {
        let reply = soon(self.replies.next()).await.expect("the stream has ended")?;
        Ok(reply.try_into().unwrap())
    }

    /// The answer that lies ready, if one does.
    pub(crate) fn ready_reply(&mut self) -> Option<Result<ScoreReply, Status>> {
        let reply = self.replies.next().now_or_never()?.expect("the stream has ended");
        Some(reply.map(|reply| reply.try_into().unwrap()))
    }
}

/// An actor's stream of episodes.
pub(crate) struct Episodes {
    pub(crate) server: String,
    requests: mpsc::Sender<pb::EnvironmentRequest>,
    replies: Streaming<pb::EnvironmentReply>,
}

impl Episodes {
    /// Connects and introduces the actor.
    pub(crate) async fn connect(address: &str) -> Result<Self, Status> {
        let channel = connect(address, "reward-server", &Security::open())
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let (requests, outbox) = mpsc::channel(64);
        let member: MemberId = "actor-0".parse().unwrap();
        let hello = EnvironmentRequest::Hello { run: RUN.parse().unwrap(), member };
        requests.try_send(hello.into()).unwrap();
        let mut client = RewardServerClient::new(channel);
        let replies = soon(client.environment(ReceiverStream::new(outbox))).await?.into_inner();
        Ok(Self { server: address.to_owned(), requests, replies })
    }

    pub(crate) async fn send(&self, request: EnvironmentRequest) {
        self.requests.send(request.into()).await.unwrap();
    }

    /// The next reply, or why there is none.
    pub(crate) async fn reply(&mut self) -> Result<EnvironmentReply, Status> {
        Ok(soon(self.replies.next()).await.expect("the stream has ended")?.try_into().unwrap())
    }
}
