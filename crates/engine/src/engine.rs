//! The engine: a scheduler over a network.

use std::sync::Arc;

use model::{Head, Layout, ModelConfig, RopeScaling, Tokenizer};
use types::PolicyVersion;

use crate::backend::{self, Network, PolicyWeights, native};
use crate::batch::Batch;
use crate::blocks::BlockPool;
use crate::config::EngineConfig;
use crate::defaults::DeviceMemory;
use crate::error::Error;
use crate::profile;
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
    /// Blocks of the cache, and bytes of each.
    blocks: usize,
    block_bytes: u64,
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
        Self::measured(model, weights, tokenizer, config, &memory)
    }

    /// The same where the device's memory is what `memory` says.
    fn measured(
        model: &ModelConfig,
        weights: PolicyWeights,
        tokenizer: Option<Arc<Tokenizer>>,
        config: &EngineConfig,
        memory: &Measure<'_>,
    ) -> Result<Self, Error> {
        check(model, config)?;
        let context = context_tokens(model, config);
        let limits = Limits {
            max_sequences: config.max_sequences(),
            max_waiting: config.max_waiting,
            prefill_chunk_tokens: config.prefill_chunk_tokens(),
            block_tokens: config.block_tokens,
            context,
            vocab_size: usize::try_from(model.vocab_size).unwrap_or(usize::MAX),
            prefix_cache: config.prefix_cache,
            plain_positions: plain_positions(model),
        };
        let (version, block_bytes) = (weights.version(), backend::block_bytes(model, config));
        let is_measured = config.kv_cache_blocks.is_none()
            && config.kv_cache_bytes.is_none()
            && !backend::is_native(config, model)
            && memory(config)?.is_some();
        let stated = if is_measured { profile::blocks(&limits) } else { pool_blocks(model, config)? };
        let mut network = Network::new(model, weights, config, stated)?;
        let blocks = if is_measured {
            profile::run(&mut network, &limits)?;
            let blocks = measured_blocks(model, config, memory(config)?)?;
            network.resize(config, blocks)?;
            blocks
        } else {
            stated
        };
        tracing::info!(
            device = %config.device,
            dtype = ?config.dtype(),
            blocks,
            block_tokens = config.block_tokens,
            cache_bytes = blocks as u64 * backend::block_bytes(model, config),
            cache_measured = is_measured,
            max_sequences = limits.max_sequences,
            prefill_chunk_tokens = limits.prefill_chunk_tokens,
            context_tokens = context,
            "engine"
        );
        let mut scheduler = Scheduler::new(limits, BlockPool::new(blocks), tokenizer);
        scheduler.swap(version, config.on_swap);
        let (config, batch) = (config.clone(), Batch::default());
        Ok(Self { scheduler, network, config, context, blocks, block_bytes, batch })
    }

    /// Where it runs and with how much, for a person.
    pub fn summary(&self) -> String {
        let Self { config, blocks, .. } = self;
        format!(
            "{}, {:?}, a cache of {} tokens in {:.2} GiB, {} responses at a time, {} prompt tokens a step",
            config.device,
            config.dtype(),
            blocks * config.block_tokens,
            (*blocks as u64 * self.block_bytes) as f64 / (1_u64 << 30) as f64,
            config.max_sequences(),
            config.prefill_chunk_tokens()
        )
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
    let bytes = config.cache_bytes().unwrap_or(0);
    blocks_of(model, config, bytes)
        .ok_or_else(|| {
            format!("kv_cache_bytes is {bytes}, one block takes {}", backend::block_bytes(model, config))
        })
        .map_err(|problem| Error::Config(vec![problem]))
}

/// Blocks of a cache of so many bytes; none where there is not even one.
fn blocks_of(model: &ModelConfig, config: &EngineConfig, bytes: u64) -> Option<usize> {
    let blocks = bytes / backend::block_bytes(model, config);
    (blocks > 0).then(|| usize::try_from(blocks).unwrap_or(usize::MAX).min(1 << 30))
}

/// Blocks of a cache that takes what is free of a device's memory.
fn measured_blocks(
    model: &ModelConfig,
    config: &EngineConfig,
    memory: Option<DeviceMemory>,
) -> Result<usize, Error> {
    let next_weights = if config.weights_are_fixed {
        0
    } else {
        Layout::new(model).numel().unsigned_abs() * config.dtype().size()
    };
    let bytes = memory.map_or(0, |memory| memory.cache_bytes(next_weights));
    blocks_of(model, config, bytes).ok_or_else(|| {
        let free = memory.map_or(0, |memory| memory.free);
        Error::Config(vec![format!(
            "{} has {free} bytes free beside the weights and the largest step, of which the next weights take {next_weights}: \
             no room for a cache; set prefill_chunk_tokens or max_sequences lower, or kv_cache_bytes",
            config.device
        )])
    })
}

/// Says how much memory an engine's device has, where that can be asked.
type Measure<'a> = dyn Fn(&EngineConfig) -> Result<Option<DeviceMemory>, Error> + 'a;

/// The memory of the engine's device; none on the CPU, whose memory others need, too.
fn memory(config: &EngineConfig) -> Result<Option<DeviceMemory>, Error> {
    Ok(config.device.memory()?.map(|(free, total)| DeviceMemory { free, total }))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use model::{Architecture, Dimensions, Weights};
    use types::Sampling;

    use crate::config::Backend;
    use crate::request::SampleRequest;

    use super::*;

    fn model() -> ModelConfig {
        let dimensions = Dimensions {
            vocab_size: 50,
            hidden_size: 16,
            intermediate_size: 24,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            max_positions: 64,
        };
        ModelConfig::new(Architecture::Llama, dimensions).unwrap()
    }

    /// An engine of torch's operators, and how often it asked for the memory.
    fn measured(config: &EngineConfig, free: u64) -> Result<(Engine, usize), Error> {
        let model = model();
        let weights = Weights::random(&model, 1, tch::Kind::Float, tch::Device::Cpu);
        let weights = PolicyWeights::prepare(&model, &weights, PolicyVersion(0), config).unwrap();
        let asked = RefCell::new(0);
        let memory = |_: &EngineConfig| {
            *asked.borrow_mut() += 1;
            Ok(Some(DeviceMemory { free, total: 20_000 }))
        };
        let engine = Engine::measured(&model, weights, None, config, &memory)?;
        Ok((engine, asked.into_inner()))
    }

    fn drawn(engine: &mut Engine) -> Vec<u32> {
        let request = Request {
            prompt_tokens: [3, 4, 5].into(),
            samples: vec![SampleRequest { id: 1, seed: 7 }],
            sampling: Arc::new(Sampling::default()),
            eos_token_ids: [].into(),
            min_tokens: 0,
            grammar: None,
            top_logprobs: 0,
            stream: false,
        };
        engine.submit(&[request]).pop().unwrap().unwrap();
        loop {
            for event in engine.step().unwrap() {
                if let Event::Finished(finished) = event {
                    return finished.response_tokens;
                }
            }
        }
    }

    #[test]
    fn a_cache_that_is_not_given_takes_the_memory_that_is_measured() {
        let config = EngineConfig {
            backend: Backend::Aten,
            threads: 1,
            max_sequences: Some(4),
            weights_are_fixed: true,
            ..EngineConfig::default()
        };
        // A block is 16 tokens of keys and values, 8 elements each, in 2 layers: 2 KiB.
        assert_eq!(backend::block_bytes(&model(), &config), 2048);
        let (mut engine, asked) = measured(&config, 100_000).unwrap();
        assert_eq!((engine.load().total_blocks, asked), ((100_000 - 1000) / 2048, 2));
        assert!(engine.summary().starts_with("cpu, F32, a cache of 768 tokens"), "{}", engine.summary());
        // The profile leaves nothing behind.
        assert_eq!(engine.totals(), Totals::default());
        let stated = EngineConfig { kv_cache_blocks: Some(48), ..config.clone() };
        let (mut other, asked) = measured(&stated, 0).unwrap();
        assert_eq!((other.load().total_blocks, asked), (48, 0), "who says how much is not measured");
        assert_eq!(drawn(&mut engine), drawn(&mut other));
        // The next weights arrive beside those in use.
        let swapping = EngineConfig { weights_are_fixed: false, ..config.clone() };
        let weights = Layout::new(&model()).numel().unsigned_abs() * 4;
        let (engine, _) = measured(&swapping, 100_000).unwrap();
        assert_eq!(engine.load().total_blocks as u64, (100_000 - 1000 - weights) / 2048);
        let error = measured(&swapping, 3000).unwrap_err().to_string();
        assert!(
            error.contains("cpu has 3000 bytes free") && error.contains("no room for a cache"),
            "{error}"
        );
    }
}
