//! The learner as a member of a ring, against a coordinator that says what the test wants, over loopback
//! gRPC.

use std::net::SocketAddr;
use std::time::Duration;

use collective::{Backend, GroupConfig, ProcessGroup, Store};
use learner::Config;
use model::Architecture;
use model::tokenizer::{SpecialTokens, train_bpe};
use proto::pb;
use proto::pb::coordinator_server::{Coordinator, CoordinatorServer};
use proto::pb::weight_source_client::WeightSourceClient;
use service::grpc::Listener;
use service::{CancellationToken, Context, OnError, Readiness, Security, TaskSet};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use types::link::actor::{BroadcastGroup, GroupBackend};
use types::link::learner::{LearnerCommand, LearnerHello, LearnerReport};
use types::{
    BatchId, BroadcastGroupId, HostPort, Manifest, ModelDescription, PolicyVersion, Sampling, Vocabulary,
};

use crate::support::{Models, config};

/// Longest wait for anything that should happen soon.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

type Commands = mpsc::Sender<Result<pb::LearnerCommand, Status>>;

/// A coordinator whose conversations are the test's.
struct FakeCoordinator {
    conversations: mpsc::Sender<Conversation>,
}

/// A stream of the learner, from the coordinator's side.
struct Conversation {
    reports: Streaming<pb::LearnerReport>,
    commands: Commands,
}

type Unused<T> = tokio_stream::Empty<Result<T, Status>>;

#[tonic::async_trait]
impl Coordinator for FakeCoordinator {
    type ActStream = Unused<pb::ActorCommand>;
    type RewardStream = Unused<pb::RewardCommand>;
    type LearnStream = ReceiverStream<Result<pb::LearnerCommand, Status>>;

    async fn act(&self, _: Request<Streaming<pb::ActorReport>>) -> Result<Response<Self::ActStream>, Status> {
        Err(Status::unimplemented("only the learner is here"))
    }

    async fn reward(
        &self,
        _: Request<Streaming<pb::RewardReport>>,
    ) -> Result<Response<Self::RewardStream>, Status> {
        Err(Status::unimplemented("only the learner is here"))
    }

    async fn learn(
        &self,
        request: Request<Streaming<pb::LearnerReport>>,
    ) -> Result<Response<Self::LearnStream>, Status> {
        let (commands, outgoing) = mpsc::channel(64);
        let conversation = Conversation { reports: request.into_inner(), commands };
        self.conversations.send(conversation).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn fields(&self, _: Request<pb::FieldsRequest>) -> Result<Response<pb::FieldsReply>, Status> {
        Err(Status::unimplemented("no reward server here"))
    }
}

impl Conversation {
    async fn message(&mut self) -> pb::LearnerReport {
        tokio::time::timeout(STEP_TIMEOUT, self.reports.next()).await.unwrap().unwrap().unwrap()
    }

    /// The next report that is not only a sign of life.
    async fn report(&mut self) -> LearnerReport {
        loop {
            match LearnerReport::try_from(self.message().await).unwrap() {
                LearnerReport::Alive(_) => {}
                report => return report,
            }
        }
    }

    async fn hello(&mut self) -> LearnerHello {
        self.message().await.try_into().unwrap()
    }

    async fn trained(&mut self) -> (BatchId, Manifest) {
        match self.report().await {
            LearnerReport::Trained { batch, manifest, metrics } => {
                assert!(metrics.samples > 0 && metrics.step_seconds > 0.0);
                (batch, manifest)
            }
            other => panic!("instead of a trained batch: {other:?}"),
        }
    }

    async fn send(&self, command: LearnerCommand) {
        for message in proto::learner_messages(command) {
            self.commands.send(Ok(message)).await.unwrap();
        }
    }

    async fn welcome(&self) {
        let run = "run-1".parse().unwrap();
        self.send(LearnerCommand::Welcome {
            run,
            last_batch: BatchId(9),
            sampling: Sampling::default(),
            term: types::LearnerTerm(1),
            run_began: types::Timestamp(1),
        })
        .await;
    }
}

/// A coordinator and what a learner needs to find it.
struct Ring {
    models: Models,
    address: SocketAddr,
    conversations: mpsc::Receiver<Conversation>,
    server: TaskSet,
}

impl Ring {
    async fn new() -> Self {
        let (sender, conversations) = mpsc::channel(4);
        let listener =
            Listener::bind("coordinator", "127.0.0.1:0".parse().unwrap(), &Security::open()).await.unwrap();
        let address = listener.address;
        let service = CoordinatorServer::new(FakeCoordinator { conversations: sender });
        let serving = service::grpc::server(&Security::open(), &[])
            .add_service(service)
            .serve_with_incoming(listener.incoming());
        let mut server = TaskSet::default();
        server.add("coordinator", OnError::Shutdown, async move { Ok(serving.await?) });
        Self { models: Models::new(config(Architecture::Llama, false)), address, conversations, server }
    }

    fn config(&self) -> Config {
        Config {
            coordinator: self.address.to_string(),
            policy: self.models.policy(),
            critic: Some(self.models.critic()),
            checkpoints: self.models.dir.path().join("checkpoints"),
            checkpoint_every: 2,
            heartbeat_interval: Duration::from_millis(50),
            threads: 1,
            ..Config::default()
        }
    }

    async fn conversation(&mut self) -> Conversation {
        tokio::time::timeout(STEP_TIMEOUT, self.conversations.recv()).await.unwrap().unwrap()
    }

    /// Runs the test beside the coordinator.
    async fn play<F>(mut self, test: impl FnOnce(Self) -> F)
    where
        F: Future<Output = ()>,
    {
        let server = std::mem::take(&mut self.server);
        let token = CancellationToken::new();
        let played = async {
            test(self).await;
            token.cancel();
        };
        let (ended, ()) = tokio::join!(server.run(token.clone(), Duration::ZERO), played);
        drop(ended);
    }
}

/// A learner's process, within this one.
struct Learner {
    token: CancellationToken,
    tasks: TaskSet,
    bound: Vec<(&'static str, SocketAddr)>,
}

impl Learner {
    async fn build(config: Config) -> Self {
        let token = CancellationToken::new();
        let context = Context {
            token: token.clone(),
            tasks: TaskSet::default(),
            pulse: service::Pulse::default(),
            readiness: Readiness::default(),
            pages: service::axum::Router::new(),
            security: Security::open(),
            bound: Vec::new(),
        };
        let Context { tasks, bound, .. } = learner::build(config, context).await.unwrap();
        Self { token, tasks, bound }
    }

    async fn run(self) -> anyhow::Result<()> {
        tokio::time::timeout(2 * STEP_TIMEOUT, self.tasks.run(self.token, STEP_TIMEOUT)).await.unwrap()
    }
}

/// Pulls weights as an actor does that joins late.
async fn pull(hello: &LearnerHello, manifest: &Manifest, offset: u64) -> Vec<u8> {
    let channel =
        service::grpc::connect(&hello.weights, service::security::WEIGHTS, &Security::open()).await.unwrap();
    let mut source = WeightSourceClient::new(channel).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
    let hash = manifest.hash().0.to_vec();
    let described = source.describe(pb::DescribeRequest { hash: hash.clone() }).await.unwrap();
    let described = ModelDescription::try_from(described.into_inner()).unwrap();
    assert_eq!(&described.manifest, manifest);
    assert!(described.files.iter().any(|file| file.name() == "config.json"));
    let request = pb::PullRequest { hash, offset };
    let mut chunks = source.pull(request).await.unwrap().into_inner();
    let mut buffer = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.unwrap();
        assert_eq!(chunk.offset, offset + buffer.len() as u64);
        buffer.extend_from_slice(&chunk.data);
    }
    buffer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_trained_once_published_and_saved() {
    Ring::new().await.play(first_life_and_second).await;
}

async fn first_life_and_second(mut ring: Ring) {
    let tokenizer = train_bpe(["aa ab ba"].iter(), 260, &SpecialTokens::default()).unwrap();
    tokenizer.save(&ring.models.policy(), None).unwrap();
    let learner = Learner::build(ring.config()).await;
    let token = learner.token.clone();
    let batches = [ring.models.batch(1, 6), ring.models.batch(2, 6)];
    let first_life = async {
        let mut talk = ring.conversation().await;
        let hello = talk.hello().await;
        assert_eq!((hello.trained, hello.checkpointed, &hello.run), (BatchId(0), BatchId(0), &None));
        assert_eq!(hello.vocabulary, Some(Vocabulary::of(tokenizer.tokens())));
        talk.welcome().await;
        talk.send(LearnerCommand::Batch(batches[0].clone())).await;
        let (batch, manifest) = talk.trained().await;
        assert_eq!((batch, manifest.version()), (BatchId(1), PolicyVersion(1)));
        assert_ne!(manifest.hash(), hello.manifest.hash());
        let buffer = pull(&hello, &manifest, 0).await;
        manifest.verify(&buffer).unwrap();
        assert_eq!(pull(&hello, &manifest, 1000).await, buffer[1000..]);
        // The bits are those of a trainer outside of any ring.
        let mut alone = ring.models.trainer(&ring.config().ppo, None);
        alone.set_run(&Sampling::default(), BatchId(9)).unwrap();
        alone.step(&batches[0]).unwrap();
        assert_eq!(buffer, model::buffer::pack(&alone.policy_flats().unwrap(), tch::Kind::Float));

        // The connection breaks: the learner comes again, and what it has trained is not trained again.
        drop(talk);
        let mut talk = ring.conversation().await;
        let hello = talk.hello().await;
        assert_eq!((hello.trained, hello.run.as_ref().unwrap().to_string().as_str()), (BatchId(1), "run-1"));
        talk.welcome().await;
        for batch in &batches {
            talk.send(LearnerCommand::Batch(batch.clone())).await;
        }
        let (batch, manifest) = talk.trained().await;
        assert_eq!(batch, BatchId(2));
        assert_eq!(talk.report().await, LearnerReport::Checkpointed(BatchId(2)));
        talk.send(LearnerCommand::Batch(ring.models.batch(3, 6))).await;
        assert_eq!(talk.trained().await.0, BatchId(3));
        // The checkpoint that this asks for is told with the next hello at the latest.
        token.cancel();
        (talk, manifest)
    };
    let (ended, (_talk, manifest)) = tokio::join!(learner.run(), first_life);
    ended.unwrap();
    assert_eq!(manifest.version(), PolicyVersion(2));
    assert!(ring.config().checkpoints.join("step-00000003/manifest.json").is_file());

    let learner = Learner::build(ring.config()).await;
    let second_life = async {
        let mut talk = ring.conversation().await;
        let hello = talk.hello().await;
        assert_eq!((hello.trained, hello.checkpointed), (BatchId(3), BatchId(3)));
        let steps: Vec<BatchId> = hello.steps.iter().map(|step| step.batch).collect();
        assert_eq!(steps, [BatchId(1), BatchId(2), BatchId(3)], "what was measured, also before this life");
        assert_eq!(hello.run.unwrap().to_string(), "run-1");
        talk.welcome().await;
        talk.send(LearnerCommand::Finish).await;
    };
    let (ended, ()) = tokio::join!(learner.run(), second_life);
    ended.unwrap();
}

/// Copied behind its step, written beside the next one, and told when it is whole: behind that step, or soon
/// where none follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_written_beside_the_next_step() {
    Ring::new().await.play(overlapped).await;
}

async fn overlapped(mut ring: Ring) {
    let config = Config { checkpoint_every: 1, ..ring.config() };
    let batches = [1, 2, 3].map(|batch| ring.models.batch(batch, 6));
    let learner = Learner::build(config.clone()).await;
    let coordinate = async {
        let mut talk = ring.conversation().await;
        talk.hello().await;
        talk.welcome().await;
        for batch in batches {
            talk.send(LearnerCommand::Batch(batch)).await;
        }
        let mut told = Vec::new();
        while told.len() < 6 {
            told.push(match talk.report().await {
                LearnerReport::Trained { batch, .. } => ("trained", batch.0),
                LearnerReport::Checkpointed(batch) => ("checkpointed", batch.0),
                other => panic!("{other:?}"),
            });
        }
        talk.send(LearnerCommand::Finish).await;
        (talk, told)
    };
    let (ended, (_talk, told)) = tokio::join!(learner.run(), coordinate);
    ended.unwrap();
    let place = |what: (&str, u64)| told.iter().position(|found| *found == what).unwrap();
    // The third batch was there when the second one's step ended.
    assert!(place(("trained", 3)) < place(("checkpointed", 2)), "{told:?}");
    assert!(place(("trained", 1)) < place(("checkpointed", 1)), "{told:?}");
    assert_eq!(told[5], ("checkpointed", 3));
    for batch in 2..=3 {
        assert!(config.checkpoints.join(format!("step-{batch:08}/manifest.json")).is_file());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_ends_the_process_with_the_reason() {
    Ring::new().await.play(refused).await;
}

async fn refused(mut ring: Ring) {
    let learner = Learner::build(ring.config()).await;
    let refuse = async {
        let mut talk = ring.conversation().await;
        talk.hello().await;
        talk.commands.send(Err(Status::failed_precondition("another run is served here"))).await.unwrap();
    };
    let (ended, ()) = tokio::join!(learner.run(), refuse);
    let error = ended.unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("another run is served here"), "{message}");
    // The code of what nobody starts again.
    assert_eq!(service::exit_code("learner", Err(error)), std::process::ExitCode::from(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_in_the_batches_ends_the_process() {
    Ring::new().await.play(gap).await;
}

async fn gap(mut ring: Ring) {
    let learner = Learner::build(ring.config()).await;
    let skip = async {
        let mut talk = ring.conversation().await;
        talk.hello().await;
        talk.welcome().await;
        talk.send(LearnerCommand::Batch(ring.models.batch(2, 6))).await;
        talk
    };
    let (ended, _talk) = tokio::join!(learner.run(), skip);
    let message = format!("{:#}", ended.unwrap_err());
    assert!(message.contains("batch b2 came, but b1 is next"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ranks_broadcast_what_one_rank_would() {
    Ring::new().await.play(two_ranks).await;
}

async fn two_ranks(mut ring: Ring) {
    let config = Config { world_size: 2, ..ring.config() };
    let first = Learner::build(config.clone()).await;
    let rendezvous = first.bound.iter().find(|(what, _)| *what == "rendezvous").unwrap().1.to_string();
    let second = Learner::build(Config { rank: 1, rendezvous, ..config }).await;
    let coordinate = async {
        let mut talk = ring.conversation().await;
        let hello = talk.hello().await;
        assert_eq!(hello.world_size, 2);
        talk.welcome().await;
        let group = BroadcastGroupId(5);
        let members = vec![hello.member.clone(), "actor-0".parse().unwrap()];
        let backend = GroupBackend::Gloo;
        let members = BroadcastGroup { id: group, store: hello.store.clone(), members, backend };
        talk.send(LearnerCommand::JoinBroadcastGroup(members)).await;
        let store = hello.store.clone();
        let joining = tokio::task::spawn_blocking(move || join(&store, group));
        assert_eq!(talk.report().await, LearnerReport::BroadcastGroupReady(group));
        let joined = joining.await.unwrap();
        talk.send(LearnerCommand::Batch(ring.models.batch(1, 6))).await;
        let (_, manifest) = talk.trained().await;
        let version = manifest.version();
        talk.send(LearnerCommand::Publish { group, version }).await;
        let bytes = i64::try_from(manifest.total_bytes()).unwrap();
        let receiving = tokio::task::spawn_blocking(move || receive(&joined, bytes));
        let received = receiving.await.unwrap();
        manifest.verify(&received).unwrap();
        match talk.report().await {
            LearnerReport::Published { version: published, .. } => assert_eq!(published, version),
            other => panic!("instead of a publication: {other:?}"),
        }
        // A group that nobody formed is a failure of that group, not of the learner.
        let group = BroadcastGroupId(6);
        talk.send(LearnerCommand::Publish { group, version }).await;
        match talk.report().await {
            LearnerReport::PublishFailed { detail, .. } => {
                assert!(detail.contains("not a member"), "{detail}")
            }
            other => panic!("instead of a failure: {other:?}"),
        }
        talk.send(LearnerCommand::Finish).await;
        talk
    };
    let (first, second, _talk) = tokio::join!(first.run(), second.run(), coordinate);
    first.unwrap();
    second.unwrap();
}

fn join(store: &str, group: BroadcastGroupId) -> ProcessGroup {
    let address: HostPort = store.parse().unwrap();
    let store = Store::connect(&address.host, address.port, STEP_TIMEOUT).unwrap();
    let config = GroupConfig {
        name: format!("weights-{group}"),
        rank: 1,
        world_size: 2,
        backend: Backend::for_device(tch::Device::Cpu),
        timeout: STEP_TIMEOUT,
        join_timeout: STEP_TIMEOUT,
    };
    ProcessGroup::new(&store, config).unwrap()
}

fn receive(group: &ProcessGroup, bytes: i64) -> Vec<u8> {
    let mut buffer = tch::Tensor::zeros([bytes], (tch::Kind::Uint8, tch::Device::Cpu));
    group.broadcast(&mut buffer, 0).unwrap();
    Vec::try_from(buffer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn training_that_has_diverged_is_not_to_be_started_again() {
    Ring::new().await.play(diverged).await;
}

async fn diverged(mut ring: Ring) {
    let ppo = learner::PpoConfig { policy_lr: 1e30, max_skipped: 0, ..learner::PpoConfig::default() };
    let learner = Learner::build(Config { ppo, ..ring.config() }).await;
    let coordinate = async {
        let mut talk = ring.conversation().await;
        talk.hello().await;
        talk.welcome().await;
        talk.send(LearnerCommand::Batch(ring.models.batch(1, 6))).await;
        talk
    };
    let (ended, _talk) = tokio::join!(learner.run(), coordinate);
    let error = ended.unwrap_err();
    assert!(error.chain().any(|cause| cause.is::<service::Hopeless>()), "{error:#}");
    assert!(format!("{error:#}").contains("max_skipped"), "{error:#}");
}
