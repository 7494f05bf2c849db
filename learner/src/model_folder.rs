//! What training starts from: folders, or weights that were made, read group by group, so that no rank holds
//! more of them than it trains.

use std::path::{Path, PathBuf};

use model::folder::Opened;
use model::{Groups as _, Head, LoadOptions, Model, ModelConfig, ScalarInit, Weights};
use tch::Tensor;

use crate::error::{Error, Result};

/// A network that training starts from.
#[derive(Debug, Clone)]
pub(crate) struct StartModel {
    /// Its shape and options, with the head that it is to have.
    pub(crate) config: ModelConfig,
    /// The folder whose tokenizer and generation files belong to it.
    pub(crate) path: PathBuf,
    weights: StartWeights,
    /// A scalar head in the place of the one that its weights have.
    new_head: Option<NewHead>,
}

#[derive(Debug, Clone)]
enum StartWeights {
    Folder(Box<Opened>),
    Made(std::sync::Arc<Weights>),
}

#[derive(Debug, Clone)]
struct NewHead {
    /// The network with its own head.
    own: ModelConfig,
    init: ScalarInit,
}

impl StartModel {
    /// A folder, whatever its head. Its weights are compared with their hashes, where it has some.
    ///
    /// # Errors
    /// A folder that cannot be used.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        Self::of(folder, &LoadOptions::default())
    }

    /// A folder whose hashes were compared already.
    ///
    /// # Errors
    /// A folder that cannot be used.
    pub(crate) fn open_verified(folder: &Path) -> Result<Self> {
        Self::of(folder, &LoadOptions { verify: false, ..LoadOptions::default() })
    }

    /// A folder that must be a policy: a language model's.
    ///
    /// # Errors
    /// A folder that cannot be used, or with another head.
    pub(crate) fn open_policy(folder: &Path) -> Result<Self> {
        let opened = Self::open(folder)?;
        if opened.config.head == Head::Causal {
            return Ok(opened);
        }
        let found = opened.config.architecture.class(opened.config.head);
        Err(Error::Head { path: folder.to_owned(), found, role: "policy", wanted: "a *ForCausalLM" })
    }

    fn of(folder: &Path, options: &LoadOptions) -> Result<Self> {
        let opened = model::folder::open(folder, options)?;
        let (config, path) = (opened.config.clone(), folder.to_owned());
        Ok(Self { config, path, weights: StartWeights::Folder(opened.into()), new_head: None })
    }

    /// The same with its own scalar head, or with a new one where it has none.
    pub(crate) fn with_scalar_head(self, init: ScalarInit) -> Self {
        if self.config.head == Head::Scalar {
            return self;
        }
        let config = self.config.clone().with_scalar_head();
        Self { new_head: Some(NewHead { own: self.config, init }), config, ..self }
    }

    /// The values of group `index`, `[numel]`, on the CPU; not to be written.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn group(&self, index: usize) -> Result<Tensor> {
        let flat = match &self.weights {
            StartWeights::Folder(opened) => opened.group(index)?,
            StartWeights::Made(weights) => weights.flats()[index].shallow_clone(),
        };
        match &self.new_head {
            // The groups are the embedding, the blocks, the output.
            Some(NewHead { own, init }) if index == self.config.layers + 1 => {
                Ok(model::scalar_output(own, &flat, *init))
            }
            _ => Ok(flat),
        }
    }
}

impl From<Model> for StartModel {
    fn from(made: Model) -> Self {
        let Model { config, weights, path } = made;
        Self { config, path, weights: StartWeights::Made(weights.into()), new_head: None }
    }
}
