//! The names in braces of a recipe, and what a recipe's top hands down to its sections.
//!
//! In every text `{output}` stands for the output folder, `{recipe}` for the folder of the recipe file,
//! `{name}` for the run's name and `{seed}` for the seed.

use std::path::Path;

use service::config::Layers;
use toml::{Table, Value};

/// A name in braces and what stands in its place.
struct Placeholder {
    name: &'static str,
    replacement: String,
}

/// Puts folders, name and seed in for their placeholders, and hands the run's name and seed down to the
/// roles.
pub(super) fn fill_in(layers: &mut Layers, file: &Path) {
    let seed = layers.table().get("seed").and_then(Value::as_integer).unwrap_or(0);
    let name = text(layers.table(), "name", "run");
    layers.edit(|table| replace_all(table, file, &name, seed));
    layers.derive("coordinator.run", Value::String(name), "name");
    layers.derive("coordinator.seed", Value::Integer(seed), "seed");
    layers.derive("learner.ppo.seed", Value::Integer(seed), "seed");
}

fn replace_all(table: &mut Table, file: &Path, name: &str, seed: i64) {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let output = text(table, "output", "runs/{name}").replace("{name}", name);
    let placeholders = [
        Placeholder { name: "{output}", replacement: output.clone() },
        Placeholder { name: "{recipe}", replacement: folder.display().to_string() },
        Placeholder { name: "{seed}", replacement: seed.to_string() },
        Placeholder { name: "{name}", replacement: name.to_owned() },
    ];
    table.insert("output".to_owned(), Value::String(output));
    for (_, value) in table.iter_mut() {
        replace(value, &placeholders);
    }
}

fn text(table: &Table, key: &str, default: &str) -> String {
    table.get(key).and_then(Value::as_str).unwrap_or(default).to_owned()
}

fn replace(value: &mut Value, placeholders: &[Placeholder]) {
    match value {
        Value::String(text) => {
            for Placeholder { name, replacement } in placeholders {
                *text = text.replace(name, replacement);
            }
        }
        Value::Array(values) => {
            for value in values {
                replace(value, placeholders);
            }
        }
        Value::Table(table) => {
            for (_, value) in table.iter_mut() {
                replace(value, placeholders);
            }
        }
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_everywhere() {
        let text = "name = 'x'\nseed = 5\n[coordinator.data]\npath = '{output}/p-{seed}.jsonl'\n\
             [[stages]]\ncommand = ['{recipe}/make.py']\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut layers = Layers::of_file(file.path(), &[]).unwrap();
        fill_in(&mut layers, Path::new("examples/tiny/recipe.toml"));
        let table = layers.table();
        assert_eq!(table["output"].as_str(), Some("runs/x"));
        assert_eq!(table["coordinator"]["data"]["path"].as_str(), Some("runs/x/p-5.jsonl"));
        assert_eq!(table["stages"][0]["command"][0].as_str(), Some("examples/tiny/make.py"));
        assert_eq!(table["coordinator"]["seed"].as_integer(), Some(5));
        assert_eq!(table["learner"]["ppo"]["seed"].as_integer(), Some(5));
        assert_eq!(table["coordinator"]["run"].as_str(), Some("x"));
    }
}
