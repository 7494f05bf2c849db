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

    /// The first thing in a recipe that its schema does not allow, behind its place.
    fn of_text(text: &str) -> Option<String> {
        let recipe: toml::Table = text.parse().unwrap();
        let recipe = serde_json::to_value(recipe).unwrap();
        let validator = jsonschema::validator_for(&json_schema()).unwrap();
        validator.iter_errors(&recipe).next().map(|error| format!("{}: {error}", error.instance_path()))
    }

    #[test]
    fn an_editor_accepts_every_recipe_that_we_ship_or_write() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let examples = here.join("../../examples");
        let mut files: Vec<PathBuf> = ["own-model", "grpo", "tiny-coder", "agent", "code-interpreter"]
            .iter()
            .map(|name| examples.join(name).join("recipe.toml"))
            .chain(["online", "offline"].map(|name| examples.join(format!("pf-ppo-study/{name}.toml"))))
            .chain(std::iter::once(examples.join("code-interpreter/measure.toml")))
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
            (
                "[coordinator]\nbatchs = 3\n",
                "/coordinator: Additional properties are not allowed ('batchs' was",
            ),
            (
                "[coordinator]\nbatches = 'many'\n",
                "/coordinator/batches: \"many\" is not of type \"integer\"",
            ),
            ("seed = -1\n", "/seed: -1 is less than the minimum of 0"),
            ("[[stages]]\nname = 's'\n[stages.sft.training]\nseed = '{sed}'\n", "/stages/0/sft"),
            ("[[reward_server.scorers]]\nkind = 'regexp'\n", "/reward_server/scorers/0"),
            ("[learner.ppo]\nalgorithm = 'gpro'\n", "/learner/ppo/algorithm"),
        ] {
            let found = of_text(text).unwrap_or_else(|| panic!("accepted: {text}"));
            assert!(found.starts_with(place), "{place}: {found}");
        }
        let ours = "[[stages]]\nname = 's'\n[stages.sft.training]\nseed = '{seed}'\n";
        assert_eq!(of_text(ours), None);
    }
}
