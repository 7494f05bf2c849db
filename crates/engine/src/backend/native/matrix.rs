//! Row-major matrices: the activations of a step.

use super::machine::MatrixMut;
use super::memory::Buffer;
use super::number::Number;

/// Room between rows, so that equal columns of neighbouring rows do not share a cache set.
const GAP: usize = 16;

/// A matrix with room for a number of rows. Elements behind a row's columns are zero.
#[derive(Debug)]
pub(crate) struct Matrix<N = f32> {
    data: Buffer<N>,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<N: Number> Matrix<N> {
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
    pub(crate) fn row(&self, row: usize) -> &[N] {
        &self.data[row * self.stride..][..self.columns]
    }

    /// A row to write.
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [N] {
        &mut self.data[row * self.stride..][..self.columns]
    }

    /// A row in pairs; if the columns are odd, with the zero behind it.
    #[inline(always)]
    pub(crate) fn pairs(&self, row: usize) -> &[[N; 2]] {
        self.data[row * self.stride..][..self.columns.next_multiple_of(2)].as_chunks().0
    }

    /// The first `rows` rows to write.
    pub(crate) fn first_rows(&mut self, rows: usize) -> MatrixMut<'_, N> {
        let data = &mut self.data[..rows * self.stride];
        MatrixMut { data, rows, columns: self.columns, stride: self.stride }
    }
}
