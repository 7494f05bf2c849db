//! Matrix products of a few to a few hundred rows with packed weights.
//!
//! The tile of 8 rows by 32 outputs stays in registers while the inputs go by. Each output is one chain of
//! multiply-adds over the inputs in their order, whatever the number of rows and wherever the row stands: a row's
//! numbers do not depend on the other rows, to the bit.

use super::machine::{self, Block, BlockSize, Kernel, Level, MatrixMut, Team};
use super::math::{add_product, silu};
use super::matrix::Matrix;
use super::number::{Number, PANEL};
use super::panels::Panels;

/// Rows of a tile.
const TILE: usize = 8;

/// Rows that one task takes: enough to use a panel well while it is in the cache.
const TASK_ROWS: usize = 64;

/// Tasks for each thread, so that the threads end together.
const TASKS_PER_THREAD: usize = 4;

/// What happens to the result of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// It becomes the output.
    Assign,
    /// It is added to the output.
    Add,
    /// Panels alternate between gates and values; `silu(gate) * value` becomes the output.
    Gate,
}

/// A product `input @ weights^T + bias`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product<'a, N: Number> {
    /// `[rows, inputs]`.
    pub(crate) input: &'a Matrix,
    /// The weights.
    pub(crate) weights: &'a Panels<N>,
    /// One number for each row of `weights`.
    pub(crate) bias: Option<&'a [f32]>,
    /// What becomes of it.
    pub(crate) store: Store,
}

/// Computes a product into `output`, whose rows are the first rows of the input.
pub(crate) fn multiply<N: Number>(
    team: &mut Team,
    level: Level,
    product: Product<'_, N>,
    output: MatrixMut<'_>,
) {
    let rows = output.rows.clamp(1, TASK_ROWS);
    let wanted = TASKS_PER_THREAD * team.threads();
    let down = output.rows.div_ceil(rows);
    let panels = (output.columns.div_ceil(PANEL) * down / wanted).clamp(1, 8);
    let size = BlockSize { rows, columns: panels * PANEL };
    team.blocks(output, size, |block| machine::run(level, Task { product: &product, block }));
}

struct Task<'a, 'b, N: Number> {
    product: &'a Product<'b, N>,
    block: Block<'a>,
}

impl<N: Number> Kernel for Task<'_, '_, N> {
    #[inline(always)]
    fn run<const FUSED: bool, const WIDE: bool>(mut self) {
        let (rows, columns) = (self.block.rows(), self.block.columns());
        for column in columns.clone().step_by(PANEL) {
            let width = PANEL.min(columns.end - column);
            for row in rows.clone().step_by(TILE) {
                let part = Part { row, rows: TILE.min(rows.end - row), column, width };
                match part.rows {
                    1 => self.tile::<1, FUSED, WIDE>(part),
                    2 => self.tile::<2, FUSED, WIDE>(part),
                    3 | 4 => self.tile::<4, FUSED, WIDE>(part),
                    _ => self.tile::<8, FUSED, WIDE>(part),
                }
            }
        }
    }
}

/// The part of the output that a tile covers.
#[derive(Clone, Copy)]
struct Part {
    row: usize,
    rows: usize,
    column: usize,
    width: usize,
}

impl<N: Number> Task<'_, '_, N> {
    #[inline(always)]
    fn tile<const R: usize, const FUSED: bool, const WIDE: bool>(&mut self, part: Part) {
        let Product { input, weights, bias, store } = *self.product;
        // A tile that sticks out repeats its last row; what it computes there is not stored.
        let inputs: [&[f32]; R] =
            std::array::from_fn(|row| input.even_row(part.row + row.min(part.rows - 1)));
        let number = part.column / PANEL;
        let results = match store {
            Store::Assign | Store::Add => outputs::<N, R, FUSED, WIDE>(&inputs, weights, bias, number),
            Store::Gate => {
                let mut gates = outputs::<N, R, FUSED, WIDE>(&inputs, weights, bias, 2 * number);
                let values = outputs::<N, R, FUSED, WIDE>(&inputs, weights, bias, 2 * number + 1);
                for (gates, values) in gates.iter_mut().zip(&values) {
                    for (gate, value) in gates.iter_mut().zip(values) {
                        *gate = silu::<FUSED>(*gate) * value;
                    }
                }
                gates
            }
        };
        let offset = part.column - self.block.columns().start;
        for (row, result) in results.iter().take(part.rows).enumerate() {
            let row = part.row - self.block.rows().start + row;
            let target = &mut self.block.row(row)[offset..offset + part.width];
            if store == Store::Add {
                target.iter_mut().zip(result).for_each(|(target, value)| *target += value);
            } else {
                target.copy_from_slice(&result[..part.width]);
            }
        }
    }
}

/// The outputs of one panel for some rows, bias included.
#[inline(always)]
fn outputs<N: Number, const R: usize, const FUSED: bool, const WIDE: bool>(
    inputs: &[&[f32]; R],
    weights: &Panels<N>,
    bias: Option<&[f32]>,
    number: usize,
) -> [[f32; PANEL]; R] {
    let panel = weights.panel(number);
    let mut results = [[0.0; PANEL]; R];
    if WIDE {
        results = accumulate::<N, R, PANEL, FUSED>(inputs, panel, 0);
    } else {
        // A quarter of the registers: four rows and half a panel at a time.
        for (few, results) in inputs.chunks(4).zip(results.chunks_mut(4)) {
            let few: [&[f32]; 4] = std::array::from_fn(|row| few[row.min(few.len() - 1)]);
            for first in [0, PANEL / 2] {
                let sums = accumulate::<N, 4, { PANEL / 2 }, FUSED>(&few, panel, first);
                for (result, sums) in results.iter_mut().zip(&sums) {
                    result[first..first + PANEL / 2].copy_from_slice(sums);
                }
            }
        }
    }
    if let Some(bias) = bias {
        let bias = &bias[number * PANEL..];
        for result in &mut results {
            result.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
    }
    results
}

/// `sum over i of inputs[row][i] * weight[i][first + column]`, in the order of `i`.
#[inline(always)]
fn accumulate<N: Number, const R: usize, const W: usize, const FUSED: bool>(
    inputs: &[&[f32]; R],
    panel: &[N::Pair],
    first: usize,
) -> [[f32; W]; R] {
    let mut sums = [[0.0; W]; R];
    let inputs: [&[[f32; 2]]; R] = inputs.map(|row| &row.as_chunks::<2>().0[..panel.len()]);
    for (at, pair) in panel.iter().enumerate() {
        let [even, odd] = N::unpair::<W>(pair, first);
        for row in 0..R {
            add_product::<W, FUSED>(&mut sums[row], inputs[row][at][0], &even);
        }
        for row in 0..R {
            add_product::<W, FUSED>(&mut sums[row], inputs[row][at][1], &odd);
        }
    }
    sums
}
