//! Attention over the cache on a GPU in half precision: one FlashAttention call a layer for all sequences (Dao, arXiv
//! 2307.08691), whether they decode or take in a prompt.
//!
//! The blocks that the rows see are gathered whole, one index a block. The call is told where each sequence's blocks begin
//! and how many keys of them count, so that the unused end of a last block is copied and not read.

use model::flash::{self, Ragged};
use tch::{Kind, Tensor};

use super::super::cache::{LayerCache, Shape};
use super::super::rows::{Order, first_visible, length};
use super::super::upload::{Arrived, Part, Upload};

/// What the rows of a step see, in layers of one window.
#[derive(Debug)]
pub(crate) struct Flash {
    window: Option<i64>,
    /// Blocks of the pool, sequence by sequence.
    blocks: Part,
    /// Where each sequence's queries begin, and the end of the last.
    query_offsets: Part,
    /// Where the keys of each sequence's first block begin, and the end of the last.
    key_offsets: Part,
    /// Keys of each sequence, from its first block on.
    keys: Part,
    longest_queries: i64,
    longest_keys: i64,
}

/// The same on the device.
#[derive(Debug)]
pub(crate) struct PlacedFlash {
    window: Option<i64>,
    /// `[blocks]` i64.
    blocks: Tensor,
    queries: Ragged,
    keys: Ragged,
}

impl Flash {
    pub(crate) fn new(order: &Order, window: Option<i64>, shape: &Shape, upload: &mut Upload) -> Self {
        let block_tokens = shape.block_tokens;
        let (mut blocks, mut keys) = (Vec::new(), Vec::new());
        let (mut query_offsets, mut key_offsets) = (vec![0], vec![0]);
        let (mut longest_queries, mut queries) = (0, 0);
        for segment in order.segments() {
            let end = length(segment);
            let first_block = first_visible(segment, window) / block_tokens;
            let table = &order.batch.table(segment)[first_block..end.div_ceil(block_tokens)];
            blocks.extend(table.iter().map(|block| i64::from(*block)));
            keys.push((end - first_block * block_tokens) as i64);
            key_offsets.push((blocks.len() * block_tokens) as i64);
            queries += segment.rows.len() as i64;
            query_offsets.push(queries);
            longest_queries = longest_queries.max(segment.rows.len() as i64);
        }
        Self {
            window,
            longest_queries,
            longest_keys: keys.iter().copied().max().unwrap_or(0),
            blocks: upload.integers(blocks),
            query_offsets: upload.integers(query_offsets),
            key_offsets: upload.integers(key_offsets),
            keys: upload.integers(keys),
        }
    }

    pub(crate) fn place(&self, arrived: &Arrived) -> PlacedFlash {
        let small = |part: Part| arrived.integers(part).to_kind(Kind::Int);
        let queries = Ragged::from_offsets(small(self.query_offsets), self.longest_queries);
        let keys = Ragged::from_offsets(small(self.key_offsets), self.longest_keys);
        PlacedFlash {
            window: self.window,
            blocks: arrived.integers(self.blocks),
            queries,
            keys: keys.with_used(small(self.keys)),
        }
    }
}

impl PlacedFlash {
    /// Attention of `queries`, `[rows, heads, head_dim]`, over a layer's cache; the same shape.
    pub(crate) fn attend(&self, cache: &LayerCache, queries: &Tensor) -> Tensor {
        let (_, kv_heads_twice, head_dim) = cache.tokens.size3().expect("[tokens, 2 kv_heads, head_dim]");
        let gathered = cache.blocks.index_select(0, &self.blocks).view([-1, kv_heads_twice, head_dim]);
        let kv_heads = kv_heads_twice / 2;
        let (keys, values) = (gathered.narrow(1, 0, kv_heads), gathered.narrow(1, kv_heads, kv_heads));
        flash::attention((queries, &self.queries), (&keys, &values, &self.keys), self.window)
            .expect("a refusal inside a step is caught as a panic, like those of all operators")
    }
}
