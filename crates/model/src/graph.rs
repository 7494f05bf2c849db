//! CUDA graphs: those of `model::cuda`, or, in a build without the feature `cuda`, types that have no
//! values, so that whoever would use graphs is the same code in both.

#[cfg(feature = "cuda")]
pub use crate::cuda::graph::{Graph, Recorder};

#[cfg(not(feature = "cuda"))]
pub use absent::{Graph, Recorder};

#[cfg(not(feature = "cuda"))]
mod absent {
    use tch::{Device, TchError};

    /// Records graphs on a GPU: not in this build.
    #[derive(Debug)]
    pub enum Recorder {}

    /// Recorded work: not in this build.
    #[derive(Debug)]
    pub enum Graph {}

    impl Recorder {
        /// There is none.
        ///
        /// # Errors
        /// Always.
        pub fn new(device: Device) -> Result<Self, TchError> {
            Err(TchError::Torch(format!("{device:?} has no CUDA graphs in a build without the feature cuda")))
        }

        /// Never called.
        ///
        /// # Errors
        /// None.
        pub fn record<T>(&self, _work: impl FnOnce() -> T) -> Result<(Graph, T), TchError> {
            match *self {}
        }
    }

    impl Graph {
        /// Never called.
        ///
        /// # Errors
        /// None.
        ///
        /// # Safety
        /// There is nothing to keep alive.
        pub unsafe fn replay(&self) -> Result<(), TchError> {
            match *self {}
        }
    }
}
