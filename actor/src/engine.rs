//! The generation engine: continuous batching over a paged cache of keys and values.
//!
//! An [`Engine`] belongs to one thread and does nothing by itself: [`Engine::submit`] queues requests,
//! [`Engine::step`] computes one step of the network for everything that runs and returns what happened,
//! [`Engine::swap_weights`] exchanges the policy between two steps. What comes out is a function of what was submitted
//! and between which steps. [`EngineHandle`] puts an engine on a thread of its own for async callers.
//!
//! The scheduler decides (`scheduler`), a backend computes: `native`, the engine's own code for the CPU, or `aten`, torch's
//! operators for GPUs. With the native one a response depends on its prompt, sampling, seed and weights only, to the
//! bit; with torch's operators up to rounding.

mod aten;
mod batch;
mod blocks;
mod config;
mod handle;
mod native;
mod policy;
mod random;
mod request;
mod scheduler;
mod sequence;
mod stopping;
mod worker;

use std::sync::Arc;

use model::{Head, ModelConfig, RopeScaling, Tokenizer};
use types::PolicyVersion;

pub use config::{Backend, CacheOnSwap, EngineConfig};
pub use handle::{EngineClient, EngineHandle, EngineParts};
pub use model::Device;
pub use policy::PolicyWeights;
pub use request::{
    Event, Finished, Load, MAX_TOP_LOGPROBS, Refusal, Request, SampleRequest, StopText, Token, TokenLogprob,
    Totals,
};

use batch::Batch;
use blocks::BlockPool;
use policy::Network;
use scheduler::{Limits, Scheduler};

/// Why an engine cannot be made or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is unusable.
    #[error("the engine's configuration is not usable: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The network is not one that generates.
    #[error("{0} has a scalar head, which draws no tokens; give a causal language model")]
    Head(String),
    /// The backend does not run this network.
    #[error(
        "the native backend supports heads of up to 512 elements, the model has {0}; leave backend at \"auto\""
    )]
    HeadDim(i64),
    /// The system did not give memory or threads.
    #[error("the system refused {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        source: std::io::Error,
    },
    /// Weights could not be read.
    #[error(transparent)]
    Read(Box<dyn std::error::Error + Send + Sync>),
    /// New weights do not belong to the network that runs.
    #[error("the new weights are of another network or element type than those the engine was made with")]
    Weights,
    /// New weights are older than those in use.
    #[error("weights of {new} cannot follow those of {current}: versions never go back")]
    Version {
        /// In use.
        current: PolicyVersion,
        /// Offered.
        new: PolicyVersion,
    },
    /// Torch refused an operation. The engine cannot be used any more.
    #[error("torch: {0}")]
    Torch(#[from] tch::TchError),
    /// A bug in the engine. It cannot be used any more.
    #[error("the engine panicked: {0}")]
    Panicked(String),
    /// The engine's thread does not answer any more.
    #[error("the engine has stopped: {0}")]
    Stopped(String),
}

impl Error {
    fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }
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
        let context = context(model, config);
        let blocks = pool_blocks(model, config)?;
        let limits = Limits {
            max_sequences: config.max_sequences,
            max_waiting: config.max_waiting,
            prefill_chunk_tokens: config.prefill_chunk_tokens,
            block_tokens: config.block_tokens,
            context,
            vocab_size: usize::try_from(model.vocab_size).unwrap_or(usize::MAX),
        };
        let version = weights.version();
        let network = Network::new(model, weights, config, blocks)?;
        let mut scheduler = Scheduler::new(limits, BlockPool::new(blocks), tokenizer);
        scheduler.swap(version, config.on_swap);
        Ok(Self { scheduler, network, config: config.clone(), context, batch: Batch::default() })
    }

    /// Queues requests, all before the next step; for each whether it was taken. Responses begin in this order.
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

    /// Exchanges the policy: all tokens drawn from now on are drawn by these weights. Takes no longer than exchanging
    /// pointers. Gives the old weights back, whose memory may take a while to free.
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

fn check(model: &ModelConfig, config: &EngineConfig) -> Result<(), Error> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(Error::Config(problems));
    }
    if model.head != Head::Causal {
        return Err(Error::Head(model.architecture.class(model.head).to_owned()));
    }
    if config.is_native(model) && !native::supports(model) {
        return Err(Error::HeadDim(model.head_dim));
    }
    config.check_device()
}

/// Longest prompt and response together: what the model was trained for, stretched where its positions are.
fn context(model: &ModelConfig, config: &EngineConfig) -> usize {
    let stretch = match model.rope.scaling {
        RopeScaling::Dynamic { factor } => factor.max(1.0),
        _ => 1.0,
    };
    let most = (model.max_positions as f64 * stretch) as usize;
    config.context_tokens.map_or(most, |tokens| tokens.min(most))
}

/// Blocks of the cache.
fn pool_blocks(model: &ModelConfig, config: &EngineConfig) -> Result<usize, Error> {
    if let Some(blocks) = config.kv_cache_blocks {
        return Ok(blocks);
    }
    let block_bytes = policy::block_bytes(model, config);
    let blocks = config.kv_cache_bytes / block_bytes;
    if blocks == 0 {
        let problem = format!("kv_cache_bytes is {}, one block takes {block_bytes}", config.kv_cache_bytes);
        return Err(Error::Config(vec![problem]));
    }
    Ok(usize::try_from(blocks).unwrap_or(usize::MAX).min(1 << 30))
}
