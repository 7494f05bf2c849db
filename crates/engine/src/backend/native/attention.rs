//! Attention of a step's rows over the cache.
//!
//! A query's scores over everything it sees are computed and normalised before the values are summed up, in
//! the order of positions. So a query's result depends on its own sequence only: not on other rows, and not
//! on whether its keys were computed in one step or in many.

use std::cell::RefCell;

use super::cache::{Cache, HeadTile, MAX_HEAD_DIM, Shape, tile_number};
use super::machine::{self, Block, BlockSize, Kernel, Level, MatrixMut, PairProducts, Team};
use super::math::{add_lanes, add_product, exp};
use super::matrix::Matrix;
use super::number::Number;
use super::rotation::{HeadTransform, RowRotations};
use crate::batch::{Batch, Segment};
use crate::config::TILE_TOKENS;

/// Queries that are worked on together where registers allow it.
const TILE_QUERIES: usize = 8;

/// Rows of a task at most: enough to fill tiles of queries from one sequence.
const TASK_ROWS: usize = 8;

/// Tasks for each thread, so that the threads end together.
const TASKS_PER_THREAD: usize = 8;

/// What a step's attention reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a, N> {
    pub(crate) cache: &'a Cache<N>,
    pub(crate) layer: usize,
    pub(crate) batch: &'a Batch,
    /// The segment of each row.
    pub(crate) segments: &'a [u32],
    /// Queries, keys and values of each row.
    pub(crate) projections: &'a Matrix,
    pub(crate) rotations: &'a RowRotations,
    /// For queries.
    pub(crate) transform: HeadTransform<'a>,
    /// Keys that a query sees, its own included.
    pub(crate) window: Option<usize>,
}

/// Computes attention into `output`, `[rows, heads * head_dim]`.
pub(crate) fn attend<N: Number>(
    (team, level): (&mut Team, Level),
    attention: Attention<'_, N>,
    output: MatrixMut<'_, N::Input>,
) {
    let Shape { heads, kv_heads, head_dim, .. } = attention.cache.shape;
    let wanted = TASKS_PER_THREAD * team.threads();
    let rows = (output.rows * kv_heads / wanted).clamp(1, TASK_ROWS);
    let size = BlockSize { rows, columns: heads / kv_heads * head_dim };
    team.blocks(output, size, |block| machine::run(level, Task { attention: &attention, block }));
}

thread_local! {
    /// Queries and scores of the tile a thread works on.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { queries: Vec::new(), scores: Vec::new() }) };
}

#[derive(Default)]
struct Scratch {
    queries: Vec<[f32; MAX_HEAD_DIM]>,
    /// `[queries, tiles]`.
    scores: Vec<[f32; TILE_TOKENS]>,
}

struct Task<'a, 'b, N: Number> {
    attention: &'a Attention<'b, N>,
    block: Block<'a, N::Input>,
}

impl<N: Number> Kernel for Task<'_, '_, N> {
    #[inline(always)]
    fn run<const FUSED: bool, const WIDE: bool, P: PairProducts>(mut self) {
        let mut scratch = SCRATCH.take();
        scratch.queries.resize(TILE_QUERIES, [0.0; MAX_HEAD_DIM]);
        let shape = self.attention.cache.shape;
        let group = shape.heads / shape.kv_heads;
        // Half the registers hold half a tile.
        let together = if WIDE { TILE_QUERIES } else { TILE_QUERIES / 2 };
        let rows = self.block.rows();
        let mut row = rows.start;
        while row < rows.end {
            let segment = self.attention.segments[row];
            let run =
                self.attention.segments[row..rows.end].iter().take_while(|other| **other == segment).count();
            for first in (0..run * group).step_by(together) {
                let count = together.min(run * group - first);
                let queries = Queries { row, first, count };
                match count {
                    1 => self.tile::<1, FUSED, WIDE>(queries, &mut scratch),
                    2 => self.tile::<2, FUSED, WIDE>(queries, &mut scratch),
                    3 | 4 => self.tile::<4, FUSED, WIDE>(queries, &mut scratch),
                    _ => self.tile::<8, FUSED, WIDE>(queries, &mut scratch),
                }
            }
            row += run;
        }
        SCRATCH.set(scratch);
    }
}

/// Some queries of one head of keys: query `i` is head `i % group` of row `row + i / group`.
#[derive(Clone, Copy)]
struct Queries {
    row: usize,
    first: usize,
    count: usize,
}

impl<N: Number> Task<'_, '_, N> {
    #[inline(always)]
    fn tile<const R: usize, const FUSED: bool, const WIDE: bool>(
        &mut self,
        queries: Queries,
        scratch: &mut Scratch,
    ) {
        let attention = self.attention;
        let shape = &attention.cache.shape;
        let group = shape.heads / shape.kv_heads;
        let kv_head = self.block.columns().start / (group * shape.head_dim);
        let segment = &attention.batch.segments[attention.segments[queries.row] as usize];
        let Scratch { queries: vectors, scores } = scratch;
        let mut visible = [(0, 0); R];
        for (place, visible) in visible.iter_mut().enumerate() {
            // What is missing at the end repeats the last query; its result is not stored.
            let query = queries.first + place.min(queries.count - 1);
            let (row, head) = (queries.row + query / group, kv_head * group + query % group);
            let position = segment.start + row - segment.rows.start;
            let first = attention.window.map_or(0, |window| (position + 1).saturating_sub(window));
            *visible = (first, position + 1);
            let source = &attention.projections.row(row)[head * shape.head_dim..][..shape.head_dim];
            let target = &mut vectors[place][..shape.head_dim];
            attention.transform.apply::<FUSED>(source, attention.rotations.row(row), target);
        }
        let first_tile = visible.iter().map(|(first, _)| first / TILE_TOKENS).min().unwrap_or(0);
        let end = visible.iter().map(|(_, end)| *end).max().unwrap_or(0);
        let span = Span { segment, first_tile, tiles: end.div_ceil(TILE_TOKENS) - first_tile, end, kv_head };
        if scores.len() < R * span.tiles {
            scores.resize(R * span.tiles, [0.0; TILE_TOKENS]);
        }
        let scores = &mut scores[..R * span.tiles];
        self.score::<R, FUSED, WIDE>(&span, vectors, scores);
        let mut weights = [0.0; R];
        for (place, (first, end)) in visible.into_iter().enumerate() {
            let row = &mut scores[place * span.tiles..(place + 1) * span.tiles];
            let start = first_tile * TILE_TOKENS;
            weights[place] = 1.0 / softmax::<FUSED>(row, first - start, end - start);
        }
        self.add_values::<R, FUSED, WIDE>(&span, queries, scores, &weights);
    }

    /// Scores of the queries with every key of the span.
    #[inline(always)]
    fn score<const R: usize, const FUSED: bool, const WIDE: bool>(
        &self,
        span: &Span,
        vectors: &[[f32; MAX_HEAD_DIM]],
        scores: &mut [[f32; TILE_TOKENS]],
    ) {
        let mut tile = 0;
        // Few queries leave registers free: several tiles at a time hide the latency of the additions.
        if R <= 2 {
            while tile + 4 <= span.tiles {
                self.score_tiles::<R, 4, FUSED>(span, tile, vectors, scores);
                tile += 4;
            }
        }
        if R <= 4 {
            while tile + 2 <= span.tiles {
                self.score_tiles::<R, 2, FUSED>(span, tile, vectors, scores);
                tile += 2;
            }
        }
        while tile < span.tiles {
            self.score_tiles::<R, 1, FUSED>(span, tile, vectors, scores);
            tile += 1;
        }
    }

    #[inline(always)]
    fn score_tiles<const R: usize, const T: usize, const FUSED: bool>(
        &self,
        span: &Span,
        first: usize,
        vectors: &[[f32; MAX_HEAD_DIM]],
        scores: &mut [[f32; TILE_TOKENS]],
    ) {
        let head_dim = self.attention.cache.shape.head_dim;
        let tiles: [&[[N; TILE_TOKENS]]; T] =
            std::array::from_fn(|tile| &self.head_tile(span, first + tile).keys[..head_dim]);
        let queries: [&[f32]; R] = std::array::from_fn(|place| &vectors[place][..head_dim]);
        let mut sums = [[[0.0; TILE_TOKENS]; T]; R];
        for element in 0..head_dim {
            for (tile, keys) in tiles.iter().enumerate() {
                let mut wide = [0.0; TILE_TOKENS];
                for (wide, key) in wide.iter_mut().zip(&keys[element]) {
                    *wide = key.widen();
                }
                for place in 0..R {
                    add_product::<TILE_TOKENS, FUSED>(&mut sums[place][tile], queries[place][element], &wide);
                }
            }
        }
        for (place, sums) in sums.iter().enumerate() {
            scores[place * span.tiles + first..][..T].copy_from_slice(sums);
        }
    }

    /// The sums of values weighted by the scores, times `weights`, into the block.
    #[inline(always)]
    fn add_values<const R: usize, const FUSED: bool, const WIDE: bool>(
        &mut self,
        span: &Span,
        queries: Queries,
        scores: &[[f32; TILE_TOKENS]],
        weights: &[f32; R],
    ) {
        let width = self.attention.cache.shape.value_row();
        let mut column = 0;
        while column < width {
            if R <= 4 && WIDE && column + 64 <= width {
                self.value_columns::<R, 64, FUSED>(span, (queries, column), scores, weights);
                column += 64;
            } else if column + 32 <= width {
                self.value_columns::<R, 32, FUSED>(span, (queries, column), scores, weights);
                column += 32;
            } else {
                self.value_columns::<R, 16, FUSED>(span, (queries, column), scores, weights);
                column += 16;
            }
        }
    }

    #[inline(always)]
    fn value_columns<const R: usize, const W: usize, const FUSED: bool>(
        &mut self,
        span: &Span,
        (queries, column): (Queries, usize),
        scores: &[[f32; TILE_TOKENS]],
        weights: &[f32; R],
    ) {
        let shape = self.attention.cache.shape;
        let mut sums = [[0.0; W]; R];
        for tile in 0..span.tiles {
            let values = self.head_tile(span, tile).values;
            let tokens = TILE_TOKENS.min(span.end - (span.first_tile + tile) * TILE_TOKENS);
            let of_tile: [&[f32; TILE_TOKENS]; R] =
                std::array::from_fn(|place| &scores[place * span.tiles + tile]);
            for (token, row) in values.chunks_exact(shape.value_row()).take(tokens).enumerate() {
                let row: &[N; W] = row[column..].first_chunk().expect("a row of values is a multiple of W");
                let mut wide = [0.0; W];
                for (wide, value) in wide.iter_mut().zip(row) {
                    *wide = value.widen();
                }
                for place in 0..R {
                    add_product::<W, FUSED>(&mut sums[place], of_tile[place][token], &wide);
                }
            }
        }
        let group = shape.heads / shape.kv_heads;
        let first_row = self.block.rows().start;
        let count = W.min(shape.head_dim.saturating_sub(column));
        for (place, sums) in sums.iter().enumerate().take(queries.count) {
            let query = queries.first + place;
            let row = self.block.row(queries.row + query / group - first_row);
            let target = &mut row[query % group * shape.head_dim + column..][..count];
            // All of them, whatever part is wanted: only then do the sums stay in whole registers.
            let mut results = [N::Input::narrow(0.0); W];
            for (result, sum) in results.iter_mut().zip(sums) {
                *result = N::Input::narrow(sum * weights[place]);
            }
            target.copy_from_slice(&results[..count]);
        }
    }

    #[inline(always)]
    fn head_tile(&self, span: &Span, tile: usize) -> HeadTile<'_, N> {
        let attention = self.attention;
        let table = attention.batch.table(span.segment);
        let number = tile_number(table, span.first_tile + tile, &attention.cache.shape);
        attention.cache.tile(attention.layer, number, span.kv_head)
    }
}

/// The stretch of a sequence that a tile of queries sees.
struct Span<'a> {
    segment: &'a Segment,
    first_tile: usize,
    tiles: usize,
    /// Position behind the last key that is seen.
    end: usize,
    kv_head: usize,
}

/// Replaces scores `first..end` by `e^(score - largest)`, all others by 0; the sum of them.
#[inline(always)]
fn softmax<const FUSED: bool>(scores: &mut [[f32; TILE_TOKENS]], first: usize, end: usize) -> f32 {
    let flat = scores.as_flattened_mut();
    flat[..first].fill(f32::NEG_INFINITY);
    flat[end..].fill(f32::NEG_INFINITY);
    let mut best = [f32::NEG_INFINITY; TILE_TOKENS];
    for tile in &*scores {
        for (best, score) in best.iter_mut().zip(tile) {
            *best = if *score > *best { *score } else { *best };
        }
    }
    let largest = best.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    let mut sums = [0.0; TILE_TOKENS];
    for tile in scores {
        for (sum, score) in sums.iter_mut().zip(tile) {
            *score = exp::<FUSED>(*score - largest);
            *sum += *score;
        }
    }
    add_lanes(sums)
}
