//! How weights that have arrived become weights in use, on the receiver's thread: in the form of the actor's
//! own engine, or read by an external one.

use std::sync::Arc;

use engine::{EngineConfig, PolicyWeights};
use model::ModelConfig;
use model::buffer::PackedWeights;
use tokio::runtime::Handle;
use types::{ModelFile, PolicyVersion};
use weights::Prepare;

use crate::external::{self, Remote, WeightsFolder};

/// Brings weights into the form that the engine takes up.
#[derive(Debug)]
pub(crate) enum Preparation {
    /// For an engine of this process.
    Own { model: ModelConfig, engine: EngineConfig },
    /// For a server, which reads them from a folder.
    External(External),
}

/// What the server's weights go through.
#[derive(Debug)]
pub(crate) struct External {
    remote: Arc<Remote>,
    model: ModelConfig,
    folder: WeightsFolder,
    files: Vec<ModelFile>,
    /// The process's, which the calls run on.
    runtime: Handle,
}

/// Weights that can be put into use.
#[derive(Debug)]
pub(crate) enum Prepared {
    Own(Box<PolicyWeights>),
    /// The server draws with them already.
    External,
}

/// Why weights cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// By the actor's own engine.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// By an external one.
    #[error(transparent)]
    External(#[from] external::Error),
}

impl Preparation {
    /// For a server; called on the process's runtime.
    pub(crate) fn external(
        remote: Arc<Remote>,
        model: ModelConfig,
        folder: WeightsFolder,
        files: Vec<ModelFile>,
    ) -> Self {
        Self::External(External { remote, model, folder, files, runtime: Handle::current() })
    }
}

impl Prepare for Preparation {
    type Prepared = Prepared;
    type Error = Error;

    fn prepare(&mut self, version: PolicyVersion, weights: &PackedWeights<'_>) -> Result<Prepared, Error> {
        match self {
            Self::Own { model, engine } => {
                let prepared = PolicyWeights::prepare(model, weights, version, engine)?;
                Ok(Prepared::Own(Box::new(prepared)))
            }
            Self::External(external) => {
                let External { remote, model, folder, files, runtime } = external;
                let path = folder.write(version, model, files, weights).map_err(external::Error::from)?;
                runtime.block_on(remote.take_up(version, &path))?;
                Ok(Prepared::External)
            }
        }
    }
}
