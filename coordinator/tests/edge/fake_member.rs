//! Members that say what a test wants them to say.

use std::collections::VecDeque;

use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use service::CoordinatorTerm;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status, Streaming};
use types::link::actor::{ActorHello, ActorLoad, ActorReport};
use types::link::learner::{LearnerHello, RecentSteps};
use types::link::reward::RewardHello;
use types::{
    BatchId, DType, Incarnation, Manifest, PolicyVersion, TensorEntry, TensorLayout, Vocabulary, WeightHash,
};

use crate::coordinator_process::TIMEOUT;

/// One open stream.
pub(crate) struct Stream<R, C> {
    reports: mpsc::Sender<R>,
    commands: Streaming<C>,
    seen: VecDeque<C>,
}

impl<R, C> Stream<R, C> {
    pub(crate) async fn say(&self, report: impl Into<R>) {
        assert!(self.reports.send(report.into()).await.is_ok(), "the stream is open");
    }

    /// Whether the stream was still open.
    pub(crate) async fn try_say(&self, report: impl Into<R>) -> bool {
        self.reports.send(report.into()).await.is_ok()
    }

    /// The next command, or why the stream has ended.
    pub(crate) async fn next(&mut self) -> Result<C, Status> {
        if let Some(seen) = self.seen.pop_front() {
            return Ok(seen);
        }
        let next = timeout(TIMEOUT, self.commands.message()).await.expect("a command in time");
        next?.ok_or_else(|| Status::ok("ended without a reason"))
    }

    /// The first command that `wanted` takes.
    pub(crate) async fn find<T>(&mut self, wanted: impl Fn(&C) -> Option<T>) -> T {
        loop {
            let command = self.next().await.expect("the stream goes on");
            if let Some(found) = wanted(&command) {
                return found;
            }
        }
    }
}

pub(crate) type RewardStream = Stream<pb::RewardReport, pb::RewardCommand>;
pub(crate) type LearnerStream = Stream<pb::LearnerReport, pb::LearnerCommand>;
pub(crate) type ActorStream = Stream<pb::ActorReport, pb::ActorCommand>;

/// What a member shows.
type Show = Box<dyn FnMut(Request<()>) -> Result<Request<()>, Status> + Send>;

/// A client of `host:port`, or of `TOKEN@host:port`.
async fn client(address: &str) -> CoordinatorClient<InterceptedService<tonic::transport::Channel, Show>> {
    let (token, address) = address.split_once('@').map_or((None, address), |(token, at)| (Some(token), at));
    let token: Option<MetadataValue<_>> = token.map(|token| format!("Bearer {token}").parse().unwrap());
    let show: Show = Box::new(move |mut request| {
        if let Some(token) = &token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    });
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.connect().await.expect("it listens");
    CoordinatorClient::with_interceptor(channel, show)
}

fn outbox<R>(hello: R) -> (mpsc::Sender<R>, ReceiverStream<R>) {
    let (reports, outgoing) = mpsc::channel(64);
    assert!(reports.try_send(hello).is_ok(), "there is room");
    (reports, ReceiverStream::new(outgoing))
}

pub(crate) async fn reward_server(
    address: &str,
    name: &str,
    incarnation: u64,
) -> Result<RewardStream, Status> {
    reward_server_saying(address, reward_hello(name, incarnation)).await
}

/// What a reward server says first that reads no text.
pub(crate) fn reward_hello(name: &str, incarnation: u64) -> RewardHello {
    RewardHello {
        member: name.parse().unwrap(),
        incarnation: Incarnation(incarnation),
        run: None,
        address: "127.0.0.1:1".to_owned(),
        vocabulary: Some(Vocabulary::none()),
    }
}

pub(crate) async fn reward_server_saying(address: &str, hello: RewardHello) -> Result<RewardStream, Status> {
    let (reports, outgoing) = outbox(pb::RewardReport::from(hello));
    let commands = client(address).await.reward(outgoing).await?.into_inner();
    Ok(Stream { reports, commands, seen: VecDeque::new() })
}

/// Which coordinator says that it serves a reward server that `known` has served before.
pub(crate) async fn served_by(
    address: &str,
    known: Option<CoordinatorTerm>,
) -> Result<Option<CoordinatorTerm>, Status> {
    let (_reports, outgoing) = outbox(pb::RewardReport::from(reward_hello("r", 1)));
    let mut request = Request::new(outgoing);
    if let Some(known) = known {
        known.write(request.metadata_mut());
    }
    let answer = client(address).await.reward(request).await?;
    Ok(CoordinatorTerm::read(answer.metadata()))
}

/// What an actor says first that holds nothing.
pub(crate) fn actor_hello(name: &str) -> ActorHello {
    ActorHello {
        member: name.parse().unwrap(),
        incarnation: Incarnation(1),
        run: None,
        holding: Vec::new(),
        weights: None,
        source: None,
        vocabulary: None,
        gpu: None,
    }
}

pub(crate) async fn actor(address: &str, name: &str) -> Result<ActorStream, Status> {
    actor_saying(address, actor_hello(name).into()).await
}

pub(crate) async fn actor_saying(address: &str, hello: pb::ActorReport) -> Result<ActorStream, Status> {
    let (reports, outgoing) = outbox(hello);
    let commands = client(address).await.act(outgoing).await?.into_inner();
    Ok(Stream { reports, commands, seen: VecDeque::new() })
}

pub(crate) async fn learner(address: &str, name: &str, incarnation: u64) -> Result<LearnerStream, Status> {
    learner_saying(address, learner_hello(name, incarnation)).await
}

/// The weights of a version: those of every other.
pub(crate) fn manifest(version: u64) -> Manifest {
    let layout = TensorLayout { name: "w".to_owned(), shape: vec![1], dtype: DType::F32 };
    let tensors = vec![TensorEntry::new(layout, WeightHash([7; 32])).unwrap()];
    Manifest::new(PolicyVersion(version), tensors).unwrap()
}

/// What a learner says first whose policy has no tokenizer.
pub(crate) fn learner_hello(name: &str, incarnation: u64) -> LearnerHello {
    LearnerHello {
        member: name.parse().unwrap(),
        incarnation: Incarnation(incarnation),
        run: None,
        world_size: 1,
        trained: BatchId(0),
        checkpointed: BatchId(0),
        manifest: manifest(0),
        steps: RecentSteps::default(),
        store: "127.0.0.1:2".to_owned(),
        weights: format!("{name}.host:3"),
        vocabulary: Some(Vocabulary::none()),
        gpu: None,
    }
}

pub(crate) async fn learner_saying(address: &str, hello: LearnerHello) -> Result<LearnerStream, Status> {
    let (reports, outgoing) = outbox(pb::LearnerReport::from(hello));
    let commands = client(address).await.learn(outgoing).await?.into_inner();
    Ok(Stream { reports, commands, seen: VecDeque::new() })
}

/// The actor has the weights that it is told to pull, and room for so many responses.
pub(crate) async fn make_ready(actor: &mut ActorStream, free_slots: u32) {
    let weights = actor.find(|command| match &command.command {
        Some(pb::actor_command::Command::PullWeights(pull)) => {
            Some(pb::WeightsConfirmed { version: pull.version, hash: pull.hash.clone() })
        }
        _ => None,
    });
    let confirmed = pb::actor_report::Report::WeightsConfirmed(weights.await);
    actor.say(pb::ActorReport { report: Some(confirmed) }).await;
    actor.say(load(free_slots)).await;
}

/// An actor's room for so many responses.
pub(crate) fn load(free_slots: u32) -> ActorReport {
    ActorReport::Load(ActorLoad { free_slots, ..ActorLoad::default() })
}
