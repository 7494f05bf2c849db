//! The names in braces of a recipe.
//!
//! In every text `{output}` stands for the output folder, `{recipe}` for the folder of the recipe file,
//! `{name}` for the run's name and `{seed}` for the seed. `seed = "{seed}"` is that number.

use std::path::Path;

use toml::{Table, Value};

/// A name in braces and what stands in its place.
struct Placeholder {
    name: &'static str,
    replacement: String,
}

/// Puts folders, name and seed in for their placeholders.
pub(super) fn fill_in(table: &mut Table, file: &Path) {
    let seed = table.get("seed").and_then(Value::as_integer).unwrap_or(0);
    let name = text(table, "name", "run");
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let output = text(table, "output", "runs/{name}").replace("{name}", &name);
    let placeholders = [
        Placeholder { name: "{output}", replacement: output.clone() },
        Placeholder { name: "{recipe}", replacement: folder.display().to_string() },
        Placeholder { name: "{seed}", replacement: seed.to_string() },
        Placeholder { name: "{name}", replacement: name },
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
            for (key, value) in table.iter_mut() {
                let is_our_seed = key == "seed" && value.as_str() == Some("{seed}");
                replace(value, placeholders);
                let number = value.as_str().filter(|_| is_our_seed).and_then(|text| text.parse().ok());
                if let Some(number) = number {
                    *value = Value::Integer(number);
                }
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
        let mut table: Table = "name = 'x'\nseed = 5\n[coordinator.data]\npath = '{output}/p-{seed}.jsonl'\n\
             [[stages]]\ncommand = ['{recipe}/make.py', '{seed}']\n[stages.sft.training]\nseed = '{seed}'\n"
            .parse()
            .unwrap();
        fill_in(&mut table, Path::new("examples/tiny/recipe.toml"));
        assert_eq!(table["output"].as_str(), Some("runs/x"));
        assert_eq!(table["coordinator"]["data"]["path"].as_str(), Some("runs/x/p-5.jsonl"));
        let stage = &table["stages"][0];
        assert_eq!(stage["command"][0].as_str(), Some("examples/tiny/make.py"));
        assert_eq!(stage["command"][1].as_str(), Some("5"), "an argument is a text");
        assert_eq!(stage["sft"]["training"]["seed"].as_integer(), Some(5));
    }
}
