//! An actor with its fake surroundings.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actor::Config;
use model::tokenizer::train_bpe;
use model::{Architecture, Dimensions, ModelConfig, SpecialTokens, Tokenizer, buffer};
use service::{CancellationToken, Context, Readiness, Security, ServiceConfig, TaskSet};
use tch::{Device, Kind};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use types::link::actor::{
    ActorCommand, ActorHello, ActorReport, ActorWelcome, Lease, LeasedPrompt, RewardServerAddress,
};
use types::{
    DType, LeaseId, Manifest, ModelDescription, ModelFile, PolicyVersion, Prompt, PromptContent, PromptId,
    RolloutId, SamplingParams, TensorLayout, WeightHash,
};

use crate::grpc::{self, ActorStream, Arrival, Weights};

/// Longer than anything here takes.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// The actor with the coordinator's and the learner's fakes.
pub(crate) struct World {
    pub(crate) tasks: JoinSet<()>,
    /// The actor's own end.
    pub(crate) actor: JoinSet<anyhow::Result<()>>,
    pub(crate) token: CancellationToken,
    pub(crate) streams: mpsc::Receiver<Arrival>,
    pub(crate) weights: Weights,
    pub(crate) learner: SocketAddr,
    /// The ports beside that of the metrics.
    pub(crate) bound: Vec<(&'static str, SocketAddr)>,
    /// Whether responses are episodes.
    pub(crate) episodes: bool,
}

/// Waits, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(STEP_TIMEOUT, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

pub(crate) fn model() -> ModelConfig {
    let dimensions = Dimensions {
        vocab_size: 300,
        hidden_size: 32,
        intermediate_size: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        max_positions: 256,
    };
    let mut config = ModelConfig::new(Architecture::Llama, dimensions).unwrap();
    config.initializer_range = 0.3;
    config
}

/// The policy's tokenizer.
pub(crate) fn tokenizer() -> Tokenizer {
    let texts = ["the quick brown fox jumps over the lazy dog"; 8];
    train_bpe(texts.iter(), 300, &SpecialTokens::default()).unwrap()
}

/// What the learner publishes as this version.
pub(crate) fn published(version: u64) -> (ModelDescription, Vec<u8>) {
    let config = model();
    let weights = model::Weights::random(&config, version, Kind::Float, Device::Cpu);
    let bytes = buffer::pack(weights.flats(), Kind::Float);
    let parameters = buffer::parameters(&config).into_iter();
    let layouts = parameters.map(|(name, shape)| TensorLayout { name, shape, dtype: DType::F32 }).collect();
    let manifest = Manifest::of_buffer(PolicyVersion(version), layouts, &bytes).unwrap();
    let folder = tempfile::tempdir().unwrap();
    tokenizer().save(folder.path(), None).unwrap();
    let file = |name: &str| {
        ModelFile::new(name.to_owned(), std::fs::read(folder.path().join(name)).unwrap()).unwrap()
    };
    let mut files = vec![ModelFile::new("config.json".to_owned(), config.to_bytes(Kind::Float)).unwrap()];
    files.extend(["tokenizer.json", "tokenizer_config.json"].map(file));
    (ModelDescription { files, manifest }, bytes)
}

impl World {
    /// Starts everything but reward servers.
    pub(crate) async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let mut tasks = JoinSet::new();
        let (coordinator, streams) = grpc::coordinator(&mut tasks).await;
        let weights: Weights = Arc::new(Mutex::new(published(1)));
        let learner = grpc::learner(&mut tasks, Arc::clone(&weights)).await;
        let mut config = Config {
            member: "actor-under-test".to_owned(),
            coordinator: coordinator.to_string(),
            heartbeat_interval: Duration::from_millis(50),
            service: ServiceConfig::default(),
            ..Config::default()
        };
        config.engine.max_sequences = Some(8);
        config.engine.kv_cache_blocks = Some(256);
        config.engine.threads = 1;
        change(&mut config);
        let token = CancellationToken::new();
        let context = Context {
            token: token.clone(),
            tasks: TaskSet::default(),
            readiness: Readiness::default(),
            pulse: service::Pulse::default(),
            pages: service::axum::Router::new(),
            security: Security::open(),
            bound: Vec::new(),
        };
        let Context { tasks: work, bound, .. } = actor::build(config, context).await.unwrap();
        let mut actor = JoinSet::new();
        actor.spawn(work.run(token.clone(), STEP_TIMEOUT));
        Self { tasks, actor, token, streams, weights, learner, bound, episodes: false }
    }

    /// The actor's next stream, with its hello, welcomed.
    pub(crate) async fn welcome(&mut self, sampling: SamplingParams) -> (Link, ActorHello) {
        let (hello, stream) = soon("the actor's stream", self.streams.recv()).await.unwrap();
        let link = Link { stream, last_lease: LeaseId(0) };
        let welcome = ActorWelcome {
            run: "run-1".parse().unwrap(),
            seed: 9,
            sampling: sampling.try_into().unwrap(),
            deterministic: false,
            heartbeat_timeout: STEP_TIMEOUT,
            episodes: self.episodes,
        };
        link.command(ActorCommand::Welcome(welcome)).await;
        (link, hello)
    }

    /// Tells the actor to pull what the learner publishes; version and hash.
    pub(crate) async fn order_pull(&self, link: &Link) -> (PolicyVersion, WeightHash) {
        let (version, hash) = {
            let weights = self.weights.lock().unwrap();
            (weights.0.manifest.version(), weights.0.manifest.hash())
        };
        link.command(ActorCommand::PullWeights { source: self.learner.to_string(), version, hash }).await;
        (version, hash)
    }

    /// A welcomed actor that has the weights.
    pub(crate) async fn ready(&mut self, sampling: SamplingParams) -> Link {
        let (mut link, _) = self.welcome(sampling).await;
        let (version, hash) = self.order_pull(&link).await;
        let confirmed = link.until("confirmed weights", |report| match report {
            ActorReport::WeightsConfirmed { version, hash } => Some((version, hash)),
            ActorReport::WeightsFailed { detail, .. } => panic!("{detail}"),
            _ => None,
        });
        assert_eq!(confirmed.await, (version, hash));
        link
    }

    /// Waits until all is acknowledged; then the run is over, and the actor ends.
    pub(crate) async fn finish(self, mut link: Link) {
        link.unacknowledged(0).await;
        link.command(ActorCommand::Finish).await;
        self.ends().await;
    }

    /// The actor ends by itself, without an error.
    pub(crate) async fn ends(mut self) {
        soon("the actor's end", self.actor.join_next()).await.unwrap().unwrap().unwrap();
    }

    /// The actor ends by itself; why.
    pub(crate) async fn ends_with_error(&mut self) -> String {
        let ended = soon("the actor's end", self.actor.join_next()).await.unwrap().unwrap();
        format!("{:#}", ended.unwrap_err())
    }
}

/// The coordinator's side of the actor's stream.
pub(crate) struct Link {
    stream: ActorStream,
    last_lease: LeaseId,
}

impl Link {
    pub(crate) async fn command(&self, command: ActorCommand) {
        self.stream.down.send(command).await.unwrap();
    }

    pub(crate) async fn report(&mut self, what: &str) -> ActorReport {
        soon(what, self.stream.up.recv()).await.unwrap_or_else(|| panic!("the stream ended before {what}"))
    }

    /// The first report that `find` makes something of.
    pub(crate) async fn until<T>(&mut self, what: &str, find: impl Fn(ActorReport) -> Option<T>) -> T {
        loop {
            if let Some(found) = find(self.report(what).await) {
                return found;
            }
        }
    }

    /// Waits until the actor generates nothing and this many of its rollouts are not acknowledged.
    pub(crate) async fn unacknowledged(&mut self, count: u32) {
        // An older report may still be on its way.
        let last_lease = self.last_lease;
        let reported = self.until("the load", |report| match report {
            ActorReport::Load(load) if load.last_lease >= last_lease => {
                (load.unacknowledged == count && load.running == 0).then_some(())
            }
            _ => None,
        });
        soon("acknowledged", reported).await;
    }

    /// Reward servers that are ready.
    pub(crate) async fn reward_servers(&self, addresses: &[SocketAddr]) {
        let listed = addresses.iter().enumerate().map(|(number, address)| RewardServerAddress {
            member: format!("reward-{number}").parse().unwrap(),
            address: address.to_string(),
        });
        self.command(ActorCommand::RewardServers(listed.collect())).await;
    }

    /// Leases one prompt; the ids that are wanted.
    pub(crate) async fn lease(&mut self, ordinal: u64, siblings: u16) -> Vec<RolloutId> {
        self.lease_for(STEP_TIMEOUT, ordinal, siblings).await
    }

    /// The same, for a limited time.
    pub(crate) async fn lease_for(
        &mut self,
        timeout: Duration,
        ordinal: u64,
        siblings: u16,
    ) -> Vec<RolloutId> {
        let id = PromptId { epoch: 0, ordinal };
        let prompt =
            Prompt::new(id, PromptContent::Text("the fox".to_owned()), "{\"test\": 1}".into()).unwrap();
        let wanted: Vec<RolloutId> =
            (0..siblings).map(|sibling| RolloutId { prompt: id, sibling, attempt: 0 }).collect();
        let leased = LeasedPrompt { prompt, group_size: siblings, wanted: wanted.clone() };
        self.last_lease = LeaseId(ordinal + 1);
        let lease = Lease { id: self.last_lease, prompts: vec![leased], timeout, sampling: None };
        self.command(ActorCommand::Lease(lease)).await;
        wanted
    }
}
