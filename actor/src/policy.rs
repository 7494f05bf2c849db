//! The policy in use, and how it is kept new: pulls and broadcasts end here as weights that the engine takes up.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use engine::PromptEncoder;
use engine::{EngineClient, EngineConfig, EngineHandle, EngineParts, PolicyWeights};
use model::{ModelConfig, Tokenizer};
use openai::Served;
use service::{OnError, Spawner};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use types::link::actor::BroadcastGroup;
use types::{BroadcastGroupId, Manifest, MemberId, ModelDescription, PolicyVersion, WeightHash};

use crate::config::Config;
use crate::metrics::{self, Way};
use crate::pull_client;
use crate::weights::{ReceiverConfig, WeightEvent, WeightReceiver};

/// Events that may wait.
const EVENTS: usize = 16;

/// The policy in use.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) engine: EngineHandle,
    /// The rollout loop's way to it.
    pub(crate) client: EngineClient,
    pub(crate) encoder: Arc<PromptEncoder>,
}

/// What the keeper has to say.
#[derive(Debug)]
pub(crate) enum PolicyEvent {
    /// A broadcast group stands.
    GroupReady(BroadcastGroupId),
    /// A broadcast group is dead.
    GroupFailed(BroadcastGroupId, String),
    /// Weights did not arrive.
    Failed { version: PolicyVersion, detail: String },
    /// Weights are ready for [`PolicyKeeper::install`].
    Arrived(Manifest, Box<PolicyWeights>),
}

/// What a pull brought.
#[derive(Debug)]
struct Pulled {
    version: PolicyVersion,
    result: anyhow::Result<(ModelDescription, Bytes)>,
}

/// A model folder's content without weights: what an engine is made for.
#[derive(Debug)]
struct Model {
    config: ModelConfig,
    tokenizer: Arc<Tokenizer>,
    receiver: WeightReceiver,
}

/// Keeps the policy new.
#[derive(Debug)]
pub(crate) struct PolicyKeeper {
    member: MemberId,
    time_limit: Duration,
    engine: EngineConfig,
    /// Known after the first pull.
    model: Option<Model>,
    /// The encoder of the model just learnt about, until the policy takes it.
    encoder: Option<PromptEncoder>,
    weight_events: (mpsc::Sender<WeightEvent>, mpsc::Receiver<WeightEvent>),
    pulls: (mpsc::Sender<Pulled>, mpsc::Receiver<Pulled>),
    /// Tells the pages of [`openai`] about the policy, once there is one.
    served: watch::Sender<Option<Served>>,
    /// How the transfer under way comes, and since when.
    transfer: (Way, Instant),
}

impl PolicyKeeper {
    /// A keeper that knows no model yet.
    pub(crate) fn new(config: &Config, member: MemberId, served: watch::Sender<Option<Served>>) -> Self {
        Self {
            member,
            time_limit: config.weights_time_limit,
            engine: config.engine.clone(),
            model: None,
            encoder: None,
            weight_events: mpsc::channel(EVENTS),
            pulls: mpsc::channel(EVENTS),
            served,
            transfer: (Way::Pull, Instant::now()),
        }
    }

    /// Waits for what happens next. The future may be dropped at any time.
    pub(crate) async fn next(&mut self) -> PolicyEvent {
        loop {
            tokio::select! {
                Some(event) = self.weight_events.1.recv() => return self.translate(event),
                Some(pulled) = self.pulls.1.recv() => {
                    let version = pulled.version;
                    if let Err(error) = self.pulled(pulled) {
                        metrics::weights_failed(Way::Pull);
                        return PolicyEvent::Failed { version, detail: format!("{error:#}") };
                    }
                }
            }
        }
    }

    fn translate(&self, event: WeightEvent) -> PolicyEvent {
        match event {
            WeightEvent::Arrived { manifest, weights } => PolicyEvent::Arrived(manifest, weights),
            WeightEvent::Failed { version, detail } => {
                metrics::weights_failed(self.transfer.0);
                PolicyEvent::Failed { version, detail }
            }
            WeightEvent::GroupReady(id) => PolicyEvent::GroupReady(id),
            WeightEvent::GroupFailed(id, detail) => PolicyEvent::GroupFailed(id, detail),
        }
    }

    /// Begins a pull; what comes of it is a [`PolicyEvent`].
    pub(crate) async fn pull(
        &mut self,
        spawner: &Spawner,
        source: String,
        version: PolicyVersion,
        hash: WeightHash,
    ) {
        self.transfer = (Way::Pull, Instant::now());
        let pulls = self.pulls.0.clone();
        let pull = async move {
            let result = async {
                let description = pull_client::describe(&source, hash).await?;
                let buffer = pull_client::pull(&source, &description.manifest).await?;
                Ok((description, buffer))
            };
            let result = result.await;
            // Nobody waiting means that the actor is ending.
            let _ = pulls.send(Pulled { version, result }).await;
            Ok(())
        };
        spawner.spawn(format!("pull of {version}"), OnError::Log, pull).await;
    }

    /// A pull is through: the receiver's thread checks and prepares what came.
    fn pulled(&mut self, pulled: Pulled) -> anyhow::Result<()> {
        let (description, buffer) = pulled.result?;
        if self.model.is_none() {
            let folder = temporary_folder()?;
            let learnt = self.learn(&folder, &description);
            // The files have been read, or the reason is known.
            let _ = std::fs::remove_dir_all(&folder);
            learnt?;
        }
        let model = self.model.as_ref().context("the model is not known")?;
        model.receiver.unpack(description.manifest, buffer)
    }

    /// Learns about the model from the files that the learner sent.
    fn learn(&mut self, folder: &Path, description: &ModelDescription) -> anyhow::Result<()> {
        pull_client::write_files(folder, description)?;
        let path = folder.join("config.json");
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let config = ModelConfig::parse(&bytes).context("read the policy's configuration")?;
        let tokenizer = Arc::new(Tokenizer::load(folder).context("read the policy's tokenizer")?);
        self.encoder = Some(PromptEncoder::load(folder, Arc::clone(&tokenizer))?);
        let receiver = ReceiverConfig {
            member: self.member.clone(),
            model: config.clone(),
            engine: self.engine.clone(),
            time_limit: self.time_limit,
        };
        let receiver = WeightReceiver::start(receiver, self.weight_events.0.clone())?;
        self.model = Some(Model { config, tokenizer, receiver });
        Ok(())
    }

    /// Connects to a broadcast group in the background.
    pub(crate) async fn join(&mut self, group: BroadcastGroup) {
        let id = group.id;
        if let Err(error) = self.receiver().and_then(|receiver| receiver.join(group)) {
            let failed = WeightEvent::GroupFailed(id, format!("{error:#}"));
            let _ = self.weight_events.0.send(failed).await;
        }
    }

    /// Takes part in a broadcast.
    pub(crate) async fn receive(&mut self, group: BroadcastGroupId, manifest: Manifest) {
        self.transfer = (Way::Broadcast, Instant::now());
        let version = manifest.version;
        if let Err(error) = self.receiver().and_then(|receiver| receiver.receive(group, manifest)) {
            let failed = WeightEvent::Failed { version, detail: format!("{error:#}") };
            let _ = self.weight_events.0.send(failed).await;
        }
    }

    fn receiver(&self) -> anyhow::Result<&WeightReceiver> {
        Ok(&self.model.as_ref().context("no weights were pulled before")?.receiver)
    }

    /// Puts weights into use from the next decode step on: makes the engine for the first, exchanges all others.
    ///
    /// # Errors
    /// When the engine cannot be made or is gone.
    pub(crate) async fn install(
        &mut self,
        policy: &mut Option<Policy>,
        manifest: &Manifest,
        weights: PolicyWeights,
    ) -> anyhow::Result<()> {
        match policy {
            Some(policy) => policy.engine.swap_weights(weights).await.context("put new weights into use")?,
            None => {
                let model = self.model.as_ref().context("the model is not known")?;
                let encoder = self.encoder.take().context("the tokenizer is not known")?;
                let tokenizer = Some(Arc::clone(&model.tokenizer));
                let (model, config) = (model.config.clone(), self.engine.clone());
                let parts = EngineParts { model, weights, tokenizer, config };
                let engine = EngineHandle::start(parts).await.context("start the engine")?;
                let client = engine.client().await?;
                let encoder = Arc::new(encoder);
                // Nobody serves it unless the configuration says so.
                self.served.send_replace(Some(Served::new(engine.clone(), Arc::clone(&encoder))));
                *policy = Some(Policy { engine, client, encoder });
            }
        }
        let (way, since) = self.transfer;
        metrics::weights_in_use(way, manifest.version.0, since.elapsed());
        tracing::info!(version = %manifest.version, ?way, took = ?since.elapsed(), "weights in use");
        Ok(())
    }
}

/// A new folder for the files of a model description.
fn temporary_folder() -> anyhow::Result<std::path::PathBuf> {
    let folder = std::env::temp_dir().join(format!("sluice-actor-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}
