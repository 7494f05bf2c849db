//! Trains a byte-level BPE tokenizer on the texts of JSON Lines files.

use std::path::PathBuf;

use anyhow::Context as _;
use model::SpecialTokens;
use model::tokenizer::train_bpe;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use service::{BadInput, jsonl};

/// What to train it on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TokenizerStage {
    /// JSON Lines files.
    pub(crate) data: Vec<PathBuf>,
    /// Fields of a line that hold text.
    pub(crate) fields: Vec<String>,
    /// Most tokens, special ones and the 256 bytes included.
    pub(crate) vocab_size: usize,
    /// The end of a response.
    pub(crate) eos: String,
    /// The beginning of a prompt, if there is to be one.
    pub(crate) bos: Option<String>,
    /// A chat template, if there is to be one.
    pub(crate) chat_template: Option<PathBuf>,
    /// The tokenizer's folder.
    pub(crate) output: PathBuf,
}

impl Default for TokenizerStage {
    fn default() -> Self {
        Self {
            data: Vec::new(),
            fields: vec!["prompt".to_owned(), "response".to_owned()],
            vocab_size: 4096,
            eos: "<|end|>".to_owned(),
            bos: None,
            chat_template: None,
            output: PathBuf::new(),
        }
    }
}

/// Trains it and writes its folder.
///
/// # Errors
/// Names the file and line that cannot be read.
pub(crate) fn run(stage: &TokenizerStage) -> anyhow::Result<()> {
    let mut texts: Vec<String> = Vec::new();
    for path in &stage.data {
        for line in jsonl::read(path)? {
            let mut row: Map<String, Value> = line?.parse()?;
            let text = |field| match row.remove(field) {
                Some(Value::String(text)) => Some(text),
                _ => None,
            };
            texts.extend(stage.fields.iter().filter_map(text));
        }
    }
    if texts.is_empty() {
        let problem =
            format!("data has no text in the fields {}: a tokenizer needs some", stage.fields.join(", "));
        return Err(BadInput(problem).into());
    }
    let special =
        SpecialTokens { bos: stage.bos.clone(), eos: Some(stage.eos.clone()), ..SpecialTokens::default() };
    let tokenizer = train_bpe(texts.iter(), stage.vocab_size, &special)?;
    let template = stage.chat_template.as_ref().map(|path| {
        std::fs::read_to_string(path).with_context(|| format!("read the chat template {}", path.display()))
    });
    std::fs::create_dir_all(&stage.output).with_context(|| format!("create {}", stage.output.display()))?;
    tokenizer.save(&stage.output, template.transpose()?.as_deref())?;
    eprintln!("  {} tokens from {} texts", tokenizer.vocab_size(), texts.len());
    Ok(())
}
