//! The other members' gRPC services. They decide nothing: every stream is handed to the test.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use proto::pb;
use proto::pb::coordinator_server::{Coordinator, CoordinatorServer};
use proto::pb::reward_server_server::{RewardServer, RewardServerServer};
use proto::pb::weight_source_server::{WeightSource, WeightSourceServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use types::link::actor::{ActorCommand, ActorHello, ActorReport};
use types::link::environment::{EnvironmentReply, EnvironmentRequest};
use types::link::reward::{ScoreReply, ScoreRequest};
use types::{ModelDescription, Rollout};

use crate::world::soon;

/// A stream that a service accepted: what comes, and the way back. Dropping it ends the stream.
pub(crate) struct Accepted<Up, Down> {
    pub(crate) up: mpsc::Receiver<Up>,
    pub(crate) down: mpsc::Sender<Down>,
    _task: JoinSet<()>,
}

pub(crate) type ActorStream = Accepted<ActorReport, ActorCommand>;
/// An actor that has come: its hello, and what follows.
pub(crate) type Arrival = (ActorHello, ActorStream);
pub(crate) type ScoreStream = Accepted<ScoreRequest, ScoreReply>;

impl ScoreStream {
    /// The next rollout, acknowledged.
    pub(crate) async fn rollout(&mut self) -> Rollout {
        loop {
            if let ScoreRequest::Rollout { rollout, .. } = soon("a rollout", self.up.recv()).await.unwrap() {
                self.down.send(ScoreReply::Recorded(rollout.id())).await.unwrap();
                return rollout;
            }
        }
    }
}
pub(crate) type EpisodeStream = Accepted<EnvironmentRequest, EnvironmentReply>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The test's end of a stream, and the answer that opens the way back.
fn accept<Up, Down, PbUp, PbDown>(
    mut stream: Streaming<PbUp>,
) -> (Accepted<Up, Down>, Response<Replies<PbDown>>)
where
    Up: TryFrom<PbUp, Error = proto::ProtocolError> + Send + 'static,
    Down: Send + 'static,
    PbUp: Send + 'static,
    PbDown: From<Down> + 'static,
{
    let (upward, up) = mpsc::channel(1024);
    let (down, downward) = mpsc::channel(1024);
    let mut task = JoinSet::new();
    task.spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let message =
                Up::try_from(message).unwrap_or_else(|error| panic!("the actor sent nonsense: {error}"));
            if upward.send(message).await.is_err() {
                return;
            }
        }
    });
    let replies = ReceiverStream::new(downward).map(|reply: Down| Ok(PbDown::from(reply)));
    (Accepted { up, down, _task: task }, Response::new(Box::pin(replies)))
}

/// Hands something to the test.
async fn hand<T>(test: &mpsc::Sender<T>, value: T) -> Result<(), Status> {
    test.send(value).await.map_err(|_| Status::unavailable("the test is over"))
}

struct FakeCoordinator(mpsc::Sender<Arrival>);

#[tonic::async_trait]
impl Coordinator for FakeCoordinator {
    type ActStream = Replies<pb::ActorCommand>;
    type RewardStream = Replies<pb::RewardCommand>;
    type LearnStream = Replies<pb::LearnerCommand>;

    async fn act(
        &self,
        stream: Request<Streaming<pb::ActorReport>>,
    ) -> Result<Response<Self::ActStream>, Status> {
        let mut stream = stream.into_inner();
        let hello = stream.next().await.unwrap()?.try_into()?;
        let (accepted, answer) = accept(stream);
        hand(&self.0, (hello, accepted)).await?;
        Ok(answer)
    }

    async fn reward(
        &self,
        _: Request<Streaming<pb::RewardReport>>,
    ) -> Result<Response<Self::RewardStream>, Status> {
        Err(Status::unimplemented("no reward servers here"))
    }

    async fn learn(
        &self,
        _: Request<Streaming<pb::LearnerReport>>,
    ) -> Result<Response<Self::LearnStream>, Status> {
        Err(Status::unimplemented("no learner here"))
    }

    async fn fields(&self, _: Request<pb::FieldsRequest>) -> Result<Response<pb::FieldsReply>, Status> {
        Err(Status::unimplemented("no reward server here"))
    }
}

struct FakeRewardServer {
    scores: mpsc::Sender<ScoreStream>,
    episodes: mpsc::Sender<EpisodeStream>,
}

#[tonic::async_trait]
impl RewardServer for FakeRewardServer {
    type ScoreStream = Replies<pb::ScoreReply>;
    type EnvironmentStream = Replies<pb::EnvironmentReply>;

    async fn score(
        &self,
        stream: Request<Streaming<pb::ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let (accepted, answer) = accept(stream.into_inner());
        hand(&self.scores, accepted).await?;
        Ok(answer)
    }

    async fn environment(
        &self,
        stream: Request<Streaming<pb::EnvironmentRequest>>,
    ) -> Result<Response<Self::EnvironmentStream>, Status> {
        let (accepted, answer) = accept(stream.into_inner());
        hand(&self.episodes, accepted).await?;
        Ok(answer)
    }
}

/// Weights to pull; the test may exchange them.
pub(crate) type Weights = Arc<Mutex<(ModelDescription, Vec<u8>)>>;

struct FakeLearner(Weights);

#[tonic::async_trait]
impl WeightSource for FakeLearner {
    type PullStream = Replies<pb::WeightChunk>;

    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::ModelDescription>, Status> {
        Ok(Response::new(self.0.lock().unwrap().0.clone().into()))
    }

    async fn pull(&self, request: Request<pb::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let start = request.into_inner().offset as usize;
        let buffer = self.0.lock().unwrap().1.clone();
        // The first stream breaks off in the middle, so that the second has to go on from there.
        let end = if start == 0 { buffer.len() / 2 } else { buffer.len() };
        let offsets = (start..end).step_by(10_000);
        let chunk = |at: usize| pb::WeightChunk {
            offset: at as u64,
            data: buffer[at..end.min(at + 10_000)].to_vec().into(),
        };
        let chunks: Vec<_> = offsets.map(|at| Ok(chunk(at))).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
}

async fn listen() -> (TcpListenerStream, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (TcpListenerStream::new(listener), address)
}

/// Starts a coordinator; its address, and the actors' streams.
pub(crate) async fn coordinator(tasks: &mut JoinSet<()>) -> (SocketAddr, mpsc::Receiver<Arrival>) {
    let ((listener, address), (sender, streams)) = (listen().await, mpsc::channel(16));
    let server =
        tonic::transport::Server::builder().add_service(CoordinatorServer::new(FakeCoordinator(sender)));
    tasks.spawn(async move { server.serve_with_incoming(listener).await.unwrap() });
    (address, streams)
}

/// Starts a reward server; its address, and the actors' streams.
pub(crate) async fn reward_server(tasks: &mut JoinSet<()>) -> (SocketAddr, mpsc::Receiver<ScoreStream>) {
    let (address, scores, _) = environment(tasks).await;
    (address, scores)
}

/// Starts a reward server with an environment; its address, and both streams of the actors.
pub(crate) async fn environment(
    tasks: &mut JoinSet<()>,
) -> (SocketAddr, mpsc::Receiver<ScoreStream>, mpsc::Receiver<EpisodeStream>) {
    let (listener, address) = listen().await;
    let ((scores, score_streams), (episodes, episode_streams)) = (mpsc::channel(16), mpsc::channel(16));
    let service = RewardServerServer::new(FakeRewardServer { scores, episodes });
    let server = tonic::transport::Server::builder().add_service(service);
    tasks.spawn(async move { server.serve_with_incoming(listener).await.unwrap() });
    (address, score_streams, episode_streams)
}

/// Starts a source of weights; its address.
pub(crate) async fn learner(tasks: &mut JoinSet<()>, weights: Weights) -> SocketAddr {
    let (listener, address) = listen().await;
    let server =
        tonic::transport::Server::builder().add_service(WeightSourceServer::new(FakeLearner(weights)));
    tasks.spawn(async move { server.serve_with_incoming(listener).await.unwrap() });
    address
}
