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
#[cfg(feature = "cuda")]
mod flash;
mod rows;
mod sampling;
mod upload;
mod weights;

use model::{ModelConfig, Rope};
use tch::{Device, Kind, Tensor};

use super::Error;
use super::batch::{Batch, Drawn};
use super::config::EngineConfig;
use attention::{Padded, PlacedPadded};
use cache::{Cache, Copies, LayerCache, Shape};
use failure::caught;
use rows::{Order, Rows};
use sampling::Draws;
use upload::{Arrived, Upload};

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
    /// The windows that layers have, each once.
    windows: Vec<Option<i64>>,
    /// The work of a step for the device; kept for its memory.
    upload: Upload,
    drawn: Vec<Drawn>,
}

/// What the rows of a step see.
enum Attention {
    Padded(Padded),
    #[cfg(feature = "cuda")]
    Flash(flash::Flash),
}

/// The same on the device.
enum PlacedAttention {
    Padded(PlacedPadded),
    #[cfg(feature = "cuda")]
    Flash(flash::PlacedFlash),
}

impl Aten {
    /// A backend with an empty cache of `blocks` blocks, on the weights' device. On the CPU torch's operators take
    /// `engine.threads` threads from now on.
    ///
    /// # Errors
    /// When the device has no room for the cache.
    pub(crate) fn new(
        model: &ModelConfig,
        weights: AtenWeights,
        engine: &EngineConfig,
        blocks: usize,
    ) -> Result<Self, Error> {
        let _guard = tch::no_grad_guard();
        let place @ (kind, device) = weights.place();
        if device == Device::Cpu {
            let available = std::thread::available_parallelism().map_or(1, usize::from);
            let threads = if engine.threads == 0 { available } else { engine.threads };
            tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
        }
        let shape = Shape::new(model, engine.block_tokens);
        let cache =
            Cache::new(&shape, blocks, place).map_err(|error| no_room(&error, blocks, engine, model))?;
        let mut windows: Vec<Option<i64>> = (0..model.layers).map(|layer| model.window(layer)).collect();
        windows.sort_unstable();
        windows.dedup();
        Ok(Self {
            model: model.clone(),
            weights,
            shape,
            cache,
            rope: caught(|| Rope::new(model, kind, device))?,
            windows,
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
        let attention: Vec<Attention> =
            self.windows.clone().into_iter().map(|window| self.attention(&order, window)).collect();
        let draws = Draws::new(batch, &order.places(), self.model.vocab_size, &mut self.upload);

        let place @ (_, device) = self.weights.place();
        let arrived = self.upload.send(device);
        if let Some(copies) = copies {
            self.cache.copy(&copies, &arrived);
        }
        let rows = rows.place(&self.rope, &arrived);
        let attention: Vec<PlacedAttention> =
            attention.iter().map(|attention| attention.place(&arrived, place)).collect();
        let hidden = self.blocks(&rows, &attention);
        let Some(drawn) = draws.draw(&self.model, self.weights.network(), &hidden, &arrived) else {
            return Vec::new();
        };
        let numbers = Vec::try_from(drawn).expect("the numbers are f64 in one dimension");
        draws.read(batch, &numbers)
    }

    fn attention(&mut self, order: &Order, window: Option<i64>) -> Attention {
        #[cfg(feature = "cuda")]
        if flash::applies(&self.model, self.weights.place()) {
            return Attention::Flash(flash::Flash::new(order, window, &self.shape, &mut self.upload));
        }
        Attention::Padded(Padded::new(order, window, &self.shape, &mut self.upload))
    }

    /// The embedding and all blocks: `[rows, hidden]`.
    fn blocks(&mut self, rows: &rows::PlacedRows, attention: &[PlacedAttention]) -> Tensor {
        let network = self.weights.network();
        let mut x = model::embed(&network.embedding, &rows.tokens);
        for (layer, weights) in network.blocks.iter().enumerate() {
            let window = self.model.window(layer);
            let attention = self.windows.iter().zip(attention).find(|(other, _)| **other == window);
            let (_, attention) = attention.expect("the windows are those of the layers");
            let cache = self.cache.layer(layer);
            x = model::block(&self.model, weights, &x, &rows.rope, |queries, keys, values| {
                cache.write(&rows.slots, keys, values);
                attention.attend(cache, queries)
            });
        }
        x
    }
}

impl Attention {
    fn place(&self, arrived: &Arrived, place: (Kind, Device)) -> PlacedAttention {
        match self {
            Self::Padded(padded) => PlacedAttention::Padded(padded.place(arrived, place)),
            #[cfg(feature = "cuda")]
            Self::Flash(flash) => PlacedAttention::Flash(flash.place(arrived)),
        }
    }
}

impl PlacedAttention {
    /// Attention of `queries`, `[rows, heads, head_dim]`, over a layer's cache; the same shape.
    fn attend(&self, cache: &LayerCache, queries: &Tensor) -> Tensor {
        match self {
            Self::Padded(padded) => padded.attend(cache, queries),
            #[cfg(feature = "cuda")]
            Self::Flash(flash) => flash.attend(cache, queries),
        }
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
