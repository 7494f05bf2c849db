//! The policy in use, and how it is kept new: pulls and broadcasts end here as weights that the engine takes
//! up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use engine::{EngineConfig, EngineHandle, EngineParts, Event, PolicyWeights, PromptEncoder};
use model::ModelConfig;
use openai::Served;
use service::{OnError, Security, Spawner};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use types::link::actor::BroadcastGroup;
use types::{BroadcastGroupId, Manifest, MemberId, ModelFile, PolicyVersion, Vocabulary, WeightHash};
use weights::{
    GroupEvent, Member, ModelFiles, PullOrder, PulledWeights, ReceiveEvent, Receiver, ReceiverConfig,
    Snapshots,
};

use crate::config::Config;
use crate::external::{ExternalEngine, Remote, WeightsFolder};
use crate::metrics::{self, Way};
use crate::policy_engine::PolicyEngine;
use crate::policy_model::PolicyModel;
use crate::preparation::{Preparation, Prepared};

/// Pulls whose results may wait. The coordinator asks for one at a time.
const PULL_CAPACITY: usize = 4;

/// The policy in use.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) engine: PolicyEngine,
    pub(crate) encoder: Arc<PromptEncoder>,
}

/// What happened to the policy's weights.
#[derive(Debug)]
pub(crate) enum PolicyEvent {
    /// What became of a broadcast group.
    Group(GroupEvent),
    /// Weights did not arrive.
    Failed { version: PolicyVersion, detail: String },
    /// Weights are ready for [`PolicyUpdater::install`].
    Arrived { manifest: Manifest, weights: Prepared },
}

/// What others get of the policy.
#[derive(Debug)]
pub(crate) struct Outlets {
    /// Tells the pages of [`openai`] about the policy, once there is one.
    pub(crate) served: watch::Sender<Option<Served>>,
    /// Other actors pull the weights from here.
    pub(crate) shared: Option<SharedWeights>,
}

/// The weight service of this actor.
#[derive(Debug)]
pub(crate) struct SharedWeights {
    /// `host:port` under which others reach it.
    pub(crate) source: String,
    pub(crate) snapshots: Snapshots,
    pub(crate) files: ModelFiles,
}

/// Where weights can be pulled.
#[derive(Debug)]
pub(crate) struct WeightSource {
    /// `host:port` of a weight service.
    pub(crate) address: String,
    pub(crate) version: PolicyVersion,
    pub(crate) hash: WeightHash,
}

/// Keeps the policy new. It is known after the first pull; everything before that is refused.
#[derive(Debug)]
pub(crate) struct PolicyUpdater {
    member: Member,
    engine: EngineConfig,
    /// The server that draws, where that is no engine of this process.
    remote: Option<Arc<Remote>>,
    /// Whether the run repeats itself to the bit.
    deterministic: bool,
    known: Option<KnownModel>,
    /// The pull under way, if there is one.
    pulling: Option<PullUnderWay>,
    /// Bytes that pulls have brought.
    pulled_bytes: Arc<AtomicU64>,
    /// What pulls under way bring.
    pulled: mpsc::Receiver<Pulled>,
    pull_results: mpsc::Sender<Pulled>,
    /// What could not be begun, until `next` has said so.
    refusals: VecDeque<PolicyEvent>,
    outlets: Outlets,
    transfer: Transfer,
    security: Security,
}

/// A pull and the way to its source: it goes on from another when it is told one, and is given up with this.
#[derive(Debug)]
struct PullUnderWay {
    hash: WeightHash,
    source: watch::Sender<String>,
}

/// The model that an engine is made for, and who receives its weights.
#[derive(Debug)]
struct KnownModel {
    config: ModelConfig,
    encoder: Arc<PromptEncoder>,
    /// That of its tokenizer.
    vocabulary: Vocabulary,
    receiver: Receiver<Preparation>,
}

/// The transfer under way, or the last one.
#[derive(Debug, Clone, Copy)]
struct Transfer {
    way: Way,
    since: Instant,
}

impl Transfer {
    fn begin(way: Way) -> Self {
        Self { way, since: Instant::now() }
    }
}

/// What came of a pull.
#[derive(Debug)]
struct Pulled {
    version: PolicyVersion,
    hash: WeightHash,
    result: anyhow::Result<Download>,
}

/// What a pull brought.
#[derive(Debug)]
struct Download {
    pulled: PulledWeights,
    /// What the first one brings beside the weights.
    model: Option<PolicyModel>,
}

impl PolicyUpdater {
    /// An updater that knows no model yet.
    pub(crate) fn new(
        config: &Config,
        name: MemberId,
        remote: Option<Arc<Remote>>,
        security: Security,
        outlets: Outlets,
    ) -> Self {
        let (pull_results, pulled) = mpsc::channel(PULL_CAPACITY);
        let device = config.engine.device.to_torch();
        Self {
            member: Member { name, device, timeout: config.weights_timeout },
            engine: config.engine.clone(),
            remote,
            deterministic: false,
            known: None,
            pulling: None,
            pulled_bytes: Arc::default(),
            pulled,
            pull_results,
            refusals: VecDeque::new(),
            outlets,
            transfer: Transfer::begin(Way::Pull),
            security,
        }
    }

    /// Says whether the run is to repeat itself to the bit; before there is an engine.
    pub(crate) fn set_deterministic(&mut self, deterministic: bool) {
        self.deterministic = deterministic;
    }

    /// `host:port` where others pull the weights in use, if they are shared.
    pub(crate) fn source(&self) -> Option<String> {
        self.outlets.shared.as_ref().map(|shared| shared.source.clone())
    }

    /// That of the policy's tokenizer, once there is one.
    pub(crate) fn vocabulary(&self) -> Option<Vocabulary> {
        self.known.as_ref().map(|known| known.vocabulary.clone())
    }

    /// Bytes of weights that pulls have brought since the start.
    pub(crate) fn pulled_bytes(&self) -> u64 {
        self.pulled_bytes.load(Ordering::Relaxed)
    }

    /// Waits for what happens next. The future may be dropped at any time.
    ///
    /// # Errors
    /// When the receiver's thread is gone.
    pub(crate) async fn next(&mut self) -> anyhow::Result<PolicyEvent> {
        loop {
            if let Some(refusal) = self.refusals.pop_front() {
                return Ok(refusal);
            }
            tokio::select! {
                event = next_received(&mut self.known) => return Ok(self.received(event?)),
                Some(pulled) = self.pulled.recv() => self.unpack(pulled),
            }
        }
    }

    fn received(&self, event: ReceiveEvent<Prepared>) -> PolicyEvent {
        match event {
            ReceiveEvent::Arrived { manifest, weights } => PolicyEvent::Arrived { manifest, weights },
            ReceiveEvent::Failed { version, error } => {
                metrics::weights_failed(self.transfer.way);
                PolicyEvent::Failed { version, detail: error.to_string() }
            }
            ReceiveEvent::Group(event) => PolicyEvent::Group(event),
        }
    }

    /// Begins a pull; what comes of it is a [`PolicyEvent`]. A pull of the same weights that is under way
    /// goes on from the new source; one of others is given up, and nothing comes of it.
    pub(crate) async fn pull(&mut self, spawner: &Spawner, source: WeightSource) {
        let WeightSource { address, version, hash } = source;
        tracing::debug!(%version, source = address, "pull ordered");
        if let Some(pulling) = self.pulling.as_ref().filter(|pulling| pulling.hash == hash) {
            pulling.source.send_replace(address);
            return;
        }
        self.transfer = Transfer::begin(Way::Pull);
        let (source, followed) = watch::channel(address);
        self.pulling = Some(PullUnderWay { hash, source });
        let order = PullOrder {
            hash,
            source: followed,
            received_bytes: Arc::clone(&self.pulled_bytes),
            security: self.security.clone(),
        };
        let results = self.pull_results.clone();
        let model_is_known = self.known.is_some();
        let pull = async move {
            let result = download(order, model_is_known).await;
            // Nobody waiting means that the actor is ending.
            let _ = results.send(Pulled { version, hash, result }).await;
            Ok(())
        };
        spawner.spawn(format!("pull of {version}"), OnError::Log, pull).await;
    }

    /// Nothing comes of a pull that is under way.
    pub(crate) fn give_up_pull(&mut self) {
        self.pulling = None;
    }

    /// A pull is through: the receiver's thread checks and prepares what came.
    fn unpack(&mut self, pulled: Pulled) {
        let Pulled { version, hash, result } = pulled;
        if self.pulling.as_ref().is_none_or(|pulling| pulling.hash != hash) {
            tracing::info!(%version, "a pull was given up for a newer one");
            return;
        }
        self.pulling = None;
        let unpacking = result.and_then(|download| {
            let PulledWeights { description, buffer } = download.pulled;
            if let Some(model) = download.model.filter(|_| self.known.is_none()) {
                self.known = Some(self.start_receiver(model, &description.files)?);
                if let Some(shared) = &self.outlets.shared {
                    shared.files.set(description.files);
                }
            }
            Ok(self.receiver()?.unpack(description.manifest, buffer)?)
        });
        if let Err(error) = unpacking {
            metrics::weights_failed(Way::Pull);
            let detail = format!("{error:#}");
            self.refusals.push_back(PolicyEvent::Failed { version, detail });
        }
    }

    fn start_receiver(&self, model: PolicyModel, files: &[ModelFile]) -> Result<KnownModel, weights::Error> {
        let PolicyModel { config, encoder, vocabulary } = model;
        let prepare = match (&self.remote, &self.engine.weights_folder) {
            (Some(remote), Some(folder)) => {
                let folder = WeightsFolder::new(folder, &self.member.name);
                Preparation::external(Arc::clone(remote), config.clone(), folder, files.to_vec())
            }
            _ => Preparation::Own { model: config.clone(), engine: self.engine.clone() },
        };
        let shared = self.outlets.shared.as_ref().map(|shared| shared.snapshots.clone());
        let receiver = ReceiverConfig { member: self.member.clone(), model: config.clone(), shared };
        let receiver = Receiver::start(receiver, prepare)?;
        Ok(KnownModel { config, encoder: Arc::new(encoder), vocabulary, receiver })
    }

    /// Connects to a broadcast group in the background; what comes of it is a [`PolicyEvent`].
    pub(crate) fn join(&mut self, group: BroadcastGroup) {
        let id = group.id;
        if let Err(error) = self.receiver().and_then(|receiver| receiver.join(group)) {
            self.refusals.push_back(PolicyEvent::Group(GroupEvent::Failed { group: id, error }));
        }
    }

    /// Leaves a broadcast group that has ended; what was under way in it is a [`PolicyEvent::Failed`].
    pub(crate) fn leave(&self, group: BroadcastGroupId) {
        if let Some(known) = &self.known
            && let Err(error) = known.receiver.leave(group)
        {
            tracing::warn!(%group, %error, "broadcast group not left; its timeout ends it");
        }
    }

    /// Takes part in a broadcast; what comes of it is a [`PolicyEvent`].
    pub(crate) fn receive(&mut self, group: BroadcastGroupId, manifest: Manifest) {
        self.transfer = Transfer::begin(Way::Broadcast);
        let version = manifest.version();
        if let Err(error) = self.receiver().and_then(|receiver| receiver.receive(group, manifest)) {
            metrics::weights_failed(Way::Broadcast);
            self.refusals.push_back(PolicyEvent::Failed { version, detail: error.to_string() });
        }
    }

    fn receiver(&self) -> Result<&Receiver<Preparation>, weights::Error> {
        self.known.as_ref().map(|known| &known.receiver).ok_or(weights::Error::UnknownModel)
    }

    /// Puts weights into use from the next decode step on: makes the engine for the first, exchanges all
    /// others.
    ///
    /// # Errors
    /// When the engine cannot be made or is gone.
    pub(crate) async fn install(
        &mut self,
        policy: &mut Option<Policy>,
        version: PolicyVersion,
        weights: Prepared,
    ) -> anyhow::Result<()> {
        match (policy.as_ref().map(|policy| &policy.engine), weights) {
            (Some(PolicyEngine::Own { handle, .. }), Prepared::Own(weights)) => {
                handle.swap_weights(*weights).await.context("put new weights into use")?;
            }
            (None, Prepared::Own(weights)) => *policy = Some(self.start_engine(*weights).await?),
            // The server has them.
            (Some(_), _) => {}
            (None, Prepared::External) => *policy = Some(self.start_external()?),
        }
        let Transfer { way, since } = self.transfer;
        metrics::weights_in_use(way, version.0, since.elapsed());
        tracing::info!(%version, ?way, took = ?since.elapsed(), "weights in use");
        Ok(())
    }

    async fn start_engine(&mut self, weights: PolicyWeights) -> anyhow::Result<Policy> {
        let known = self.known.as_ref().ok_or(weights::Error::UnknownModel)?;
        let encoder = Arc::clone(&known.encoder);
        let mut config = self.engine.clone();
        if self.deterministic && config.prefix_cache && !engine::repeats_itself(&known.config, &config) {
            tracing::info!("prefix_cache is off: this backend's last bits depend on what is in the cache");
            config.prefix_cache = false;
        }
        let parts = EngineParts {
            model: known.config.clone(),
            weights,
            tokenizer: Some(Arc::clone(encoder.tokenizer())),
            config,
        };
        let engine = EngineHandle::start(parts).await.context("start the engine")?;
        let client = engine.client().await?;
        // Nobody serves it unless the configuration says so.
        self.outlets.served.send_replace(Some(Served::new(engine.clone(), Arc::clone(&encoder))));
        Ok(Policy { engine: PolicyEngine::Own { handle: engine, client }, encoder })
    }

    fn start_external(&self) -> anyhow::Result<Policy> {
        let known = self.known.as_ref().ok_or(weights::Error::UnknownModel)?;
        let remote = self.remote.clone().context("weights for an external engine without one")?;
        let engine = ExternalEngine::start(remote, self.engine.clone(), &known.config);
        Ok(Policy { engine: PolicyEngine::External(Box::new(engine)), encoder: Arc::clone(&known.encoder) })
    }
}

/// Fetches weights, and with the first ones their model. Files are read on a thread for that: a large
/// vocabulary takes long.
async fn download(order: PullOrder, model_is_known: bool) -> anyhow::Result<Download> {
    let pulled = weights::pull(order).await?;
    let model = if model_is_known {
        None
    } else {
        let files = pulled.description.files.clone();
        Some(tokio::task::spawn_blocking(move || PolicyModel::read(files)).await??)
    };
    Ok(Download { pulled, model })
}

/// What the engine says next; it says nothing before there is a policy.
pub(crate) async fn next_event(policy: &mut Option<Policy>) -> anyhow::Result<Event> {
    match policy {
        Some(policy) => Ok(policy.engine.next_event().await?),
        None => std::future::pending().await,
    }
}

async fn next_received(known: &mut Option<KnownModel>) -> anyhow::Result<ReceiveEvent<Prepared>> {
    match known {
        Some(known) => known.receiver.next_event().await.context("the weight receiver is gone"),
        None => std::future::pending().await,
    }
}
