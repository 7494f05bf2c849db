//! Keys of scorers that have no default, so that all that lack can be named at once.

use serde_json::{Map, Value};

/// Keys that a kind of scorer has no defaults for.
pub(super) const REQUIRED_KEYS: [(&str, &[&str]); 5] = [
    ("reward-model", &["model"]),
    ("regex", &["pattern"]),
    ("length-penalty", &["free_tokens", "max_tokens"]),
    ("python", &["file"]),
    ("http", &["url"]),
];

/// Which of them a scorer lacks: all of them at once.
pub(super) fn missing_keys(table: &Map<String, Value>) -> Option<String> {
    let kind = table.get("kind")?.as_str()?;
    let (_, required) = REQUIRED_KEYS.iter().find(|(known, _)| *known == kind)?;
    let missing: Vec<&str> = required.iter().copied().filter(|key| !table.contains_key(*key)).collect();
    let (are, them) = if missing.len() == 1 { ("is", "it") } else { ("are", "them") };
    (!missing.is_empty())
        .then(|| format!("{} {are} missing: a scorer of kind {kind:?} needs {them}", missing.join(" and ")))
}
