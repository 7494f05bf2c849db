//! Where a network and its tokenizer come from: a folder, or nothing.

use std::path::{Path, PathBuf};

use model::{ChatTemplate, Dimensions, Head, LoadOptions, ModelConfig, Tokenizer, Weights};
use tch::{Device, Kind};

use super::config::InitConfig;
use crate::error::{Error, Result};

/// A network to train.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) config: ModelConfig,
    pub(crate) weights: Weights,
    /// Whose tokenizer files go with it.
    pub(crate) companions: PathBuf,
}

impl Source {
    /// Loads a folder.
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let loaded = model::folder::load(folder, &LoadOptions::default())?;
        Ok(Self { config: loaded.config, weights: loaded.weights, companions: folder.to_owned() })
    }

    /// Loads a folder that must be a policy.
    pub(crate) fn policy(folder: &Path) -> Result<Self> {
        let source = Self::load(folder)?;
        if source.config.head == Head::Causal {
            return Ok(source);
        }
        let found = source.config.architecture.class(source.config.head);
        Err(Error::Head { path: folder.to_owned(), found, role: "policy", wanted: "a *ForCausalLM" })
    }

    /// A new network of random weights.
    pub(crate) fn new(init: &InitConfig, seed: u64) -> Result<Self> {
        let wrong = |source| Error::ModelConfig { path: "init".into(), source };
        let tokenizer = Tokenizer::load(&init.tokenizer)?;
        let family = init
            .family()
            .ok_or_else(|| wrong(model::config::Error::Architecture(init.architecture.clone())))?;
        let tokens = i64::try_from(tokenizer.vocab_size()).unwrap_or(i64::MAX);
        let dimensions = Dimensions {
            vocab_size: init.vocab_size.unwrap_or(tokens),
            hidden_size: init.hidden_size,
            intermediate_size: init.intermediate_size,
            layers: init.layers,
            heads: init.heads,
            kv_heads: init.kv_heads,
            max_positions: init.max_positions,
        };
        let mut config = ModelConfig::new(family, dimensions).map_err(wrong)?;
        if config.vocab_size < tokens {
            let problem =
                format!("init.vocab_size is {}, the tokenizer has {tokens} tokens", config.vocab_size);
            return Err(Error::Config { problems: vec![problem] });
        }
        config.tie_word_embeddings = init.tie_word_embeddings;
        config.initializer_range = init.initializer_range;
        config.bos_token_id = tokenizer.bos_id();
        config.eos_token_ids = tokenizer.eos_ids().to_vec();
        config.pad_token_id = tokenizer.pad_id();
        config.validate().map_err(wrong)?;
        let weights = Weights::random(&config, seed, Kind::Float, Device::Cpu);
        Ok(Self { config, weights, companions: init.tokenizer.clone() })
    }
}

/// A tokenizer and what it needs for chats.
#[derive(Debug)]
pub(crate) struct TextEncoder {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    /// Appended to responses given as text.
    pub(crate) eos: Option<u32>,
}

impl TextEncoder {
    /// Of a folder; `None` where it has no tokenizer, which data of tokens does not need.
    pub(crate) fn load(folder: &Path, append_eos: bool) -> Result<Option<Self>> {
        // A folder that is not there is to be named, not taken for one of a model without a tokenizer.
        std::fs::read_dir(folder).map_err(Error::io("open folder", folder))?;
        if !folder.join("tokenizer.json").is_file() {
            return Ok(None);
        }
        let tokenizer = Tokenizer::load(folder)?;
        let template = ChatTemplate::load(folder, tokenizer.special().clone())?;
        let eos = append_eos.then(|| tokenizer.eos_ids().first().copied()).flatten();
        if append_eos && eos.is_none() {
            let problem = format!(
                "training.append_eos is true, but {} names no end-of-sequence token",
                folder.display()
            );
            return Err(Error::Config { problems: vec![problem] });
        }
        Ok(Some(Self { tokenizer, template, eos }))
    }
}
