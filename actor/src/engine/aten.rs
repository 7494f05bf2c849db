//! The network with torch's operators, on a GPU or the CPU: the functions of the `model` crate, which the learner runs too,
//! with attention over a paged cache.
//!
//! A step has three parts. The host orders the rows and puts everything that depends on the batch alone into one
//! [`Upload`]: tokens, where keys and values go and what is gathered, lengths, rules of the draws. The device makes
//! rotations and masks of it, once a step, and then runs the layers and draws. One tensor of drawn tokens comes back, and
//! copying it is the only time the host waits for the device. Shapes follow the batch, so a step is not captured in a CUDA graph.
//!
//! Whatever the batch, the pool is gathered once a layer, because the operators know no block tables. So a layer reads what its
//! rows see, writes it, and reads it again: three times the bytes that attention itself would read. Layers with a
//! sliding window gather the window only.
//!
//! Numbers of a row depend on the rows beside it in the last bits, as products of matrices do. The same requests, submitted
//! between the same steps, draw the same tokens on the same machine on a CPU.

mod attention;
mod cache;
mod failure;
mod rows;
mod sampling;
mod upload;
mod weights;

use model::{ModelConfig, Rope};
use tch::{Device, Tensor};

use super::Error;
use super::batch::{Batch, Drawn};
use super::config::EngineConfig;
use attention::{Attention, PlacedAttention, Setting};
use cache::{Cache, Copies, Shape};
use failure::caught;
use rows::{Order, PlacedRows, Rows};
use sampling::Draws;
use upload::Upload;

pub(crate) use weights::AtenWeights;

/// Bytes of one block of the cache.
pub(crate) fn block_bytes(model: &ModelConfig, engine: &EngineConfig) -> u64 {
    Shape::new(model, engine.block_tokens).block().unsigned_abs() * engine.dtype.size()
}

/// The backend on one device.
#[derive(Debug)]
pub(crate) struct Aten {
    model: ModelConfig,
    weights: AtenWeights,
    shape: Shape,
    cache: Cache,
    rope: Rope,
    attention: Setting,
    /// The work of a step for the device; kept for its memory.
    upload: Upload,
    drawn: Vec<Drawn>,
}

impl Aten {
    /// A backend with an empty cache of `blocks` blocks, on the weights' device. On the CPU torch's operators take
    /// `engine.threads` threads from now on.
    ///
    /// # Errors
    /// When the weights are not of the engine's device and element type, or the device has no room for the cache.
    pub(crate) fn new(
        model: &ModelConfig,
        weights: AtenWeights,
        engine: &EngineConfig,
        blocks: usize,
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
        let cache =
            Cache::new(&shape, blocks, place).map_err(|error| no_room(&error, blocks, engine, model))?;
        Ok(Self {
            model: model.clone(),
            weights,
            shape,
            cache,
            rope: caught(|| Rope::new(model, kind, device))?,
            attention: Setting::new(model, shape, place),
            upload: Upload::default(),
            drawn: Vec::new(),
        })
    }

    /// Computes a step; the drawn tokens in the order of `batch.draws`.
    ///
    /// # Errors
    /// When torch refuses an operator, for want of memory mostly. The backend cannot be used any more then.
    pub(crate) fn step(&mut self, batch: &Batch) -> Result<&[Drawn], Error> {
        self.drawn = caught(|| self.compute(batch))?;
        Ok(&self.drawn)
    }

    /// Takes other weights; gives the old ones back, or the new ones if they are of another element type or device.
    /// The tensors themselves are exchanged: nothing is copied, and the new ones lie at other addresses.
    pub(crate) fn swap(&mut self, weights: AtenWeights) -> Result<AtenWeights, AtenWeights> {
        if weights.place() != self.weights.place() {
            return Err(weights);
        }
        Ok(std::mem::replace(&mut self.weights, weights))
    }

    fn compute(&mut self, batch: &Batch) -> Vec<Drawn> {
        let _guard = tch::no_grad_guard();
        self.upload.clear();
        let order = Order::new(batch);
        let copies = Copies::new(&batch.copies, &mut self.upload);
        let rows = Rows::new(&order, &self.shape, &mut self.upload);
        let attention = Attention::new(&order, &self.attention, &mut self.upload);
        let draws = Draws::new(batch, &order.places(), self.model.vocab_size, &mut self.upload);

        let (_, device) = self.weights.place();
        let arrived = self.upload.send(device);
        if let Some(copies) = copies {
            self.cache.copy(&copies, &arrived);
        }
        let rows = rows.place(&self.rope, &arrived);
        let attention = attention.place(&arrived, &self.attention);
        let hidden = self.blocks(&rows, &attention);
        let Some(drawn) = draws.draw(&self.model, self.weights.network(), &hidden, &arrived) else {
            return Vec::new();
        };
        let numbers =
            Vec::try_from(drawn.to_device(Device::Cpu)).expect("the numbers are f64 in one dimension");
        draws.read(batch, &numbers)
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
