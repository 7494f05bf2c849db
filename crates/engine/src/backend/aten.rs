//! The network with torch's operators, on a GPU or the CPU: the functions of the `model` crate, which the
//! learner runs too, with attention over a paged cache.
//!
//! A step has three parts. The host orders the rows and puts everything that depends on the batch alone into
//! one [`Upload`]: tokens, where keys and values go and what is gathered, lengths, rules of the draws. The
//! device makes rotations and masks of it, once a step, and then runs the layers and draws. One tensor of
//! drawn tokens comes back, and copying it is the only time the host waits for the device.
//!
//! A [`Plan`] is everything about a step but these numbers: shapes, and where in the upload what lies. Where
//! FlashAttention applies, steps that only decode are padded to few sizes ([`steady`]), so that their plans
//! come again; then the device replays a CUDA graph, which the host starts with one call instead of some
//! twenty a layer.
//!
//! Whatever the batch, the pool is gathered once a layer, because the operators know no block tables. So a
//! layer reads what its rows see, writes it, and reads it again: three times the bytes that attention itself
//! would read. Layers with a sliding window gather the window only.
//!
//! Numbers of a row depend on the rows beside it in the last bits, as products of matrices do. The same
//! requests, submitted between the same steps, draw the same tokens on the same machine on a CPU.

mod attention;
mod cache;
mod failure;
mod graphs;
mod rows;
mod sampling;
mod steady;
mod upload;
mod weights;

use model::{ModelConfig, Rope};
use tch::{Device, Tensor};

use crate::Error;
use crate::batch::{Batch, Drawn};
use crate::blocks::BlockId;
use crate::config::EngineConfig;
use attention::{Attention, PlacedAttention, Setting};
use cache::{Cache, Copies, Shape};
use failure::caught;
use graphs::Graphs;
use rows::{Order, PlacedRows, Rows};
use sampling::Draws;
use steady::Steady;
use upload::{Arrived, Upload};

pub(crate) use weights::AtenWeights;

/// Bytes of one block of the cache.
pub(crate) fn block_bytes(model: &ModelConfig, engine: &EngineConfig) -> u64 {
    Shape::new(model, engine.block_tokens).block().unsigned_abs() * engine.dtype().size()
}

/// The backend on one device.
#[derive(Debug)]
pub(crate) struct Aten {
    there: OnDevice,
    shape: Shape,
    /// Where steps may be replayed.
    steady: Option<Steady>,
    /// The work of a step for the device; kept for its memory.
    upload: Upload,
    drawn: Vec<Drawn>,
}

/// What stays on the device from step to step, and what is done with it.
#[derive(Debug)]
struct OnDevice {
    model: ModelConfig,
    weights: AtenWeights,
    cache: Cache,
    rope: Rope,
    attention: Setting,
}

/// A step as the device sees it, but for the numbers of its upload.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Plan {
    copies: Option<Copies>,
    rows: Rows,
    attention: Attention,
    draws: Draws,
}

impl Aten {
    /// A backend with an empty cache of `blocks` blocks, on the weights' device. On the CPU torch's operators
    /// take `engine.threads` threads from now on.
    ///
    /// # Errors
    /// When the weights are not of the engine's device and element type, or the device has no room for the
    /// cache.
    pub(crate) fn new(
        model: &ModelConfig,
        weights: AtenWeights,
        engine: &EngineConfig,
        mut blocks: usize,
    ) -> Result<Self, Error> {
        let _guard = tch::no_grad_guard();
        let place @ (kind, device) = engine.place();
        if weights.place() != place {
            return Err(Error::Weights);
        }
        if device == Device::Cpu {
            let available = std::thread::available_parallelism().map_or(1, usize::from);
            let threads = if engine.threads == 0 { available } else { engine.threads };
            tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
        }
        let shape = Shape::new(model, engine.block_tokens);
        let attention = Setting::new(model, shape, place);
        // The padded operators follow the lengths of the sequences, so that with them no step comes again;
        // of experts the host reads between the operators how many rows each has.
        let repeats = engine.cuda_graphs && attention.is_flash() && model.experts.is_none();
        let steady = repeats.then(|| {
            blocks += 1;
            Steady { spare: blocks as BlockId - 1, graphs: Graphs::new(device) }
        });
        let cache =
            Cache::new(&shape, blocks, place).map_err(|error| no_room(&error, blocks, engine, model))?;
        let rope = caught(|| Rope::new(model, kind, device))?;
        let there = OnDevice { model: model.clone(), weights, cache, rope, attention };
        Ok(Self { there, shape, steady, upload: Upload::default(), drawn: Vec::new() })
    }

    /// Exchanges the cache for an empty one of `blocks` blocks.
    ///
    /// # Errors
    /// When the device has no room for it; the backend cannot be used any more then.
    pub(crate) fn resize(&mut self, engine: &EngineConfig, mut blocks: usize) -> Result<(), Error> {
        let _guard = tch::no_grad_guard();
        let (place, model) = (engine.place(), &self.there.model);
        if let Some(steady) = &mut self.steady {
            // What was recorded writes to the old one.
            steady.graphs.forget();
            blocks += 1;
            steady.spare = blocks as BlockId - 1;
        }
        let failed = |error| no_room(&error, blocks, engine, model);
        // The old one makes room first.
        self.there.cache = Cache::new(&self.shape, 0, place).map_err(failed)?;
        self.there.cache = Cache::new(&self.shape, blocks, place).map_err(failed)?;
        Ok(())
    }

    /// Computes a step; the drawn tokens in the order of `batch.draws`.
    ///
    /// # Errors
    /// When torch refuses an operator, for want of memory mostly. The backend cannot be used any more then.
    pub(crate) fn step(&mut self, batch: &Batch) -> Result<&[Drawn], Error> {
        self.drawn = caught(|| self.compute(batch))?;
        Ok(&self.drawn)
    }

    /// Takes other weights; gives the old ones back, or the new ones if they are of another element type or
    /// device. The tensors themselves are exchanged: nothing is copied, and the new ones lie at other
    /// addresses.
    pub(crate) fn swap(&mut self, weights: AtenWeights) -> Result<AtenWeights, AtenWeights> {
        if weights.place() != self.there.weights.place() {
            return Err(weights);
        }
        if let Some(steady) = &mut self.steady {
            steady.graphs.forget();
        }
        Ok(std::mem::replace(&mut self.there.weights, weights))
    }

    /// Steps that were replayed.
    pub(crate) fn replayed_steps(&self) -> u64 {
        self.steady.as_ref().map_or(0, |steady| steady.graphs.replayed())
    }

    fn compute(&mut self, batch: &Batch) -> Vec<Drawn> {
        let _guard = tch::no_grad_guard();
        let Self { there, shape, steady, upload, .. } = self;
        let comes_again = steady.as_mut().and_then(|steady| Some((steady.padded(batch)?, steady)));
        let (padded, steady) = comes_again.unzip();
        let (batch, wanted) = (padded.as_ref().unwrap_or(batch), batch.draws.len());
        upload.clear();
        let plan = Plan::new(batch, there, shape, upload);
        let made = match steady {
            Some(steady) => steady.graphs.run(&plan, upload, |plan, arrived| there.compute(plan, arrived)),
            None => there.compute(&plan, &upload.send(there.weights.place().1)),
        };
        if batch.draws.is_empty() {
            return Vec::new();
        }
        let numbers =
            Vec::try_from(made.to_device(Device::Cpu)).expect("the numbers are f64 in one dimension");
        let mut drawn = plan.draws.read(batch, &numbers);
        drawn.truncate(wanted);
        drawn
    }
}

impl Plan {
    fn new(batch: &Batch, there: &OnDevice, shape: &Shape, upload: &mut Upload) -> Self {
        let order = Order::new(batch);
        Self {
            copies: Copies::new(&batch.copies, upload),
            rows: Rows::new(&order, shape, upload),
            attention: Attention::new(&order, &there.attention, upload),
            draws: Draws::new(batch, &order.places(), there.model.vocab_size, upload),
        }
    }
}

impl OnDevice {
    /// Computes a step: the numbers of its draws. Reads of the step nothing but what is given, so that it can
    /// be replayed with other numbers in `arrived`.
    fn compute(&mut self, plan: &Plan, arrived: &Arrived) -> Tensor {
        if let Some(copies) = &plan.copies {
            self.cache.copy(copies, arrived);
        }
        let rows = plan.rows.place(&self.rope, arrived);
        let attention = plan.attention.place(arrived, &self.attention);
        let hidden = self.blocks(&rows, &attention);
        plan.draws.draw(&self.model, self.weights.network(), &hidden, arrived)
    }

    /// The embedding and all blocks: `[rows, hidden]`.
    fn blocks(&mut self, rows: &PlacedRows, attention: &PlacedAttention) -> Tensor {
        let network = self.weights.network();
        let mut x = model::embed(&network.embedding, &rows.tokens);
        for (layer, weights) in network.blocks.iter().enumerate() {
            let (window, cache) = (self.model.window(layer), self.cache.layer(layer));
            x = model::block(&self.model, weights, &x, &rows.rope, |queries, keys, values| {
                cache.write(&rows.slots, keys, values);
                attention.attend(cache, window, queries)
            });
        }
        x
    }
}

/// The cache does not fit: what to do about it.
fn no_room(error: &tch::TchError, blocks: usize, engine: &EngineConfig, model: &ModelConfig) -> Error {
    let bytes = (blocks as u64).saturating_mul(block_bytes(model, engine));
    let key = if engine.kv_cache_blocks.is_some() { "kv_cache_blocks" } else { "kv_cache_bytes" };
    let message = failure::first_line(error);
    Error::Config(vec![format!(
        "{key} asks for a cache of {bytes} bytes, for which {} has no room ({message}); set {key} lower",
        engine.device
    )])
}

/// A network for the tests of this backend's parts.
#[cfg(test)]
fn small_model() -> (ModelConfig, model::Weights) {
    let dimensions = model::Dimensions {
        vocab_size: 50,
        hidden_size: 16,
        intermediate_size: 24,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        max_positions: 64,
    };
    let mut config = ModelConfig::new(model::Architecture::Llama, dimensions).unwrap();
    config.initializer_range = 0.2;
    let weights = model::Weights::random(&config, 1, tch::Kind::Float, Device::Cpu);
    (config, weights)
}
