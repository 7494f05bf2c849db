//! What an actor learns about the policy's model: its network and how prompts become tokens. It comes from
//! the learner with the first weights, and is read where it came: in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::PromptEncoder;
use model::tokenizer::Files;
use model::{ChatTemplate, ModelConfig, Tokenizer};
use types::{ModelFile, Vocabulary};

/// A model without its weights.
#[derive(Debug)]
pub(crate) struct PolicyModel {
    pub(crate) config: ModelConfig,
    pub(crate) encoder: PromptEncoder,
    /// That of the tokenizer.
    pub(crate) vocabulary: Vocabulary,
}

/// Files that describe no model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The network's configuration was not sent.
    #[error("the learner sent no config.json")]
    NoConfig,
    /// The network's configuration.
    #[error("config.json of the policy: {0}")]
    Config(#[from] model::config::Error),
    /// The tokenizer.
    #[error("the policy's tokenizer: {0}")]
    Tokenizer(#[from] model::tokenizer::Error),
    /// The chat template.
    #[error("the policy's chat template: {0}")]
    Template(#[from] model::chat::Error),
}

impl PolicyModel {
    /// Reads the files of a model. This takes a good part of a second for a large vocabulary.
    ///
    /// # Errors
    /// Names the file that is missing or unusable.
    pub(crate) fn read(files: Vec<ModelFile>) -> Result<Self, Error> {
        let files: BTreeMap<String, Vec<u8>> = files.into_iter().map(ModelFile::into_parts).collect();
        let config = ModelConfig::parse(files.get("config.json").ok_or(Error::NoConfig)?)?;
        let tokenizer = Tokenizer::read(Files::Memory(&files))?;
        if let Some(problem) = tokenizer.ending_problem() {
            tracing::warn!("{problem}");
        }
        let template = ChatTemplate::read(Files::Memory(&files), tokenizer.special().clone())?;
        let vocabulary = Vocabulary::of(tokenizer.tokens());
        Ok(Self { config, encoder: PromptEncoder::new(Arc::new(tokenizer), template), vocabulary })
    }
}
