//! Trains a byte-level BPE tokenizer on the texts of JSON Lines files.

use anyhow::Context as _;
use model::SpecialTokens;
use model::tokenizer::train_bpe;
use serde_json::{Map, Value};
use service::{BadInput, jsonl};

use crate::recipe::TokenizerStage;
use crate::say::say;

/// Trains it and writes its folder.
///
/// # Errors
/// Names the file and line that cannot be read.
pub(crate) fn run(stage: &TokenizerStage) -> anyhow::Result<()> {
    let mut texts: Vec<String> = Vec::new();
    for path in &stage.data {
        for line in jsonl::read(path)? {
            let mut row: Map<String, Value> = line?.parse()?;
            for field in &stage.fields {
                if let Some(Value::String(text)) = row.remove(field) {
                    texts.push(text);
                }
            }
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
    say(&format!("  {} tokens from {} texts", tokenizer.vocab_size(), texts.len()));
    Ok(())
}
