//! What a run's roles were told, key by key.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Value;

/// The sections of a recipe, by the file that `sluice run` writes for the role's first process.
const SECTIONS: [(&str, &[&str]); 4] = [
    ("coordinator", &["coordinator"]),
    ("reward_server", &["reward-server-0"]),
    ("learner", &["learner", "learner-rank-0"]),
    ("actor", &["actor-0"]),
];
/// Where things lie and listen, different in every run and never the cause of a different result; and what
/// others are told, which stands in their own files.
const PLACES: [&str; 13] = [
    "listen",
    "listen_weights",
    "coordinator",
    "member",
    "rank",
    "rendezvous",
    "journal",
    "steps_file",
    "samples",
    "checkpoints",
    "service",
    "run",
    "told",
];

/// Every key that the roles of a ring were told, by its path in a recipe; of equal processes the first
/// counts.
/// The run's own folder stands as `{output}` in paths: it is another in every run.
pub fn told_keys(ring: &Path) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    for (section, files) in SECTIONS {
        for file in files {
            let text = std::fs::read_to_string(ring.join("config").join(format!("{file}.toml")));
            let Ok(table) = text.unwrap_or_default().parse::<toml::Table>() else { continue };
            for (key, value) in table.iter().filter(|(key, _)| !PLACES.contains(&key.as_str())) {
                add(&format!("{section}.{key}"), value, &mut keys);
            }
        }
    }
    let output = ring.parent().unwrap_or(Path::new(""));
    for written in [std::fs::canonicalize(output).unwrap_or_default().as_path(), output] {
        let written = written.display().to_string();
        for value in keys.values_mut().filter(|_| !written.is_empty()) {
            *value = value.replace(&written, "{output}");
        }
    }
    keys
}

fn add(path: &str, value: &Value, keys: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                add(&format!("{path}.{key}"), value, keys);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_table) => {
            for (number, item) in items.iter().enumerate() {
                add(&format!("{path}[{number}]"), item, keys);
            }
        }
        Value::String(text) => drop(keys.insert(path.to_owned(), text.clone())),
        // As people write them: 1e-6.
        Value::Float(number) => drop(keys.insert(path.to_owned(), format!("{number:?}"))),
        other => drop(keys.insert(path.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_path_in_a_recipe_and_places_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        std::fs::create_dir(&config).unwrap();
        let coordinator = "batches = 3\nlisten = \"127.0.0.1:0\"\ntold = { \"learner.policy\" = \"x\" }\n[filtration]\nstrategy = \"best-worst\"\n";
        std::fs::write(config.join("coordinator.toml"), coordinator).unwrap();
        let server = "[[scorers]]\nkind = \"rule\"\n[[scorers]]\nkind = \"http\"\n";
        std::fs::write(config.join("reward-server-0.toml"), server).unwrap();
        let output = folder.path().parent().unwrap().display();
        let learner = format!("policy = \"{output}/sft\"\n[ppo]\npolicy_lr = 1e-6\n");
        std::fs::write(config.join("learner-rank-0.toml"), &learner).unwrap();
        let keys: Vec<(String, String)> = told_keys(folder.path()).into_iter().collect();
        let expected = [
            ("coordinator.batches", "3"),
            ("coordinator.filtration.strategy", "best-worst"),
            ("learner.policy", "{output}/sft"),
            ("learner.ppo.policy_lr", "1e-6"),
            ("reward_server.scorers[0].kind", "rule"),
            ("reward_server.scorers[1].kind", "http"),
        ];
        assert_eq!(keys, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}
