//! The cache of keys and values, in tiles of 16 tokens.
//!
//! A tile holds for each head the keys, transposed (`[head_dim, 16]`), so that one element of 16 tokens' keys
//! fills a vector register, and the values (`[16, head_dim]`, rows padded to a multiple of 16). A block of
//! the pool is one or more tiles.

use super::machine::{self, DistinctUnits, Kernel, Level, PairProducts, Team};
use super::matrix::Matrix;
use super::memory::Buffer;
use super::number::Number;
use super::rotation::{HeadTransform, RowRotations};
use crate::batch::Batch;
use crate::config::TILE_TOKENS;

/// Sizes of a cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    /// Query heads.
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Tiles of a block.
    pub(crate) block_tiles: usize,
    pub(crate) blocks: usize,
}

impl Shape {
    /// Elements of a row of values.
    pub(crate) fn value_row(&self) -> usize {
        self.head_dim.next_multiple_of(TILE_TOKENS)
    }

    /// Elements of one head's part of a tile.
    fn head(&self) -> usize {
        TILE_TOKENS * (self.head_dim + self.value_row())
    }

    /// Elements of a tile.
    fn tile(&self) -> usize {
        self.kv_heads * self.head()
    }

    /// Elements of a block over all layers.
    pub(crate) fn block(&self) -> usize {
        self.layers * self.block_tiles * self.tile()
    }
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache<N> {
    pub(crate) shape: Shape,
    layers: Vec<Buffer<N>>,
}

/// Keys and values of one head in one tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadTile<'a, N> {
    /// `[head_dim, 16]`.
    pub(crate) keys: &'a [[N; TILE_TOKENS]],
    /// `[16, value_row]`.
    pub(crate) values: &'a [N],
}

impl<N: Number> Cache<N> {
    /// An empty cache.
    ///
    /// # Errors
    /// When the system has no room for it.
    pub(crate) fn new(shape: Shape) -> std::io::Result<Self> {
        let elements = shape.blocks * shape.block_tiles * shape.tile();
        let layers = (0..shape.layers).map(|_| Buffer::zeros(elements)).collect::<Result<_, _>>()?;
        Ok(Self { shape, layers })
    }

    /// Copies blocks, in the given order.
    pub(crate) fn copy(&mut self, copies: &[(u32, u32)]) {
        let length = self.shape.block_tiles * self.shape.tile();
        for layer in &mut self.layers {
            for (from, to) in copies {
                let from = *from as usize * length;
                layer.copy_within(from..from + length, *to as usize * length);
            }
        }
    }

    /// A head's part of a tile.
    #[inline(always)]
    pub(crate) fn tile(&self, layer: usize, tile: usize, head: usize) -> HeadTile<'_, N> {
        let start = tile * self.shape.tile() + head * self.shape.head();
        let part = &self.layers[layer][start..start + self.shape.head()];
        let (keys, values) = part.split_at(TILE_TOKENS * self.shape.head_dim);
        HeadTile { keys: keys.as_chunks().0, values }
    }

    /// Writes the keys and values of a step: `projections` holds queries, keys and values of each row.
    pub(crate) fn write(&mut self, (team, level): (&mut Team, Level), layer: usize, step: &Writing<'_>) {
        let (shape, length) = (self.shape, self.shape.tile());
        team.units(&mut self.layers[layer], length, &step.plan.tiles, |index, tile| {
            let stretch = step.plan.stretches[index];
            machine::run(level, WriteTask { step, shape, stretch, tile });
        });
    }
}

/// Rows of a step that go into one tile.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    first_row: usize,
    rows: usize,
    /// Place of the first row in the tile.
    first_slot: usize,
}

/// Which tiles a step writes.
#[derive(Debug, Default)]
pub(crate) struct WritePlan {
    tiles: DistinctUnits,
    stretches: Vec<Stretch>,
}

impl WritePlan {
    /// Makes the plan of a step.
    ///
    /// # Panics
    /// When two sequences would write one tile: the scheduler gives a block to one writer.
    pub(crate) fn set(&mut self, batch: &Batch, shape: &Shape) {
        self.stretches.clear();
        let mut tiles = Vec::new();
        for segment in &batch.segments {
            let (mut row, mut position) = (segment.rows.start, segment.start);
            while row < segment.rows.end {
                let first_slot = position % TILE_TOKENS;
                let rows = (TILE_TOKENS - first_slot).min(segment.rows.end - row);
                tiles.push(tile_number(batch.table(segment), position / TILE_TOKENS, shape) as u32);
                self.stretches.push(Stretch { first_row: row, rows, first_slot });
                row += rows;
                position += rows;
            }
        }
        self.tiles.set(tiles, shape.blocks * shape.block_tiles);
    }
}

/// Where tile `index` of a sequence lies.
#[inline(always)]
pub(crate) fn tile_number(table: &[u32], index: usize, shape: &Shape) -> usize {
    table[index / shape.block_tiles] as usize * shape.block_tiles + index % shape.block_tiles
}

/// What is written in a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writing<'a> {
    pub(crate) plan: &'a WritePlan,
    pub(crate) projections: &'a Matrix,
    pub(crate) rotations: &'a RowRotations,
    /// For keys.
    pub(crate) transform: HeadTransform<'a>,
}

struct WriteTask<'a, 'b, N> {
    step: &'a Writing<'b>,
    shape: Shape,
    stretch: Stretch,
    tile: &'a mut [N],
}

impl<N: Number> Kernel for WriteTask<'_, '_, N> {
    #[inline(always)]
    fn run<const FUSED: bool, const WIDE: bool, P: PairProducts>(self) {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let mut rotated = [0.0f32; MAX_HEAD_DIM];
        let key = &mut rotated[..head_dim];
        for offset in 0..self.stretch.rows {
            let (row, slot) = (self.stretch.first_row + offset, self.stretch.first_slot + offset);
            let projections = self.step.projections.row(row);
            let rotation = self.step.rotations.row(row);
            for head in 0..kv_heads {
                let part = &mut self.tile[head * self.shape.head()..][..self.shape.head()];
                let (keys, values) = part.split_at_mut(TILE_TOKENS * head_dim);
                let source = &projections[(heads + head) * head_dim..][..head_dim];
                self.step.transform.apply::<FUSED>(source, rotation, key);
                for (column, element) in keys.as_chunks_mut::<TILE_TOKENS>().0.iter_mut().zip(&*key) {
                    column[slot] = N::narrow(*element);
                }
                let source = &projections[(heads + kv_heads + head) * head_dim..][..head_dim];
                let target = &mut values[slot * self.shape.value_row()..][..head_dim];
                target.iter_mut().zip(source).for_each(|(value, element)| *value = N::narrow(*element));
            }
        }
    }
}

/// Largest head that the scratch space is made for.
pub(crate) const MAX_HEAD_DIM: usize = 512;
