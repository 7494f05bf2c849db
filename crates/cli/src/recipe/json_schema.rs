//! The JSON schema of recipes, for editors.

use serde_json::{Map, Value, json};
use service::config::Schema;

use super::Recipe;

/// The schema, which knows that `seed = "{seed}"` is a number.
pub(crate) fn json_schema() -> Value {
    let mut schema = Schema::of::<Recipe>().json().clone();
    let definitions = schema.get_mut("$defs").and_then(Value::as_object_mut);
    definitions.into_iter().flat_map(Map::values_mut).for_each(allow_our_seed);
    schema
}

/// In the forms of one definition.
fn allow_our_seed(node: &mut Value) {
    for forms in ["anyOf", "oneOf"] {
        let forms = node.get_mut(forms).and_then(Value::as_array_mut);
        forms.into_iter().flatten().for_each(allow_our_seed);
    }
    let Some(seed) = node.get_mut("properties").and_then(|keys| keys.get_mut("seed")) else { return };
    let Some(Value::Object(number)) = Some(seed.take()) else { return };
    let mut either = Map::new();
    for (key, value) in &number {
        if ["description", "default"].contains(&key.as_str()) {
            either.insert(key.clone(), value.clone());
        }
    }
    let of_number: Map<String, Value> =
        number.into_iter().filter(|(key, _)| !either.contains_key(key)).collect();
    either.insert("anyOf".to_owned(), json!([of_number, {"const": "{seed}"}]));
    *seed = Value::Object(either);
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// Where a value is not what a schema says, by the keywords that ours has.
    fn mismatch(root: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
        if let Some(name) = schema["$ref"].as_str() {
            let target = &root["$defs"][name.strip_prefix("#/$defs/").unwrap()];
            return mismatch(root, target, value, at);
        }
        let fits = |form: &Value| mismatch(root, form, value, at).is_none();
        let nothing_fits = |forms: &str| {
            let forms = schema[forms].as_array()?;
            let errors = || forms.iter().filter_map(|form| mismatch(root, form, value, at));
            (!forms.iter().any(fits)).then(|| errors().collect::<Vec<_>>().join(" | "))
        };
        if let Some(errors) = nothing_fits("anyOf").or_else(|| nothing_fits("oneOf")) {
            return Some(errors);
        }
        if schema.get("const").is_some_and(|constant| constant != value) {
            return Some(format!("{at}: not {}", schema["const"]));
        }
        if schema["enum"].as_array().is_some_and(|choices| !choices.contains(value)) {
            return Some(format!("{at}: {value} is not one of {}", schema["enum"]));
        }
        let types: Vec<&str> = match &schema["type"] {
            Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        };
        let is_one = |name: &&str| match (*name, value) {
            ("object", Value::Object(_))
            | ("array", Value::Array(_))
            | ("string", Value::String(_))
            | ("boolean", Value::Bool(_))
            | ("null", Value::Null)
            | ("number", Value::Number(_)) => true,
            ("integer", Value::Number(number)) => number.is_i64() || number.is_u64(),
            _ => false,
        };
        if !types.is_empty() && !types.iter().any(is_one) {
            return Some(format!("{at}: {value} is no {types:?}"));
        }
        let bounds = (schema["minimum"].as_f64(), schema["maximum"].as_f64(), value.as_f64());
        if let (low, high, Some(number)) = bounds
            && (low.is_some_and(|low| number < low) || high.is_some_and(|high| number > high))
        {
            return Some(format!("{at}: {number} is out of bounds"));
        }
        let inner = match value {
            Value::Array(items) => items
                .iter()
                .enumerate()
                .find_map(|(index, item)| mismatch(root, &schema["items"], item, &format!("{at}[{index}]"))),
            Value::Object(table) => table.iter().find_map(|(key, value)| {
                let at = format!("{at}.{key}");
                match (schema["properties"].get(key), &schema["additionalProperties"]) {
                    (Some(known), _) => mismatch(root, known, value, &at),
                    (None, Value::Bool(false)) => Some(format!("{at}: unknown")),
                    (None, other) => mismatch(root, other, value, &at),
                }
            }),
            _ => None,
        };
        let missing = || {
            let required = schema["required"].as_array()?;
            let absent = required.iter().filter_map(Value::as_str).find(|key| value.get(key).is_none())?;
            Some(format!("{at}.{absent}: missing"))
        };
        inner.or_else(|| value.as_object().and_then(|_| missing()))
    }

    fn of_text(text: &str) -> Option<String> {
        let recipe: toml::Table = text.parse().unwrap();
        let schema = json_schema();
        mismatch(&schema, &schema, &serde_json::to_value(recipe).unwrap(), "")
    }

    #[test]
    fn an_editor_accepts_every_recipe_that_we_ship_or_write() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let examples = here.join("../../examples");
        let mut files: Vec<PathBuf> = ["own-model", "grpo", "tiny-coder"]
            .iter()
            .map(|name| examples.join(name).join("recipe.toml"))
            .chain(["online", "offline"].map(|name| examples.join(format!("pf-ppo-study/{name}.toml"))))
            .collect();
        let shapes = std::fs::read_dir(here.join("src/commands/init")).unwrap();
        files.extend(shapes.map(|entry| entry.unwrap().path()));
        assert!(files.len() >= 9, "{files:?}");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            assert_eq!(of_text(&text), None, "{}", file.display());
        }
    }

    #[test]
    fn an_editor_underlines_what_would_be_refused() {
        for (text, place) in [
            ("[coordinator]\nbatchs = 3\n", ".coordinator.batchs: unknown"),
            ("[coordinator]\nbatches = 'many'\n", ".coordinator.batches: \"many\" is no [\"integer\"]"),
            ("seed = -1\n", ".seed: -1 is out of bounds"),
            (
                "[[stages]]\nname = 's'\n[stages.sft.training]\nseed = '{sed}'\n",
                ".stages[0].sft.training.seed",
            ),
            ("[[reward_server.scorers]]\nkind = 'regexp'\n", ".reward_server.scorers[0]"),
            ("[learner.ppo]\nalgorithm = 'gpro'\n", ".learner.ppo.algorithm"),
        ] {
            let found = of_text(text).unwrap_or_else(|| panic!("accepted: {text}"));
            assert!(found.contains(place), "{place}: {found}");
        }
        let ours = "[[stages]]\nname = 's'\n[stages.sft.training]\nseed = '{seed}'\n";
        assert_eq!(of_text(ours), None);
    }
}
