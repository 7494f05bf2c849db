//! A configuration as it is used: every key, what it has, where that came from, and what it means.

use serde_json::Value;

use super::origin::Source;
use super::schema::{Key, Section, without_indices};

/// Columns before the comment of a key.
const VALUE_COLUMNS: usize = 44;
/// Columns of where a value came from.
const SOURCE_COLUMNS: usize = 26;

/// The sections as TOML, where a comment behind each key says where its value came from and what it means.
/// Keys that are not set are comments.
pub fn resolved(sections: &[Section], source: impl Fn(&str) -> Source) -> String {
    let mut text = String::new();
    for section in sections.iter().filter(|section| !section.keys.is_empty()) {
        if !section.path.is_empty() {
            text.push_str(&format!("\n{}  # {}\n", heading(&section.path), first_sentence(&section.meaning)));
        }
        for key in &section.keys {
            let source = match source(&key.path) {
                Source::Default if key.value.is_none() => "not set".to_owned(),
                source => source.to_string(),
            };
            let value = key.value.as_ref().map_or_else(|| unset(key), |value| assignment(key, value));
            let meaning = first_sentence(&key.meaning);
            text.push_str(&format!("{value:VALUE_COLUMNS$} # {source:SOURCE_COLUMNS$} {meaning}\n"));
        }
    }
    text
}

/// The header of a table; its index in a list is a comment's matter in TOML.
fn heading(path: &str) -> String {
    match path.rsplit_once('[') {
        Some((list, _)) if path.ends_with(']') => format!("[[{}]]", without_indices(list)),
        _ => format!("[{}]", without_indices(path)),
    }
}

fn name(key: &Key) -> &str {
    key.path.rsplit('.').next().unwrap_or(&key.path)
}

fn unset(key: &Key) -> String {
    format!("# {} =", name(key))
}

fn assignment(key: &Key, value: &Value) -> String {
    let toml = serde_json::from_value::<toml::Value>(value.clone());
    format!("{} = {}", name(key), toml.map_or_else(|_| value.to_string(), |value| value.to_string()))
}

/// The first sentence of a meaning: a line has no room for more.
fn first_sentence(text: &str) -> &str {
    match text.split_once(". ") {
        Some((first, _)) => first,
        None => text.trim_end_matches('.'),
    }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use serde::Serialize;

    use super::*;
    use crate::config::Schema;

    /// A run. Its keys are in the order of their names, which is theirs in JSON unless a crate of the build
    /// asks for the order of declaration.
    #[derive(Serialize, JsonSchema)]
    struct Run {
        /// How it filters.
        filter: Filter,
        /// What it is called. Anything goes.
        name: String,
        /// What it costs.
        price: Option<f64>,
        /// Its steps.
        steps: Vec<Step>,
    }

    /// A filter.
    #[derive(Serialize, JsonSchema)]
    #[serde(rename_all = "kebab-case")]
    enum Filter {
        /// Takes the best.
        BestOfN,
    }

    /// A step.
    #[derive(Serialize, JsonSchema)]
    #[serde(tag = "kind", rename_all = "kebab-case")]
    enum Step {
        /// Waits.
        Wait {
            /// For so long.
            seconds: u32,
        },
        /// Goes.
        Go(Direction),
    }

    /// Where to.
    #[derive(Serialize, JsonSchema)]
    struct Direction {
        /// In degrees.
        angle: f64,
    }

    fn run() -> Run {
        let steps = vec![Step::Wait { seconds: 3 }, Step::Go(Direction { angle: 0.5 })];
        Run { name: "x".to_owned(), price: None, filter: Filter::BestOfN, steps }
    }

    #[test]
    fn every_key_has_its_value_its_source_and_its_meaning() {
        let sections = Schema::of::<Run>().sections_of(&serde_json::to_value(run()).unwrap());
        let text = resolved(&sections, |path| match path {
            "name" => Source::Set("run.toml:1".to_owned()),
            "steps[0].seconds" => Source::Derived("seed".to_owned()),
            _ => Source::Default,
        });
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let expected = [
            "filter = \"best-of-n\" # default How it filters",
            "name = \"x\" # run.toml:1 What it is called",
            "# price = # not set What it costs",
            "",
            "[[steps]] # A step",
            "kind = \"wait\" # default",
            "seconds = 3 # from seed For so long",
            "",
            "[[steps]] # A step",
            "kind = \"go\" # default",
            "angle = 0.5 # default In degrees",
        ];
        assert_eq!(lines, expected);
        assert!(text.parse::<toml::Table>().is_ok(), "{text}");
    }

    #[test]
    fn the_schema_knows_every_form() {
        let sections = Schema::of::<Run>().sections();
        let forms: Vec<_> =
            sections.iter().map(|section| (&*section.path, section.variant.as_deref())).collect();
        assert_eq!(
            forms,
            [
                ("", None),
                ("steps[]", None),
                ("steps[]", Some("kind = \"wait\"")),
                ("steps[]", Some("kind = \"go\""))
            ]
        );
        let filter = sections[0].keys.iter().find(|key| key.path == "filter").unwrap();
        assert_eq!((&*filter.kind, &*filter.choices[0].name), ("name", "best-of-n"));
        assert_eq!(filter.choices[0].meaning, "Takes the best.");
    }
}
