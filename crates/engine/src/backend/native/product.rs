//! Matrix products of a few to a few hundred rows with packed weights.
//!
//! The tile of 8 rows by 32 outputs stays in registers while the inputs go by, two at a time. Each output is
//! one chain of additions over the inputs in their order, whatever the number of rows and wherever the row
//! stands: a row's numbers do not depend on the other rows, to the bit. The weights' type says how a pair of
//! inputs is multiplied (`Number::add_products`) and what inputs are rounded to (`Number::Input`), which
//! whoever computes them does.

use super::machine::{self, Block, BlockSize, Kernel, Level, MatrixMut, PairProducts, Team};
use super::math::silu;
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
    pub(crate) input: &'a Matrix<N::Input>,
    /// The weights.
    pub(crate) weights: &'a Panels<N>,
    /// One number for each row of `weights`.
    pub(crate) bias: Option<&'a [f32]>,
    /// What becomes of it.
    pub(crate) store: Store,
}

/// Computes a product into `output`, whose rows are the first rows of the input.
pub(crate) fn multiply<N: Number, T: Number>(
    team: &mut Team,
    level: Level,
    product: Product<'_, N>,
    output: MatrixMut<'_, T>,
) {
    let rows = output.rows.clamp(1, TASK_ROWS);
    let wanted = TASKS_PER_THREAD * team.threads();
    let down = output.rows.div_ceil(rows);
    let panels = (output.columns.div_ceil(PANEL) * down / wanted).clamp(1, 8);
    let size = BlockSize { rows, columns: panels * PANEL };
    team.blocks(output, size, |block| machine::run(level, Task { product: &product, block }));
}

struct Task<'a, 'b, N: Number, T> {
    product: &'a Product<'b, N>,
    block: Block<'a, T>,
}

impl<N: Number, T: Number> Kernel for Task<'_, '_, N, T> {
    #[inline(always)]
    fn run<const FUSED: bool, const WIDE: bool, P: PairProducts>(mut self) {
        let (rows, columns) = (self.block.rows(), self.block.columns());
        for column in columns.clone().step_by(PANEL) {
            let width = PANEL.min(columns.end - column);
            for row in rows.clone().step_by(TILE) {
                let share = ((row - rows.start) / TILE, rows.len().div_ceil(TILE));
                let part = Part { row, rows: TILE.min(rows.end - row), column, width, share };
                match part.rows {
                    1 => self.tile::<1, FUSED, WIDE, P>(part),
                    2 => self.tile::<2, FUSED, WIDE, P>(part),
                    3 | 4 => self.tile::<4, FUSED, WIDE, P>(part),
                    _ => self.tile::<8, FUSED, WIDE, P>(part),
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
    /// Which of how many shares of the following panel it fetches.
    share: (usize, usize),
}

impl<N: Number, T: Number> Task<'_, '_, N, T> {
    #[inline(always)]
    fn tile<const R: usize, const FUSED: bool, const WIDE: bool, P: PairProducts>(&mut self, part: Part) {
        let Product { input, weights, bias, store } = *self.product;
        // A tile that sticks out repeats its last row; what it computes there is not stored.
        let inputs: [_; R] = std::array::from_fn(|row| input.pairs(part.row + row.min(part.rows - 1)));
        let number = part.column / PANEL;
        let results = match store {
            Store::Assign | Store::Add => {
                let next = weights.share(number + 1, part.share);
                outputs::<N, P, R, FUSED, WIDE>(&inputs, (weights, number), bias, next)
            }
            Store::Gate => {
                let next = weights.share(2 * number + 2, part.share);
                let mut gates = outputs::<N, P, R, FUSED, WIDE>(&inputs, (weights, 2 * number), bias, next);
                let next = weights.share(2 * number + 3, part.share);
                let values = outputs::<N, P, R, FUSED, WIDE>(&inputs, (weights, 2 * number + 1), bias, next);
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
                target.iter_mut().zip(result).for_each(|(sum, value)| *sum = T::narrow(sum.widen() + value));
            } else {
                target.iter_mut().zip(result).for_each(|(target, value)| *target = T::narrow(*value));
            }
        }
    }
}

/// The outputs of one panel for some rows, bias included.
#[inline(always)]
fn outputs<N: Number, P: PairProducts, const R: usize, const FUSED: bool, const WIDE: bool>(
    inputs: &[&[[N::Input; 2]]; R],
    (weights, number): (&Panels<N>, usize),
    bias: Option<&[f32]>,
    following: &[N::Pair],
) -> [[f32; PANEL]; R] {
    let panel = weights.panel(number);
    let mut results = [[0.0; PANEL]; R];
    if WIDE {
        results = accumulate::<N, P, R, PANEL, FUSED>(inputs, (panel, following), 0);
    } else {
        // A quarter of the registers: four rows and half a panel at a time.
        for (few, results) in inputs.chunks(4).zip(results.chunks_mut(4)) {
            let few: [_; 4] = std::array::from_fn(|row| few[row.min(few.len() - 1)]);
            for first in [0, PANEL / 2] {
                let sums = accumulate::<N, P, 4, { PANEL / 2 }, FUSED>(&few, (panel, following), first);
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

/// `sum over i of inputs[row][i] * weight[i][first + column]`, in the order of `i`. Meanwhile `following`,
/// which is read later, comes into the cache, so that memory is busy also while a panel in the cache is
/// multiplied with further rows.
#[inline(always)]
fn accumulate<N: Number, P: PairProducts, const R: usize, const W: usize, const FUSED: bool>(
    inputs: &[&[[N::Input; 2]]; R],
    (panel, following): (&[N::Pair], &[N::Pair]),
    first: usize,
) -> [[f32; W]; R] {
    let mut sums = [[0.0; W]; R];
    let mut inputs = *inputs;
    for row in &mut inputs {
        *row = &row[..panel.len()];
    }
    for (at, pair) in panel.iter().enumerate() {
        if let Some(pair) = following.get(at) {
            machine::fetch(pair);
        }
        N::add_products::<P, R, W, FUSED>(&mut sums, (&inputs, at), pair, first);
    }
    sums
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// Small integers, of which every type and every order of sums makes the same.
    fn every_level_multiplies<N: Number>() {
        let (rows, inputs, outputs) = (5, 7, 40);
        let input = |row: usize, at: usize| ((row * 7 + at * 2) % 9) as f32 - 4.0;
        let weight = |output: usize, at: usize| ((output * 3 + at * 5) % 11) as f32 - 5.0;
        let mut matrix = Matrix::<N::Input>::zeros(rows, inputs).unwrap();
        let MatrixMut { data, stride, .. } = matrix.first_rows(rows);
        for (row, numbers) in data.chunks_mut(stride).enumerate() {
            (0..inputs).for_each(|at| numbers[at] = Number::narrow(input(row, at)));
        }
        let weights: Vec<Vec<N>> = (0..outputs)
            .map(|output| (0..inputs).map(|at| N::narrow(weight(output, at))).collect())
            .collect();
        let weights = Panels::pack(outputs, inputs, |output| Some(&weights[output])).unwrap();
        let mut team = Team::new(2).unwrap();
        for level in Level::available() {
            let mut output = Matrix::<f32>::zeros(rows, outputs).unwrap();
            let product = Product { input: &matrix, weights: &weights, bias: None, store: Store::Assign };
            multiply(&mut team, level, product, output.first_rows(rows));
            for row in 0..rows {
                let sum = |output| (0..inputs).map(|at| input(row, at) * weight(output, at)).sum();
                let expected: Vec<f32> = (0..outputs).map(sum).collect();
                assert_eq!(output.row(row), expected, "row {row}, {level:?}");
            }
        }
    }

    #[test]
    fn every_level_multiplies_every_type() {
        every_level_multiplies::<f32>();
        every_level_multiplies::<bf16>();
        every_level_multiplies::<f16>();
    }
}
