//! Row-major matrices of f32: the activations of a step.

use super::machine::MatrixMut;
use super::memory::Buffer;

/// Room between rows, so that equal columns of neighbouring rows do not share a cache set.
const GAP: usize = 16;

/// A matrix with room for a number of rows. Elements behind a row's columns are zero.
#[derive(Debug)]
pub(crate) struct Matrix {
    data: Buffer<f32>,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl Matrix {
    /// A matrix of zeros.
    ///
    /// # Errors
    /// When the system has no room for it.
    pub(crate) fn zeros(rows: usize, columns: usize) -> std::io::Result<Self> {
        let stride = columns.next_multiple_of(16) + GAP;
        Ok(Self { data: Buffer::zeros(rows * stride)?, rows, columns, stride })
    }

    /// Rows there is room for.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// A row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride..][..self.columns]
    }

    /// A row with the zero behind it, if the columns are odd.
    #[inline(always)]
    pub(crate) fn even_row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride..][..self.columns.next_multiple_of(2)]
    }

    /// The first `rows` rows to write.
    pub(crate) fn first_rows(&mut self, rows: usize) -> MatrixMut<'_> {
        let data = &mut self.data[..rows * self.stride];
        MatrixMut { data, rows, columns: self.columns, stride: self.stride }
    }
}
