//! Recipes: one TOML file that says everything about a run.
//!
//! ```toml
//! name = "tiny-coder"
//! seed = 17
//! output = "runs/tiny-coder"
//!
//! [[stages]]                      # in order; a recipe without stages is the ring alone
//! name = "sft"
//! [stages.sft]                    # what the stage does: see `stage`
//! data = "{output}/problems/demonstrations.jsonl"
//! ...
//!
//! [coordinator]                   # the ring's roles, each with its own configuration
//! [reward_server]
//! [learner]
//! [actor]
//! ```
//!
//! In every text `{output}` stands for the output folder, `{recipe}` for the folder of the recipe file, and `{seed}` for
//! the seed; paths are as seen from the current folder.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use service::config::Layers;
use toml::{Table, Value};
use types::RunId;

use super::stage::Stage;

/// A recipe.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Recipe {
    /// The run's name.
    pub(crate) name: String,
    /// Seeds everything that is random, where a section does not name a seed of its own.
    pub(crate) seed: u64,
    /// The folder that everything is written to.
    pub(crate) output: PathBuf,
    /// How many processes the ring has, on this machine or, rendered, on a cluster.
    pub(crate) processes: Processes,
    /// What is done, in order; the ring alone when empty.
    pub(crate) stages: Vec<Stage>,
    /// The coordinator.
    pub(crate) coordinator: coordinator::Config,
    /// Every reward server.
    pub(crate) reward_server: reward_server::Config,
    /// Every rank of the learner.
    pub(crate) learner: learner::Config,
    /// Every actor.
    pub(crate) actor: actor::Config,
}

/// Processes of the ring. The coordinator is always one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Processes {
    /// Actors.
    pub(crate) actors: usize,
    /// Reward servers.
    pub(crate) reward_servers: usize,
    /// Ranks of the learner.
    pub(crate) learner_ranks: usize,
}

impl Default for Processes {
    fn default() -> Self {
        Self { actors: 1, reward_servers: 1, learner_ranks: 1 }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            name: "run".to_owned(),
            seed: 0,
            output: PathBuf::from("runs/run"),
            processes: Processes::default(),
            stages: Vec::new(),
            coordinator: coordinator::Config::default(),
            reward_server: reward_server::Config::default(),
            learner: learner::Config::default(),
            actor: actor::Config::default(),
        }
    }
}

impl Recipe {
    /// Reads a recipe with the environment's and `--set` values over it.
    ///
    /// # Errors
    /// Names the place and what is wrong there.
    pub(crate) fn read(file: &Path, settings: &[String]) -> anyhow::Result<Self> {
        Ok(Self::checked(Layers::of_process(Some(file), settings)?, file)?.0)
    }

    /// Reads a recipe as [`read`](Self::read) does, but for the environment: for what is used elsewhere, where the
    /// environment is another. Yields also the sections as they are written, without the defaults.
    ///
    /// # Errors
    /// Names the place and what is wrong there.
    pub(crate) fn read_for_elsewhere(file: &Path, settings: &[String]) -> anyhow::Result<(Self, Table)> {
        let mut layers = Layers::default();
        layers.add_file(file)?;
        settings.iter().try_for_each(|setting| layers.add_setting(setting))?;
        Self::checked(layers, file)
    }

    fn checked(mut layers: Layers, file: &Path) -> anyhow::Result<(Self, Table)> {
        let mut written = Table::new();
        layers.edit(|table| {
            fill_in(table, file);
            written.clone_from(table);
        });
        let recipe: Self = layers.parse()?;
        let problems = recipe.problems();
        if problems.is_empty() {
            Ok((recipe, written))
        } else {
            Err(service::config::Error::Unusable { problems }.into())
        }
    }

    /// Whether the coordinator sends filtered samples too: where it is told to, or the learner reads them.
    pub(crate) fn sends_filtered(&self) -> bool {
        self.coordinator.send_filtered || self.learner.ppo.reads_filtered_samples()
    }

    /// Whether reward servers score every rollout by itself: where they are told to, or the run is deterministic.
    pub(crate) fn scores_deterministically(&self) -> bool {
        self.reward_server.deterministic || self.coordinator.deterministic
    }

    /// Its stages, or the ring where it names none.
    pub(crate) fn stages_or_ring(&self) -> Vec<Stage> {
        if self.stages.is_empty() { vec![Stage::ring_alone(&self.output)] } else { self.stages.clone() }
    }

    /// What makes the recipe unusable. The roles check their own sections once their addresses are known.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = RunId::try_from(self.name.clone()) {
            problems.push(error.to_string());
        }
        for (count, key) in [
            (self.processes.actors, "processes.actors"),
            (self.processes.reward_servers, "processes.reward_servers"),
            (self.processes.learner_ranks, "processes.learner_ranks"),
        ] {
            if count == 0 {
                problems.push(format!("{key} is 0, must be at least 1"));
            }
        }
        problems.extend(self.stages.iter().filter_map(|stage| stage.work().err()));
        let mut names: Vec<&str> = self.stages.iter().map(|stage| stage.name.as_str()).collect();
        names.sort_unstable();
        for pair in names.windows(2).filter(|pair| pair[0] == pair[1]) {
            problems.push(format!("two stages are called {}", pair[0]));
        }
        problems
    }
}

/// Puts folders and seed in for their names, and hands run name and seed down to the roles.
fn fill_in(table: &mut Table, file: &Path) {
    let text =
        |key: &str, default: &str| table.get(key).and_then(Value::as_str).unwrap_or(default).to_owned();
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let seed = table.get("seed").and_then(Value::as_integer).unwrap_or(0);
    let name = text("name", "run");
    let output = text("output", "runs/{name}").replace("{name}", &name);
    let names = [
        ("{output}", output.clone()),
        ("{recipe}", folder.display().to_string()),
        ("{seed}", seed.to_string()),
        ("{name}", name.clone()),
    ];
    table.insert("output".to_owned(), Value::String(output));
    table.iter_mut().for_each(|(_, value)| replace_names(value, &names));
    hand_down(table, &["coordinator"], "run", Value::String(name));
    for section in [&["coordinator"][..], &["learner", "ppo"]] {
        hand_down(table, section, "seed", Value::Integer(seed));
    }
}

fn replace_names(value: &mut Value, names: &[(&str, String)]) {
    match value {
        Value::String(text) => {
            for (name, replacement) in names {
                *text = text.replace(name, replacement);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| replace_names(value, names)),
        Value::Table(table) => table.iter_mut().for_each(|(_, value)| replace_names(value, names)),
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
