//! A configuration as a flat list, to compare it with another one.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::origin::join;

/// Every value of a configuration by its dotted key, such as `learner.ppo.policy_lr` or `scorers[1].weight`,
/// as text; those that are not given are `null`. All keys begin with `name`, if it is not empty. What has no
/// form in JSON is left out.
pub fn fields_of(name: &str, config: &impl Serialize) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    if let Ok(value) = serde_json::to_value(config) {
        flatten(name.to_owned(), value, &mut fields);
    }
    fields
}

fn flatten(name: String, value: Value, fields: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(parts) => match serde_json::from_value::<Duration>(Value::Object(parts.clone())) {
            Ok(duration) => drop(fields.insert(name, format!("{duration:?}"))),
            Err(_) => {
                for (part, value) in parts {
                    flatten(join(&name, &part), value, fields);
                }
            }
        },
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (place, value) in items.into_iter().enumerate() {
                flatten(format!("{name}[{place}]"), value, fields);
            }
        }
        Value::String(text) => drop(fields.insert(name, text)),
        other => drop(fields.insert(name, other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_value_has_a_key_of_its_own() {
        let config = json!({
            "scorers": [{"kind": "regex", "weight": 1.0}, {"kind": "format", "weight": null}],
            "ppo": {"betas": [0.9, 0.95], "timeout": {"secs": 2, "nanos": 500_000_000}},
        });
        let found: Vec<String> =
            fields_of("all", &config).into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        let expected = [
            "all.ppo.betas=[0.9,0.95]",
            "all.ppo.timeout=2.5s",
            "all.scorers[0].kind=regex",
            "all.scorers[0].weight=1.0",
            "all.scorers[1].kind=format",
            "all.scorers[1].weight=null",
        ];
        assert_eq!(found, expected);
        assert_eq!(fields_of("", &json!({"a": 1}))["a"], "1");
    }
}
