//! The network with its weights, whichever backend runs it.

mod aten;
pub(crate) mod native;

use model::{Device, Groups, Layout, ModelConfig};
use tch::Tensor;
use types::PolicyVersion;

use crate::batch::{Batch, Drawn};
use crate::config::{self, EngineConfig};
use crate::error::Error;
use aten::{Aten, AtenWeights};
use native::{Native, NativeWeights};

/// Reads a group of weights, `[numel]` as the layout says.
pub(crate) type ReadGroup<'a> = &'a dyn Fn(usize) -> Result<Tensor, Error>;

/// The weights of one policy version, in the form that an engine takes up at once. Made beside a running
/// engine, on any thread.
#[derive(Debug)]
pub struct PolicyWeights {
    version: PolicyVersion,
    layout: Layout,
    prepared: Prepared,
}

#[derive(Debug)]
enum Prepared {
    Native(NativeWeights),
    Aten(AtenWeights),
}

impl PolicyWeights {
    /// Brings weights of any element type and device into the form for engines of this configuration, on its
    /// device. This copies them, one group after the other: `weights` may be written or dropped afterwards,
    /// and a source that makes its groups as they are read never stands whole beside the copy. A GPU takes
    /// the copies in turn with the steps of an engine that runs there.
    ///
    /// # Errors
    /// When they cannot be read or are not `model`'s, when there is no room for the copy, or no such device.
    pub fn prepare(
        model: &ModelConfig,
        weights: &impl Groups,
        version: PolicyVersion,
        engine: &EngineConfig,
    ) -> Result<Self, Error> {
        engine.check_device()?;
        let layout = Layout::new(model);
        let read = |index: usize| {
            // The group before it, which is packed by now.
            model::give_back_freed_memory();
            let group = weights.group(index).map_err(|error| Error::Read(Box::new(error)))?;
            if group.size() == [layout.groups[index].numel] { Ok(group) } else { Err(Error::Weights) }
        };
        let prepared = if is_native(engine, model) {
            Prepared::Native(NativeWeights::pack(model, &read, engine.dtype())?)
        } else {
            Prepared::Aten(AtenWeights::copy(model, &read, engine.place())?)
        };
        model::give_back_freed_memory();
        Ok(Self { version, layout, prepared })
    }

    /// Which policy they are.
    pub fn version(&self) -> PolicyVersion {
        self.version
    }
}

/// A backend with the weights it runs.
#[derive(Debug)]
pub(crate) struct Network {
    backend: Backend,
    version: PolicyVersion,
    layout: Layout,
}

#[derive(Debug)]
enum Backend {
    Native(Native),
    Aten(Box<Aten>),
}

impl Network {
    /// A backend with an empty cache of `blocks` blocks.
    pub(crate) fn new(
        model: &ModelConfig,
        weights: PolicyWeights,
        engine: &EngineConfig,
        blocks: usize,
    ) -> Result<Self, Error> {
        let PolicyWeights { version, layout, prepared } = weights;
        if layout != Layout::new(model) {
            return Err(Error::Weights);
        }
        let backend = match prepared {
            Prepared::Native(weights) => {
                let native = Native::new(model, weights, engine, blocks);
                Backend::Native(native.map_err(Error::system("memory for the cache, or threads"))?)
            }
            Prepared::Aten(weights) => Backend::Aten(Box::new(Aten::new(model, weights, engine, blocks)?)),
        };
        Ok(Self { backend, version, layout })
    }

    /// Exchanges the cache for an empty one of `blocks` blocks. The native one has its size for good.
    pub(crate) fn resize(&mut self, engine: &EngineConfig, blocks: usize) -> Result<(), Error> {
        match &mut self.backend {
            Backend::Native(_) => Ok(()),
            Backend::Aten(aten) => aten.resize(engine, blocks),
        }
    }

    /// Computes a step; the drawn tokens in the order of `batch.draws`.
    pub(crate) fn step(&mut self, batch: &Batch) -> Result<&[Drawn], Error> {
        match &mut self.backend {
            Backend::Native(native) => Ok(native.step(batch)),
            Backend::Aten(aten) => aten.step(batch),
        }
    }

    /// Steps that were replayed instead of computed operator by operator.
    pub(crate) fn replayed_steps(&self) -> u64 {
        match &self.backend {
            Backend::Native(_) => 0,
            Backend::Aten(aten) => aten.replayed_steps(),
        }
    }

    /// The weights are those of this version too.
    pub(crate) fn renumber(&mut self, version: PolicyVersion) {
        self.version = version;
    }

    /// Exchanges the weights; the old ones.
    pub(crate) fn swap(&mut self, weights: PolicyWeights) -> Result<PolicyWeights, Error> {
        let PolicyWeights { version, layout, prepared } = weights;
        if layout != self.layout {
            return Err(Error::Weights);
        }
        let old = match (&mut self.backend, prepared) {
            (Backend::Native(native), Prepared::Native(new)) => native.swap(new).map(Prepared::Native).ok(),
            (Backend::Aten(aten), Prepared::Aten(new)) => aten.swap(new).map(Prepared::Aten).ok(),
            (Backend::Native(_), Prepared::Aten(_)) | (Backend::Aten(_), Prepared::Native(_)) => None,
        };
        let prepared = old.ok_or(Error::Weights)?;
        let version = std::mem::replace(&mut self.version, version);
        Ok(PolicyWeights { version, layout, prepared })
    }
}

/// Bytes of one block of the cache.
pub(crate) fn block_bytes(model: &ModelConfig, engine: &EngineConfig) -> u64 {
    match is_native(engine, model) {
        true => native::block_bytes(model, engine),
        false => aten::block_bytes(model, engine),
    }
}

/// Whether the engine's own CPU code runs this network.
pub(crate) fn is_native(engine: &EngineConfig, model: &ModelConfig) -> bool {
    match engine.backend {
        config::Backend::Auto => engine.device == Device::Cpu && native::supports(model),
        config::Backend::Native => true,
        config::Backend::Aten | config::Backend::Vllm | config::Backend::Sglang => false,
    }
}
