//! Text to tokens and back, as transformers' fast tokenizers do: both are the `tokenizers` library reading
//! the same `tokenizer.json`.
//!
//! Unlike transformers, decoding never "cleans up" spaces before punctuation, even where an old
//! `tokenizer_config.json` asks for it: it would change programs.

mod bytes;
mod files;
mod incremental;
mod llama;
mod response;
mod special;
mod train;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use bytes::ByteSpelling;
use special::Declared;

pub use files::Files;
pub use incremental::IncrementalDecoder;
pub use train::{SpecialTokens, train_bpe};

/// Why a tokenizer cannot be read, used or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file that it is about.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("{path}: {reason}")]
    Invalid {
        /// The file that it is about.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The text could not be encoded.
    #[error("encode text of {bytes} bytes: {reason}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// The library's message.
        reason: String,
    },
    /// The tokens could not be decoded.
    #[error("decode {tokens} tokens: {reason}")]
    Decode {
        /// Number of tokens.
        tokens: usize,
        /// The library's message.
        reason: String,
    },
    /// No tokenizer could be trained.
    #[error("train a tokenizer: {0}")]
    Train(String),
}

/// A tokenizer with the special tokens of its folder.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: BTreeMap<String, String>,
    bos_id: Option<u32>,
    eos_ids: Vec<u32>,
    /// The tokenizer's own, which a model's configuration may overrule.
    eos_id: Option<u32>,
    pad_id: Option<u32>,
    /// The texts of the tokens that `skip_special` leaves out.
    special_texts: BTreeMap<u32, String>,
    byte_spelling: ByteSpelling,
}

impl Tokenizer {
    /// Loads the tokenizer of a model folder: `tokenizer.json`, and where present `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json` and `config.json` for the special tokens.
    ///
    /// # Errors
    /// When a file cannot be read or is not what its name says.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        Self::read(Files::Folder(dir))
    }

    /// The same from files in memory, or in a folder.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn read(files: Files<'_>) -> Result<Self, Error> {
        let name = "tokenizer.json";
        let mut inner = tokenizers::Tokenizer::from_bytes(files.read(name)?)
            .map_err(|error| Error::Invalid { path: files.path(name), reason: error.to_string() })?;
        // What a training script left in the file; a caller who wants to cut or pad does it knowingly.
        drop(inner.with_truncation(None));
        inner.with_padding(None);
        llama::arrange(&mut inner, files)?;
        let declared = Declared::read(files)?;
        declared
            .complete(&mut inner)
            .map_err(|reason| Error::Invalid { path: files.path("tokenizer_config.json"), reason })?;
        Ok(Self::of(inner, declared.roles, eos_ids(files)?))
    }

    /// A tokenizer with its special tokens by role, and the ends of responses that its model's configuration
    /// names, if it names any.
    fn of(
        inner: tokenizers::Tokenizer,
        special: BTreeMap<String, String>,
        eos_ids: Option<Vec<u32>>,
    ) -> Self {
        let [bos_id, pad_id, eos_id] = ["bos_token", "pad_token", "eos_token"]
            .map(|role| special.get(role).and_then(|token| inner.token_to_id(token)));
        let eos_ids = eos_ids.unwrap_or_else(|| eos_id.into_iter().collect());
        let added = inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special);
        let special_texts = added.map(|(id, token)| (id, token.content)).collect();
        let byte_spelling = ByteSpelling::of(&inner);
        Self { inner, special, bos_id, eos_ids, eos_id, pad_id, special_texts, byte_spelling }
    }

    /// Encodes text. Special tokens written out in the text become their ids; with `add_special` the
    /// tokenizer adds those it puts around a text (often a beginning-of-sequence token), which a rendered
    /// chat template already has.
    ///
    /// # Errors
    /// When the library refuses the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Error> {
        let encoded = self.inner.encode_fast(text, add_special);
        let encoding =
            encoded.map_err(|error| Error::Encode { bytes: text.len(), reason: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Decodes tokens; ids outside the vocabulary give nothing. Bytes that are no UTF-8 give U+FFFD.
    ///
    /// # Errors
    /// When the library refuses the tokens.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String, Error> {
        let decoded = self.inner.decode(tokens, skip_special);
        decoded.map_err(|error| Error::Decode { tokens: tokens.len(), reason: error.to_string() })
    }

    /// Tokens it can produce, those added to the model's vocabulary included. A network's embedding is often
    /// larger.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, in the vocabulary's own spelling.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Every id that has a token, with it, in the order of the ids.
    pub fn tokens(&self) -> Vec<(u32, String)> {
        let ids: BTreeSet<u32> = self.inner.get_vocab(true).into_values().collect();
        ids.into_iter().filter_map(|id| Some((id, self.token(id)?))).collect()
    }

    /// The token that begins a sequence, where the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The tokens that end a response: those of `generation_config.json`, else of `config.json`, else the
    /// tokenizer's own.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// What is strange about the tokens that end a response, for whoever generates with them: there are none,
    /// or the tokenizer's own is not among them.
    pub fn ending_problem(&self) -> Option<String> {
        if self.eos_ids.is_empty() {
            return Some(
                "no token ends a response: eos_token_id of generation_config.json or config.json is an \
                 empty list, and responses go on to their longest length"
                    .to_owned(),
            );
        }
        let own = self.eos_id.filter(|own| !self.eos_ids.contains(own))?;
        let token = self.token(own).unwrap_or_default();
        Some(format!(
            "the tokenizer ends a text with {token:?} (token {own}), but generation_config.json or config.json \
             ends responses with tokens {:?} only: add {own} to eos_token_id, or to stop_token_ids, if a \
             response shall end there too",
            self.eos_ids
        ))
    }

    /// The text of a token that `skip_special` leaves out; `None` for all others.
    pub fn special_text(&self, id: u32) -> Option<&str> {
        self.special_texts.get(&id).map(String::as_str)
    }

    /// The texts of all special tokens.
    pub fn special_texts(&self) -> impl Iterator<Item = &str> {
        self.special_texts.values().map(String::as_str)
    }

    /// Whether the text of a special token occurs in `text`.
    pub fn has_special(&self, text: &str) -> bool {
        self.special_texts().any(|special| text.contains(special))
    }

    /// The token that other programs fill batches up with; nothing here does.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad_id
    }

    /// Special tokens by role (`bos_token`, `eos_token`, `pad_token`, `unk_token`, ...), as chat templates
    /// see them.
    pub fn special(&self) -> &BTreeMap<String, String> {
        &self.special
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

fn eos_ids(files: Files<'_>) -> Result<Option<Vec<u32>>, Error> {
    for name in ["generation_config.json", "config.json"] {
        let Some(object) = files.read_object(name)? else { continue };
        let ids = match object.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) => ids.iter().map(token_id).collect(),
            Some(id) => token_id(id).map(|id| vec![id]),
        };
        if ids.is_none() {
            let reason = "eos_token_id is not a token id or a list of them".to_owned();
            return Err(Error::Invalid { path: files.path(name), reason });
        }
        return Ok(ids);
    }
    Ok(None)
}

fn token_id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}
