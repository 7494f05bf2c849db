//! Whether the reward servers read the policy's tokens as the policy does. A server knows its own folders
//! only; here both are known.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::Recipe;

/// Tokens by id.
type Vocabulary = BTreeMap<u64, String>;

/// What is wrong with reward servers whose tokenizer gives a token of the policy another text: both folders
/// and the first token that differs. None where a folder is not there yet.
pub(crate) fn problem(recipe: &Recipe) -> Option<String> {
    let policy = &recipe.learner.policy;
    let folder = recipe.reward_server.tokenizer_dir()?;
    let (ours, theirs) = (vocabulary(policy)?, vocabulary(folder)?);
    let mut shared = ours.iter().filter_map(|(id, token)| Some((id, token, theirs.get(id)?)));
    let (id, token, other) = shared.find(|(_, token, other)| token != other)?;
    Some(format!(
        "reward_server.tokenizer: the reward servers' {} has another vocabulary than the policy {}: token {id} is {other:?} there \
         and {token:?} here; they would score other texts than the policy's: name the policy's folder",
        folder.display(),
        policy.display()
    ))
}

/// That of a model folder; none where it has no tokenizer that can be read, which its role will say.
fn vocabulary(folder: &Path) -> Option<Vocabulary> {
    let text = std::fs::read(folder.join("tokenizer.json")).ok()?;
    let file: Value = serde_json::from_slice(&text).ok()?;
    let mut tokens = Vocabulary::new();
    match &file["model"]["vocab"] {
        Value::Object(ids) => {
            tokens.extend(ids.iter().filter_map(|(token, id)| Some((id.as_u64()?, token.clone()))));
        }
        Value::Array(pieces) => {
            let numbered = pieces.iter().zip(0..);
            tokens.extend(numbered.filter_map(|(piece, id)| Some((id, piece.get(0)?.as_str()?.to_owned()))));
        }
        _ => {}
    }
    for added in file["added_tokens"].as_array().into_iter().flatten() {
        if let (Some(id), Some(content)) = (added["id"].as_u64(), added["content"].as_str()) {
            tokens.insert(id, content.to_owned());
        }
    }
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder(vocab: Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let text = json!({"model": {"vocab": vocab}, "added_tokens": [{"id": 2, "content": "<end>"}]});
        std::fs::write(folder.path().join("tokenizer.json"), text.to_string()).unwrap();
        folder
    }

    #[test]
    fn another_tokenizer_than_the_policys_is_named() {
        let policy = folder(json!({"a": 0, "b": 1}));
        let mut recipe = Recipe::default();
        recipe.learner.policy = policy.path().to_owned();
        assert!(problem(&recipe).is_none(), "no tokenizer is configured");
        let (same, other) = (folder(json!([["a", -1.0], ["b", -2.0]])), folder(json!({"a": 0, "c": 1})));
        recipe.reward_server.tokenizer = Some(same.path().to_owned());
        assert!(problem(&recipe).is_none(), "the same in another form");
        recipe.reward_server.tokenizer = Some(other.path().to_owned());
        let error = problem(&recipe).unwrap();
        assert!(error.contains("token 1 is \"c\" there and \"b\" here"), "{error}");
        recipe.reward_server.tokenizer = Some("nowhere".into());
        assert!(problem(&recipe).is_none(), "the server says that");
    }
}
