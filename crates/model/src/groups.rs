//! Weights that are read one group at a time, so that whoever brings them into a form of its own never holds
//! both whole.

use std::convert::Infallible;

use tch::Tensor;

use crate::weights::Weights;

/// A source of a network's weights by groups, as [`crate::Layout`] numbers them.
pub trait Groups {
    /// Why a group cannot be had.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The buffer of group `index`, `[numel]`. It may share memory with the source: not to be written.
    ///
    /// # Errors
    /// When it cannot be read.
    ///
    /// # Panics
    /// When the network has no such group.
    fn group(&self, index: usize) -> Result<Tensor, Self::Error>;
}

impl Groups for Weights {
    type Error = Infallible;

    fn group(&self, index: usize) -> Result<Tensor, Infallible> {
        Ok(self.flats()[index].shallow_clone())
    }
}
