//! Embedding and RMS norm: operations on one row.

use super::machine::{self, Block, BlockSize, Kernel, Level, PairProducts, Team};
use super::math::sum;
use super::matrix::Matrix;
use super::number::Number;
use super::weights::Embedding;

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
pub(crate) fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    1.0 / (sum(row, |x| x * x) / row.len() as f32 + eps).sqrt()
}

/// RMS norm of rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
}

/// Writes the norm of `row(i)` of `input` to row `i` of `output`, for the first `rows` rows.
pub(crate) fn normalize<N: Number>(
    (team, level): (&mut Team, Level),
    norm: Norm<'_>,
    input: &Matrix,
    row: impl Fn(usize) -> usize + Sync,
    output: machine::MatrixMut<'_, N>,
) {
    let size = row_blocks(team, &output);
    team.blocks(output, size, |block| machine::run(level, NormTask { norm, input, row: &row, block }));
}

struct NormTask<'a, N, F> {
    norm: Norm<'a>,
    input: &'a Matrix,
    row: &'a F,
    block: Block<'a, N>,
}

impl<N: Number, F: Fn(usize) -> usize> Kernel for NormTask<'_, N, F> {
    #[inline(always)]
    fn run<const FUSED: bool, const WIDE: bool, P: PairProducts>(mut self) {
        for (offset, row) in self.block.rows().enumerate() {
            let input = self.input.row((self.row)(row));
            let factor = inverse_rms(input, self.norm.eps);
            let output = self.block.row(offset);
            for ((output, x), weight) in output.iter_mut().zip(input).zip(self.norm.weight) {
                *output = N::narrow(x * factor * weight);
            }
        }
    }
}

/// Writes the embeddings of `tokens` to the rows of `output`.
pub(crate) fn embed<N: Number>(
    (team, level): (&mut Team, Level),
    embedding: Embedding<'_, N>,
    tokens: &[u32],
    output: machine::MatrixMut<'_>,
) {
    let size = row_blocks(team, &output);
    team.blocks(output, size, |block| machine::run(level, EmbedTask { embedding, tokens, block }));
}

struct EmbedTask<'a, N: Number> {
    embedding: Embedding<'a, N>,
    tokens: &'a [u32],
    block: Block<'a>,
}

impl<N: Number> Kernel for EmbedTask<'_, N> {
    #[inline(always)]
    fn run<const FUSED: bool, const WIDE: bool, P: PairProducts>(mut self) {
        let columns = self.block.columns().len();
        for (offset, row) in self.block.rows().enumerate() {
            let (token, output) = (self.tokens[row] as usize, self.block.row(offset));
            match self.embedding {
                Embedding::Rows(table) => {
                    for (output, element) in output.iter_mut().zip(&table[token * columns..][..columns]) {
                        *output = element.widen();
                    }
                }
                Embedding::Head(panels) => panels.copy_output(token, output),
            }
        }
    }
}

/// Whole rows, some for each thread.
fn row_blocks<T>(team: &Team, output: &machine::MatrixMut<'_, T>) -> BlockSize {
    BlockSize { rows: output.rows.div_ceil(2 * team.threads()).max(1), columns: output.columns }
}
