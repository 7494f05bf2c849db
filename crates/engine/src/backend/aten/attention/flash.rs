//! Attention over the cache on a GPU in half precision: one FlashAttention call a layer for all sequences
//! (Dao, arXiv 2307.08691), whether they decode or take in a prompt.
//!
//! The blocks that the rows see are gathered whole, one index a block. The call is told where each sequence's
//! blocks begin and how many keys of them count, so that the unused end of a last block is copied and not
//! read. Where all sequences decode, counts are rounded up, so that the steps that follow have the same ones.

use model::cuda::flash::{self, Ragged};
use tch::{Kind, Tensor};

use super::super::cache::{LayerCache, Shape};
use super::super::rows::{Order, first_visible, length};
use super::super::steady::rounded_up;
use super::super::upload::{Arrived, Part, Upload};

/// What the rows of a step see, in layers of one window.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    /// At most: what the kernel's launch is made for.
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
        let mut longest_keys = keys.iter().copied().max().unwrap_or(0);
        if order.stretches.is_empty() {
            longest_keys = longest_keys.unsigned_abs().next_power_of_two().cast_signed();
            // More of the last block, which nobody reads.
            let padding = blocks.last().copied().unwrap_or(0);
            blocks.resize(rounded_up(blocks.len()), padding);
        }
        Self {
            window,
            longest_queries,
            longest_keys,
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

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::super::cache::Cache;
    use super::super::padded::Padded;
    use super::*;
    use crate::batch::{Batch, Segment};

    const SHAPE: Shape = Shape { layers: 1, kv_heads: 2, head_dim: 8, block_tokens: 16 };

    /// Sequences of (start, rows), their blocks spread over the pool.
    fn batch(sequences: &[(usize, usize)]) -> Batch {
        let mut batch = Batch::default();
        for (number, (start, rows)) in sequences.iter().copied().enumerate() {
            let (first_row, first_block) = (batch.tokens.len(), batch.tables.len());
            batch.tokens.extend(std::iter::repeat_n(0, rows));
            let blocks = first_block..first_block + (start + rows).div_ceil(SHAPE.block_tokens);
            batch.tables.extend(blocks.map(|block| (block * 7 % 31) as u32));
            batch.segments.push(Segment {
                sequence: number,
                rows: first_row..first_row + rows,
                start,
                prompt_tokens: 1,
                table: first_block..batch.tables.len(),
                draw: None,
            });
        }
        batch
    }

    /// What the kernel is to compute of what it is given, slowly.
    fn reference(flash: &Flash, arrived: &Arrived, cache: &LayerCache, queries: &Tensor) -> Tensor {
        let numbers = |part: Part| Vec::<i64>::try_from(arrived.integers(part)).unwrap();
        let gathered = cache.blocks.index_select(0, &arrived.integers(flash.blocks)).view([-1, 4, 8]);
        let (query_offsets, key_offsets) = (numbers(flash.query_offsets), numbers(flash.key_offsets));
        let mut attended = Vec::new();
        for (sequence, used) in numbers(flash.keys).into_iter().enumerate() {
            let rows = query_offsets[sequence + 1] - query_offsets[sequence];
            assert!(rows <= flash.longest_queries && used <= flash.longest_keys);
            let of_sequence = gathered.narrow(0, key_offsets[sequence], used).transpose(0, 1);
            let by_query_head =
                |first: i64| of_sequence.narrow(0, first, 2).repeat_interleave_self_int(2, 0, 4);
            let queries = queries.narrow(0, query_offsets[sequence], rows).transpose(0, 1);
            let seen = Tensor::ones([rows, used], (Kind::Bool, Device::Cpu)).tril(used - rows);
            let window = flash.window.unwrap_or(used);
            let hidden = seen.triu(used - rows - window + 1).logical_not();
            let scores = queries.matmul(&by_query_head(0).transpose(1, 2)) / 8f64.sqrt();
            let weights = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Float);
            attended.push(weights.matmul(&by_query_head(2)).transpose(0, 1));
        }
        Tensor::cat(&attended, 0)
    }

    /// So a recording of one step serves those that follow: they differ in numbers of the upload only.
    #[test]
    fn steps_that_only_decode_have_few_plans() {
        let plans = |window: Option<i64>, rows: usize| {
            let plans = (0..100).map(|step| {
                let batch = batch(&[0, 15, 16, 100, 37, 200].map(|start| (start + step * rows, rows)));
                let mut upload = Upload::default();
                Flash::new(&Order::new(&batch), window, &SHAPE, &mut upload)
            });
            plans.collect::<std::collections::HashSet<_>>().len()
        };
        for window in [None, Some(20)] {
            let few = plans(window, 1);
            assert!(few <= 12, "window {window:?}: {few} plans in 100 steps");
        }
        assert!(plans(None, 2) > 50);
    }

    /// Both ways gather the same keys: blocks here, tokens with padding there.
    #[test]
    fn the_kernel_is_given_what_the_padded_operators_see() {
        tch::manual_seed(4);
        let place = (Kind::Float, Device::Cpu);
        let mut cache = Cache::new(&SHAPE, 31, place).unwrap();
        let _ = cache.layer(0).tokens.normal_(0.0, 1.0);
        let batch = batch(&[(0, 1), (15, 1), (16, 1), (100, 1), (0, 20), (33, 17), (79, 2), (1, 1)]);
        let queries = Tensor::randn([batch.tokens.len() as i64, 4, 8], place);
        let order = Order::new(&batch);
        for window in [None, Some(1), Some(7), Some(16), Some(90)] {
            let mut upload = Upload::default();
            let flash = Flash::new(&order, window, &SHAPE, &mut upload);
            let padded = Padded::new(&order, window, &SHAPE, &mut upload);
            let arrived = upload.send(Device::Cpu);
            let expected = padded.place(&arrived, place).attend(cache.layer(0), &queries);
            let found = reference(&flash, &arrived, cache.layer(0), &queries);
            let difference = (found - expected).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "window {window:?}: {difference}");
        }
    }
}
