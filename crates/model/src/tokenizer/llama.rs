//! Llama's tokenizer as transformers 5 makes it. From such a folder's `tokenizer.json` transformers takes
//! pieces and merges alone, and puts a space where `legacy` and `add_prefix_space` want it: before the first
//! piece of a text, or before what follows each special token too.

use serde_json::{Map, Value, json};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{NormalizerWrapper, Tokenizer};

use super::{Error, Files};

/// Classes of transformers that are made like this.
const CLASSES: [&str; 4] =
    ["LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast"];
/// What stands for a space in pieces.
const SPACE: char = '▁';

/// Makes it so, where the folder is one of these.
pub(super) fn arrange(tokenizer: &mut Tokenizer, files: Files<'_>) -> Result<(), Error> {
    let Some(config) = files.read_object("tokenizer_config.json")? else { return Ok(()) };
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    if CLASSES.contains(&class) && is_llama(files)? && has_spaces_by_normalizer(tokenizer) {
        tokenizer.with_normalizer(None::<NormalizerWrapper>).map_err(|error| Error::Invalid {
            path: files.path("tokenizer.json"),
            reason: error.to_string(),
        })?;
        tokenizer.with_pre_tokenizer(Some(Metaspace::new(SPACE, scheme(&config, class), false)));
    }
    Ok(())
}

/// Folders of other families that name the class are read as their `tokenizer.json` says.
fn is_llama(files: Files<'_>) -> Result<bool, Error> {
    let config = files.read_object("config.json")?.unwrap_or_default();
    Ok(matches!(config.get("model_type").and_then(Value::as_str), None | Some("llama")))
}

/// Whether it has the form that SentencePiece's models of this family were converted to. Others (DeepSeek's
/// bytes) name the class and are something else.
fn has_spaces_by_normalizer(tokenizer: &Tokenizer) -> bool {
    let converted = json!({ "type": "Sequence", "normalizers": [
        { "type": "Prepend", "prepend": SPACE },
        { "type": "Replace", "pattern": { "String": " " }, "content": SPACE },
    ] });
    let normalizer = tokenizer.get_normalizer().map(serde_json::to_value);
    tokenizer.get_pre_tokenizer().is_none() && matches!(normalizer, Some(Ok(found)) if found == converted)
}

fn scheme(config: &Map<String, Value>, class: &str) -> PrependScheme {
    let is_set = |key: &str| config.get(key).and_then(Value::as_bool);
    match (is_set("add_prefix_space"), is_set("legacy")) {
        (Some(false), _) => PrependScheme::Never,
        (_, Some(true)) if class.starts_with("Llama") => PrependScheme::Always,
        _ => PrependScheme::First,
    }
}
