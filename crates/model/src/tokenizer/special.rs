//! Tokens that the files beside `tokenizer.json` declare. A folder may name tokens there only, with an
//! embedding in its weights, and transformers adds them when it loads the folder.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::{Error, Files};

/// Roles whose tokens are special wherever they are named.
const SPECIAL_ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Lists of special tokens without a role, by their older and newer name.
const SPECIAL_LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// What `special_tokens_map.json` and `tokenizer_config.json` say.
#[derive(Debug, Default)]
pub(super) struct Declared {
    /// Tokens by role; a token is a string, or an object whose `content` is it.
    pub(super) roles: BTreeMap<String, String>,
    /// Tokens to add to the vocabulary where they are not in it, in the order in which they get their ids.
    pub(super) added: Vec<AddedToken>,
}

impl Declared {
    pub(super) fn read(files: Files<'_>) -> Result<Self, Error> {
        let mut declared = Self::default();
        let mut lists = Vec::new();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let Some(object) = files.read_object(name)? else { continue };
            declared.added.extend(numbered(&object));
            for list in SPECIAL_LISTS {
                lists.extend(listed(object.get(list)));
            }
            for (role, token) in object {
                if let (true, Some(text)) = (role.ends_with("_token"), text_of(&token)) {
                    declared.roles.insert(role, text.to_owned());
                }
            }
        }
        let by_role = SPECIAL_ROLES.iter().filter_map(|role| declared.roles.get(*role).cloned());
        declared.added.extend(by_role.chain(lists).map(|text| AddedToken::from(text, true)));
        Ok(declared)
    }

    /// Adds the declared tokens that the tokenizer does not have.
    pub(super) fn complete(&self, tokenizer: &mut tokenizers::Tokenizer) -> Result<(), String> {
        for token in &self.added {
            if tokenizer.get_added_vocabulary().get_vocab().contains_key(&token.content) {
                continue;
            }
            let one = [token.clone()];
            let added =
                if token.special { tokenizer.add_special_tokens(one) } else { tokenizer.add_tokens(one) };
            added.map_err(|error| format!("the token {:?} cannot be added: {error}", token.content))?;
        }
        Ok(())
    }
}

fn text_of(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The entries of `added_tokens_decoder` (token by id), by id.
fn numbered(object: &Map<String, Value>) -> Vec<AddedToken> {
    let entries = object.get("added_tokens_decoder").and_then(Value::as_object);
    let by_id: BTreeMap<u32, AddedToken> = entries
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token)?)))
        .collect();
    by_id.into_values().collect()
}

fn added_token(token: &Value) -> Option<AddedToken> {
    let content = text_of(token)?.to_owned();
    let [special, single_word, lstrip, rstrip] = ["special", "single_word", "lstrip", "rstrip"]
        .map(|name| token.get(name).and_then(Value::as_bool).unwrap_or(false));
    let normalized = token.get("normalized").and_then(Value::as_bool).unwrap_or(!special);
    let plain = AddedToken::from(content, special).single_word(single_word);
    Some(plain.lstrip(lstrip).rstrip(rstrip).normalized(normalized))
}

/// The tokens of a list, or of an object that names them.
fn listed(value: Option<&Value>) -> Vec<String> {
    let tokens: Vec<&Value> = match value {
        Some(Value::Array(tokens)) => tokens.iter().collect(),
        Some(Value::Object(named)) => named.values().collect(),
        _ => Vec::new(),
    };
    tokens.into_iter().filter_map(text_of).map(str::to_owned).collect()
}
