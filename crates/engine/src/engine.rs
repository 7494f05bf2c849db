//! The engine: a scheduler over a network.

use std::sync::Arc;

use model::{Head, ModelConfig, RopeScaling, Tokenizer};
use types::PolicyVersion;

use crate::backend::{self, Network, PolicyWeights, native};
use crate::batch::Batch;
use crate::blocks::BlockPool;
use crate::config::EngineConfig;
use crate::error::Error;
use crate::request::{Event, Load, Refusal, Request, Totals};
use crate::scheduler::{Limits, Scheduler};

/// What makes an engine.
#[derive(Debug)]
pub struct EngineParts {
    /// The network.
    pub model: ModelConfig,
    /// Its weights.
    pub weights: PolicyWeights,
    /// Needed for stop texts only.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// How it runs.
    pub config: EngineConfig,
}

/// Generates responses.
#[derive(Debug)]
pub struct Engine {
    scheduler: Scheduler,
    network: Network,
    config: EngineConfig,
    context: usize,
    /// The work of a step; kept for its memory.
    batch: Batch,
}

impl Engine {
    /// An engine for a causal language model. The `tokenizer` is needed for stop texts only.
    ///
    /// # Errors
    /// When the configuration is unusable, the model is not causal, or the system has no room for the cache.
    pub fn new(
        model: &ModelConfig,
        weights: PolicyWeights,
        tokenizer: Option<Arc<Tokenizer>>,
        config: &EngineConfig,
    ) -> Result<Self, Error> {
        check(model, config)?;
        let context = context_tokens(model, config);
        let blocks = pool_blocks(model, config)?;
        let limits = Limits {
            max_sequences: config.max_sequences,
            max_waiting: config.max_waiting,
            prefill_chunk_tokens: config.prefill_chunk_tokens,
            block_tokens: config.block_tokens,
            context,
            vocab_size: usize::try_from(model.vocab_size).unwrap_or(usize::MAX),
            prefix_cache: config.prefix_cache,
            plain_positions: plain_positions(model),
        };
        let version = weights.version();
        let network = Network::new(model, weights, config, blocks)?;
        let mut scheduler = Scheduler::new(limits, BlockPool::new(blocks), tokenizer);
        scheduler.swap(version, config.on_swap);
        Ok(Self { scheduler, network, config: config.clone(), context, batch: Batch::default() })
    }

    /// Queues requests, all before the next step; for each whether it was taken. Responses begin in this
    /// order.
    ///
    /// # Errors
    /// For each request of its own: see [`Refusal`].
    pub fn submit(&mut self, requests: &[Request]) -> Vec<Result<(), Refusal>> {
        requests.iter().map(|request| self.scheduler.submit(request)).collect()
    }

    /// Gives up a response; no event will name it. False when none of this id is under way.
    pub fn cancel(&mut self, id: u64) -> bool {
        self.scheduler.cancel(id)
    }

    /// Computes the next step; nothing happens when the engine is idle.
    ///
    /// # Errors
    /// When torch refuses an operation; the engine cannot be used any more then.
    pub fn step(&mut self) -> Result<Vec<Event>, Error> {
        self.scheduler.plan(&mut self.batch);
        if self.batch.tokens.is_empty() {
            return Ok(Vec::new());
        }
        let drawn = self.network.step(&self.batch)?;
        Ok(self.scheduler.commit(&self.batch, drawn))
    }

    /// Exchanges the policy: all tokens drawn from now on are drawn by these weights. Takes no longer than
    /// exchanging pointers. Gives the old weights back, whose memory may take a while to free.
    ///
    /// # Errors
    /// When the weights are of another network or element type, or older than those in use.
    pub fn swap_weights(&mut self, weights: PolicyWeights) -> Result<PolicyWeights, Error> {
        let (current, new) = (self.version(), weights.version());
        if new < current {
            return Err(Error::Version { current, new });
        }
        let old = self.network.swap(weights)?;
        self.scheduler.swap(new, self.config.on_swap);
        Ok(old)
    }

    /// Gives the weights in use the number of a later version whose weights they are too.
    ///
    /// # Errors
    /// When the version is older than the one in use.
    pub fn renumber(&mut self, version: PolicyVersion) -> Result<(), Error> {
        let current = self.version();
        if version < current {
            return Err(Error::Version { current, new: version });
        }
        self.network.renumber(version);
        self.scheduler.renumber(version);
        Ok(())
    }

    /// The version of the weights in use.
    pub fn version(&self) -> PolicyVersion {
        self.scheduler.version()
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        self.scheduler.load()
    }

    /// What it has done so far.
    pub fn totals(&self) -> Totals {
        Totals { replayed_steps: self.network.replayed_steps(), ..self.scheduler.totals() }
    }

    /// Whether nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        let Load { running, waiting, .. } = self.load();
        running + waiting == 0
    }

    /// Longest prompt and response together, in tokens.
    pub fn context_tokens(&self) -> usize {
        self.context
    }

    /// Its configuration.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }
}

/// Whether the responses of an engine are the same to the bit, whatever else it has generated.
pub fn repeats_itself(model: &ModelConfig, config: &EngineConfig) -> bool {
    backend::is_native(config, model)
}

fn check(model: &ModelConfig, config: &EngineConfig) -> Result<(), Error> {
    let mut problems = config.problems();
    if let Some(name) = config.backend.external() {
        problems.push(format!("backend is {name}, a server of its own, which only an actor asks"));
    }
    if !problems.is_empty() {
        return Err(Error::Config(problems));
    }
    if model.head != Head::Causal {
        return Err(Error::Head(model.architecture.class(model.head).to_owned()));
    }
    if backend::is_native(config, model) && !native::supports(model) {
        return Err(Error::HeadDim(model.head_dim));
    }
    config.check_device()
}

/// Longest prompt and response together: what the model was trained for, stretched where its positions are.
pub fn context_tokens(model: &ModelConfig, config: &EngineConfig) -> usize {
    let stretch = match model.rope.scaling {
        RopeScaling::Dynamic { factor } => factor.max(1.0),
        _ => 1.0,
    };
    let most = (model.max_positions as f64 * stretch) as usize;
    config.context_tokens.map_or(most, |tokens| tokens.min(most))
}

/// Longest prompt whose keys are a function of its tokens alone: rotations that are stretched by the length
/// make those of a longer one a function of its length, too.
fn plain_positions(model: &ModelConfig) -> usize {
    match model.rope.scaling {
        RopeScaling::Dynamic { .. } => usize::try_from(model.max_positions).unwrap_or(usize::MAX),
        _ => usize::MAX,
    }
}

/// Blocks of the cache.
fn pool_blocks(model: &ModelConfig, config: &EngineConfig) -> Result<usize, Error> {
    if let Some(blocks) = config.kv_cache_blocks {
        return Ok(blocks);
    }
    let block_bytes = backend::block_bytes(model, config);
    let blocks = config.kv_cache_bytes / block_bytes;
    if blocks == 0 {
        let problem = format!("kv_cache_bytes is {}, one block takes {block_bytes}", config.kv_cache_bytes);
        return Err(Error::Config(vec![problem]));
    }
    Ok(usize::try_from(blocks).unwrap_or(usize::MAX).min(1 << 30))
}
