//! A model folder, read for an engine.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use model::{LoadOptions, ModelConfig, Tokenizer};
use types::PolicyVersion;

use crate::backend::PolicyWeights;
use crate::config::EngineConfig;
use crate::prompts::PromptEncoder;

/// What an engine and its callers need of a model folder.
#[derive(Debug)]
pub struct Folder {
    /// Its `config.json`.
    pub model: ModelConfig,
    /// As version 0.
    pub weights: PolicyWeights,
    /// With its encoder; `None` when the folder has no `tokenizer.json`.
    pub text: Option<(Arc<Tokenizer>, PromptEncoder)>,
}

impl Folder {
    /// Reads a folder.
    ///
    /// # Errors
    /// When a file of it is missing, broken, or does not fit the others.
    pub fn load(path: &Path, config: &EngineConfig) -> anyhow::Result<Self> {
        let (kind, _) = config.place();
        let options = LoadOptions { kind: Some(kind), ..LoadOptions::default() };
        let opened = model::folder::open(path, &options).context("load the model")?;
        let weights = PolicyWeights::prepare(&opened.config, &opened, PolicyVersion(0), config);
        let weights = weights.context("load the model")?;
        let text = match path.join("tokenizer.json").exists() {
            true => {
                let tokenizer = Arc::new(Tokenizer::load(path).context("load the tokenizer")?);
                if let Some(problem) = tokenizer.ending_problem() {
                    tracing::warn!(model = %path.display(), "{problem}");
                }
                Some((Arc::clone(&tokenizer), PromptEncoder::load(path, tokenizer)?))
            }
            false => None,
        };
        Ok(Self { model: opened.config, weights, text })
    }
}
