//! The names in braces of a recipe, and what a recipe's top hands down to its sections.
//!
//! In every text `{output}` stands for the output folder, `{recipe}` for the folder of the recipe file,
//! `{name}` for the run's name and `{seed}` for the seed.

use std::path::Path;

use toml::{Table, Value};

/// A name in braces and what stands in its place.
struct Placeholder {
    name: &'static str,
    replacement: String,
}

/// Puts folders, name and seed in for their placeholders, and hands the run's name and seed down to the
/// roles.
pub(super) fn fill_in(table: &mut Table, file: &Path) {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let seed = table.get("seed").and_then(Value::as_integer).unwrap_or(0);
    let name = text(table, "name", "run");
    let output = text(table, "output", "runs/{name}").replace("{name}", &name);
    let placeholders = [
        Placeholder { name: "{output}", replacement: output.clone() },
        Placeholder { name: "{recipe}", replacement: folder.display().to_string() },
        Placeholder { name: "{seed}", replacement: seed.to_string() },
        Placeholder { name: "{name}", replacement: name.clone() },
    ];
    table.insert("output".to_owned(), Value::String(output));
    for (_, value) in table.iter_mut() {
        replace(value, &placeholders);
    }
    hand_down(table, &["coordinator"], "run", Value::String(name));
    hand_down(table, &["coordinator"], "seed", Value::Integer(seed));
    hand_down(table, &["learner", "ppo"], "seed", Value::Integer(seed));
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

/// Sets a key of a section where the recipe does not.
fn hand_down(table: &mut Table, section: &[&str], key: &str, value: Value) {
    let Some((outer, inner)) = section.split_first() else {
        table.entry(key).or_insert(value);
        return;
    };
    if let Value::Table(table) = table.entry(*outer).or_insert_with(|| Value::Table(Table::new())) {
        hand_down(table, inner, key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_everywhere() {
        let mut table: Table = "name = 'x'\nseed = 5\n[coordinator.data]\npath = '{output}/p-{seed}.jsonl'\n\
             [[stages]]\ncommand = ['{recipe}/make.py']\n"
            .parse()
            .unwrap();
        fill_in(&mut table, Path::new("examples/tiny/recipe.toml"));
        assert_eq!(table["output"].as_str(), Some("runs/x"));
        assert_eq!(table["coordinator"]["data"]["path"].as_str(), Some("runs/x/p-5.jsonl"));
        assert_eq!(table["stages"][0]["command"][0].as_str(), Some("examples/tiny/make.py"));
        assert_eq!(table["coordinator"]["seed"].as_integer(), Some(5));
        assert_eq!(table["learner"]["ppo"]["seed"].as_integer(), Some(5));
        assert_eq!(table["coordinator"]["run"].as_str(), Some("x"));
    }
}
