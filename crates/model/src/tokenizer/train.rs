//! Trains a byte-level BPE tokenizer (Sennrich et al., arXiv 1508.07909; bytes as in GPT-2) and writes it as
//! a folder that transformers' `AutoTokenizer` loads.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::{Error, Tokenizer, io_error};

/// Tokens that no text produces by itself. Ids follow the order: beginning, end, padding, additional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of a sequence.
    pub bos: Option<String>,
    /// End of a response.
    pub eos: Option<String>,
    /// Padding, for other programs.
    pub pad: Option<String>,
    /// Others, such as the markers of a chat template.
    pub additional: Vec<String>,
}

impl SpecialTokens {
    fn by_role(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let roles = [("bos_token", &self.bos), ("eos_token", &self.eos), ("pad_token", &self.pad)];
        roles.into_iter().filter_map(|(role, token)| Some((role, token.as_ref()?)))
    }
}

/// Trains a tokenizer of at most `vocab_size` tokens, special tokens and the 256 bytes included, on `texts`.
/// The same texts give the same tokenizer. It adds no special token around a text.
///
/// # Errors
/// When the vocabulary has no room for the special tokens and the bytes, or the library refuses.
pub fn train_bpe<T: AsRef<str> + Send>(
    texts: impl Iterator<Item = T> + Send,
    vocab_size: usize,
    special: &SpecialTokens,
) -> Result<Tokenizer, Error> {
    let mut tokens: Vec<&String> = Vec::new();
    for token in special.by_role().map(|(_, token)| token).chain(&special.additional) {
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    let least = 256 + tokens.len();
    if vocab_size < least {
        let reason = format!(
            "a vocabulary of {vocab_size} has no room for {} special tokens and 256 bytes",
            tokens.len()
        );
        return Err(Error::Train(reason));
    }
    let added = tokens.into_iter().map(|token| AddedToken::from(token.clone(), true)).collect();
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(added)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut inner = tokenizers::Tokenizer::new(ModelWrapper::BPE(BPE::default()));
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    let trained = inner.train(&mut TrainerWrapper::BpeTrainer(trainer), texts);
    trained.map_err(|error| Error::Train(error.to_string()))?;
    let special = special.by_role().map(|(role, token)| (role.to_owned(), token.clone())).collect();
    Ok(Tokenizer::of(inner, special, None))
}

impl Tokenizer {
    /// Writes `tokenizer.json` and `tokenizer_config.json` into `dir`, which must exist; `chat_template`, if
    /// given, goes into the latter.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn save(&self, dir: &Path, chat_template: Option<&str>) -> Result<(), Error> {
        let path = dir.join("tokenizer.json");
        let text = self.inner.to_string(true);
        let text = text.map_err(|error| Error::Invalid { path: path.clone(), reason: error.to_string() })?;
        fs::write(&path, text).map_err(io_error("write", &path))?;
        let mut config = Map::new();
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        config.extend(self.special.iter().map(|(role, token)| (role.clone(), json!(token))));
        config.extend(chat_template.map(|template| ("chat_template".to_owned(), json!(template))));
        let path = dir.join("tokenizer_config.json");
        fs::write(&path, format!("{:#}\n", Value::Object(config))).map_err(io_error("write", &path))
    }
}
