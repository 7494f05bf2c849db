//! Loading the folders that training starts from.

use std::path::Path;

use model::{Head, LoadOptions, Model, ScalarInit};

use crate::error::{Error, Result};

/// Loads a folder, whatever its head.
///
/// # Errors
/// A folder that cannot be used.
pub(crate) fn load(folder: &Path) -> Result<Model> {
    Ok(model::folder::load(folder, &LoadOptions::default())?)
}

/// Loads a folder that must be a policy: a language model's.
///
/// # Errors
/// A folder that cannot be used, or with another head.
pub(crate) fn load_policy(folder: &Path) -> Result<Model> {
    let loaded = load(folder)?;
    if loaded.config.head == Head::Causal {
        return Ok(loaded);
    }
    let found = loaded.config.architecture.class(loaded.config.head);
    Err(Error::Head { path: folder.to_owned(), found, role: "policy", wanted: "a *ForCausalLM" })
}

/// The model with its own scalar head, or with a new one where it has none.
pub(crate) fn with_scalar_head(loaded: &Model, init: ScalarInit) -> Model {
    let (config, weights) = loaded.weights.with_scalar_head(&loaded.config, init);
    Model { config, weights, path: loaded.path.clone() }
}
