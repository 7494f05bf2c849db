//! The pool of keys and values.

use model::ModelConfig;
use tch::{Device, Kind, TchError, Tensor};

use super::upload::{Arrived, Part, Upload};
use crate::batch::{Batch, Segment};
use crate::blocks::BlockId;

/// Sizes of a pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) layers: i64,
    pub(crate) kv_heads: i64,
    pub(crate) head_dim: i64,
    pub(crate) block_tokens: usize,
}

impl Shape {
    pub(crate) fn new(model: &ModelConfig, block_tokens: usize) -> Self {
        let layers = model.layers as i64;
        Self { layers, kv_heads: model.kv_heads, head_dim: model.head_dim, block_tokens }
    }

    /// Elements of one block in one layer.
    fn layer_block(&self) -> i64 {
        self.block_tokens as i64 * 2 * self.kv_heads * self.head_dim
    }

    /// Elements of one block in all layers.
    pub(crate) fn block(&self) -> i64 {
        self.layers * self.layer_block()
    }

    /// Where positions of a sequence lie: numbers of tokens in a layer's pool.
    pub(crate) fn slots<'a>(
        &self,
        batch: &'a Batch,
        segment: &Segment,
        positions: std::ops::Range<usize>,
    ) -> impl Iterator<Item = i64> + Clone + use<'a> {
        let (table, block_tokens) = (batch.table(segment), self.block_tokens);
        positions.map(move |position| {
            i64::from(table[position / block_tokens]) * block_tokens as i64 + (position % block_tokens) as i64
        })
    }
}

/// The cache of all layers.
#[derive(Debug)]
pub(crate) struct Cache {
    /// `[layers, blocks, elements of a block]`.
    pool: Tensor,
    layers: Vec<LayerCache>,
}

/// Views of one layer's part. The keys of a token lie beside its values, so that both are gathered at once.
#[derive(Debug)]
pub(crate) struct LayerCache {
    /// `[tokens, 2 kv_heads, head_dim]`.
    pub(crate) tokens: Tensor,
    /// `[blocks, block_tokens * 2 kv_heads * head_dim]`.
    #[cfg(feature = "cuda")]
    pub(crate) blocks: Tensor,
    /// `[tokens, kv_heads, head_dim]`.
    keys: Tensor,
    /// The like.
    values: Tensor,
}

impl Cache {
    /// A pool of unwritten memory: what was never written is never read.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub(crate) fn new(shape: &Shape, blocks: usize, place: (Kind, Device)) -> Result<Self, TchError> {
        let pool = Tensor::f_empty([shape.layers, blocks as i64, shape.layer_block()], place)?;
        let layers = (0..shape.layers).map(|layer| {
            let blocks = pool.f_select(0, layer)?;
            let tokens = blocks.f_view([-1, 2 * shape.kv_heads, shape.head_dim])?;
            Ok(LayerCache {
                keys: tokens.f_narrow(1, 0, shape.kv_heads)?,
                values: tokens.f_narrow(1, shape.kv_heads, shape.kv_heads)?,
                tokens,
                #[cfg(feature = "cuda")]
                blocks,
            })
        });
        let layers = layers.collect::<Result<_, TchError>>()?;
        Ok(Self { pool, layers })
    }

    /// Copies blocks in all layers. All are read before one is written.
    pub(crate) fn copy(&mut self, copies: &Copies, arrived: &Arrived) {
        let copied = self.pool.index_select(1, &arrived.integers(copies.from));
        let _ = self.pool.index_copy_(1, &arrived.integers(copies.to), &copied);
    }

    pub(crate) fn layer(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }
}

impl LayerCache {
    /// Writes keys and values, `[rows, kv_heads, head_dim]`, of the tokens at `slots`, `[rows]` i64.
    pub(crate) fn write(&mut self, slots: &Tensor, keys: &Tensor, values: &Tensor) {
        let _ = self.keys.index_copy_(0, slots, keys);
        let _ = self.values.index_copy_(0, slots, values);
    }
}

/// Blocks to copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Copies {
    from: Part,
    to: Part,
}

impl Copies {
    /// The copies of a step, if there are any.
    pub(crate) fn new(copies: &[(BlockId, BlockId)], upload: &mut Upload) -> Option<Self> {
        (!copies.is_empty()).then(|| Self {
            from: upload.integers(copies.iter().map(|(from, _)| i64::from(*from))),
            to: upload.integers(copies.iter().map(|(_, to)| i64::from(*to))),
        })
    }
}
