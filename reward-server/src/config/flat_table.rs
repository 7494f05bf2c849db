//! Two parts of a configuration whose keys stand side by side in one table.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The part whose keys these are, and the part that has all others.
///
/// # Errors
/// When either does not take its keys.
pub(super) fn split<A: DeserializeOwned, B: DeserializeOwned>(
    table: Map<String, Value>,
    keys: &[&str],
) -> Result<(A, B), serde_json::Error> {
    let (first, second) = table.into_iter().partition(|(key, _)| keys.contains(&key.as_str()));
    Ok((serde_json::from_value(Value::Object(first))?, serde_json::from_value(Value::Object(second))?))
}

/// Both parts as one table.
pub(super) fn join(first: impl Serialize, second: impl Serialize) -> Map<String, Value> {
    let parts = [serde_json::to_value(first), serde_json::to_value(second)];
    let tables = parts.into_iter().filter_map(|part| match part {
        Ok(Value::Object(table)) => Some(table),
        _ => None,
    });
    // TOML has no null: what is not given is not written.
    tables.flatten().filter(|(_, value)| !value.is_null()).collect()
}
