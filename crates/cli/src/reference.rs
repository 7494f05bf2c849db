//! `docs/configuration.md`, `docs/metrics.md` and `docs/steps.md`, written from the types and definitions
//! that the programs use. The tests compare; `UPDATE_EXPECT=1 cargo nextest run -p cli reference` writes
//! the files anew.

use expect_test::expect_file;
use service::config::{Choice, Key, Schema, Section};
use service::{Metric, PROCESS_METRICS};

use crate::recipe::Recipe;

const CONFIGURATION: &str = "\
# Configuration

Written by a test from the types that the programs read (`crates/cli/src/reference.rs`); do not edit.

A recipe is one TOML file. Over it lie environment variables (`SLUICE_<SECTION>__<KEY>=value`), over them
`--set section.key=value`. `sluice check-config RECIPE` prints every key with its value and where that came from,
`--explain KEY` all that is known of one key, `--schema` a JSON schema for editors. The roles' own programs read
their section alone, without its name: `sluice-actor --set engine.device=cuda`.

A duration is a text such as `\"30s\"` or `\"5m\"`. Where no default is given, the key is not set or must be set, as its
meaning says.
";

const METRICS: &str = "\
# Metrics

Written by a test from the definitions in each role's `metrics.rs` (`crates/cli/src/reference.rs`); do not edit.

Every process serves its metrics in Prometheus' text format at `http://<service.listen_metrics>/metrics`. A counter
ends in `_total` and grows while its process lives; a histogram has `_bucket`, `_sum` and `_count`.
";

const STEPS: &str = "\
# Steps

Written by a test from the types that the coordinator writes (`crates/cli/src/reference.rs`); do not edit.

`ring/steps.jsonl` of a run's output holds one JSON object per training step, in the order of training, each on a line
of its own. A step that was trained again after a crash has another line, which counts; nothing else is ever changed.
Reading it takes one line:

```python
steps = pandas.json_normalize(pandas.read_json(\"runs/NAME/ring/steps.jsonl\", lines=True).to_dict(\"records\"))
```

Then `steps[\"metrics.kl_to_ref\"]` is a column. `sluice dashboard` draws all of them.

| field | type | meaning |
|---|---|---|
";

#[test]
fn steps_are_documented() {
    let mut text = STEPS.to_owned();
    for field in coordinator::step_fields() {
        let meaning = field.meaning.replace('|', "\\|");
        text.push_str(&format!("| `{}` | {} | {meaning} |\n", field.path, field.kind));
    }
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/steps.md")].assert_eq(&text);
}

#[test]
fn configuration_is_documented() {
    let mut text = CONFIGURATION.to_owned();
    for section in Schema::of::<Recipe>().sections() {
        text.push_str(&section_markdown(&section));
    }
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md")].assert_eq(&text);
}

#[test]
fn metrics_are_documented() {
    let processes: [(&str, &[Metric]); 5] = [
        ("Every process", PROCESS_METRICS),
        ("Coordinator", coordinator::METRICS),
        ("Reward server", reward_server::METRICS),
        ("Learner", learner::METRICS),
        ("Actor", actor::METRICS),
    ];
    let mut text = METRICS.to_owned();
    for (process, metrics) in processes {
        text.push_str(&format!(
            "\n## {process}\n\n| name | type | unit | meaning | labels |\n|---|---|---|---|---|\n"
        ));
        text.extend(metrics.iter().map(Metric::markdown_row));
    }
    expect_file![concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md")].assert_eq(&text);
}

#[test]
fn every_key_and_every_choice_is_explained() {
    for section in Schema::of::<Recipe>().sections() {
        for key in &section.keys {
            assert!(
                !key.path.ends_with(".secs"),
                "{} is a duration: schemars(with = \"String\", ..)",
                key.path
            );
            assert!(!key.meaning.is_empty() || key.kind.starts_with('`'), "{} has no meaning", key.path);
        }
    }
}

fn section_markdown(section: &Section) -> String {
    if section.keys.is_empty() {
        return String::new();
    }
    let path = match section.path.as_str() {
        "" => "The recipe".to_owned(),
        path if path.ends_with("[]") => format!("`[[{}]]`", path.replace("[]", "")),
        path => format!("`[{}]`", path.replace("[]", "")),
    };
    let variant = section.variant.as_ref().map_or_else(String::new, |variant| format!(" with `{variant}`"));
    let mut text = format!("\n## {path}{variant}\n\n{}\n\n", section.meaning);
    text.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
    text.extend(section.keys.iter().map(key_row));
    text
}

fn key_row(key: &Key) -> String {
    let name = key.path.rsplit('.').next().unwrap_or(&key.path);
    let default = key.default.as_ref().map_or_else(String::new, |default| format!("`{default}`"));
    let mut meaning = key.meaning.clone();
    for Choice { name, meaning: what } in &key.choices {
        meaning.push_str(&format!("<br>`{name}`: {what}"));
    }
    let [default, meaning] = [default, meaning].map(|cell| cell.replace('|', "\\|"));
    format!("| `{name}` | {} | {default} | {meaning} |\n", key.kind)
}
