//! A network of random weights, for training that starts from nothing.

use model::{Dimensions, Model, ModelConfig, Tokenizer, Weights};
use tch::{Device, Kind};

use super::config::InitConfig;
use crate::error::{Error, Result};

/// Makes the network that `[init]` describes, for the tokenizer that it names.
///
/// # Errors
/// A tokenizer that cannot be used, a shape that no network has, a vocabulary smaller than the tokenizer's.
pub(crate) fn new_model(init: &InitConfig, seed: u64) -> Result<Model> {
    let tokenizer = Tokenizer::load(&init.tokenizer)?;
    let Some(family) = init.family() else {
        return Err(unusable(model::config::Error::Architecture(init.architecture.clone())));
    };
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
    let mut config = ModelConfig::new(family, dimensions).map_err(unusable)?;
    if config.vocab_size < tokens {
        let problem = format!("init.vocab_size is {}, the tokenizer has {tokens} tokens", config.vocab_size);
        return Err(Error::Config { problems: vec![problem] });
    }
    config.tie_word_embeddings = init.tie_word_embeddings;
    config.initializer_range = init.initializer_range;
    config.bos_token_id = tokenizer.bos_id();
    config.eos_token_ids = tokenizer.eos_ids().to_vec();
    config.pad_token_id = tokenizer.pad_id();
    config.validate().map_err(unusable)?;
    let weights = Weights::random(&config, seed, Kind::Float, Device::Cpu);
    Ok(Model { config, weights, path: init.tokenizer.clone() })
}

fn unusable(source: model::config::Error) -> Error {
    Error::ModelConfig { path: "init".into(), source }
}
