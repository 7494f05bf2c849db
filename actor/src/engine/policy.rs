//! The network with its weights, whichever backend runs it.

use model::{Layout, ModelConfig, Weights};
use types::PolicyVersion;

use super::Error;
use super::batch::{Batch, Drawn};
use super::config::EngineConfig;
use super::native::{self, Native, NativeWeights};

/// The weights of one policy version, in the form that an engine takes up at once. Made beside a running engine, on
/// any thread.
#[derive(Debug)]
pub struct PolicyWeights {
    version: PolicyVersion,
    layout: Layout,
    prepared: Prepared,
}

#[derive(Debug)]
enum Prepared {
    Native(NativeWeights),
}

impl PolicyWeights {
    /// Brings weights of any element type and device into the form for engines of this configuration. This copies
    /// them: `weights` may be written or dropped afterwards.
    ///
    /// # Errors
    /// When there is no room for the copy.
    pub fn prepare(
        model: &ModelConfig,
        weights: &Weights,
        version: PolicyVersion,
        engine: &EngineConfig,
    ) -> Result<Self, Error> {
        let packed = NativeWeights::pack(model, weights, engine.dtype);
        let prepared = Prepared::Native(packed.map_err(Error::system("memory for the weights"))?);
        Ok(Self { version, layout: weights.layout().clone(), prepared })
    }

    /// Which policy they are.
    pub fn version(&self) -> PolicyVersion {
        self.version
    }
}

/// A backend with the weights it runs.
#[derive(Debug)]
pub(super) struct Network {
    backend: Native,
    version: PolicyVersion,
    layout: Layout,
}

impl Network {
    /// A backend with an empty cache of `blocks` blocks.
    pub(super) fn new(
        model: &ModelConfig,
        weights: PolicyWeights,
        engine: &EngineConfig,
        blocks: usize,
    ) -> Result<Self, Error> {
        let PolicyWeights { version, layout, prepared } = weights;
        if layout != Layout::new(model) {
            return Err(Error::Weights);
        }
        let Prepared::Native(weights) = prepared;
        let backend = Native::new(model, weights, engine, blocks);
        let backend = backend.map_err(Error::system("memory for the cache, or threads"))?;
        Ok(Self { backend, version, layout })
    }

    /// Computes a step; the drawn tokens in the order of `batch.draws`.
    pub(super) fn step(&mut self, batch: &Batch) -> Result<&[Drawn], Error> {
        Ok(self.backend.step(batch))
    }

    /// Exchanges the weights; the old ones.
    pub(super) fn swap(&mut self, weights: PolicyWeights) -> Result<PolicyWeights, Error> {
        if weights.layout != self.layout {
            return Err(Error::Weights);
        }
        let Prepared::Native(new) = weights.prepared;
        let old = self.backend.swap(new).map_err(|_| Error::Weights)?;
        let version = std::mem::replace(&mut self.version, weights.version);
        Ok(PolicyWeights { version, layout: weights.layout, prepared: Prepared::Native(old) })
    }
}

/// Bytes of one block of the cache.
pub(super) fn block_bytes(model: &ModelConfig, engine: &EngineConfig) -> u64 {
    native::block_bytes(model, engine)
}
