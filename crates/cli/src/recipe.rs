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
//! Names in braces are filled in (`placeholders`); paths are as seen from the current folder. This module is
//! data: it starts nothing. `run` does what a recipe says on this machine, `render` writes its ring for a
//! cluster, and both take what the roles are told from `role_configs`.

mod derived;
mod eval_stages;
mod external_engines;
mod first_rows;
pub(crate) mod inputs;
pub(crate) mod json_schema;
mod placeholders;
mod preflight;
mod preset;
pub(crate) mod remarks;
mod resolved;
mod restored;
mod ring_folder;
mod rings;
mod role;
mod role_configs;
mod stage;
mod stage_tables;
mod surroundings;
pub(crate) mod tokenizers;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service::SecurityConfig;
use service::config::Layers;
use toml::{Table, Value};
use types::RunId;

use crate::tracking::TrackingConfig;
pub(crate) use ring_folder::{RingFolder, holds_training};
pub(crate) use role::Role;
pub(crate) use role_configs::RoleConfig;
pub(crate) use stage::{Stage, Work};
pub(crate) use stage_tables::{
    BestOfNStage, Candidate, CommandStage, EvalStage, Judge, PreferencesStage, RingStage, TokenizerStage,
};

/// A recipe.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Recipe {
    /// The run's name.
    pub(crate) name: String,
    /// Seeds the ring, where a section does not name a seed of its own. Stages have seeds of their own;
    /// `seed = "{seed}"` gives one of them the recipe's.
    pub(crate) seed: u64,
    /// The folder that everything is written to.
    pub(crate) output: PathBuf,
    /// How many processes the ring has, on this machine or, rendered, on a cluster.
    pub(crate) processes: Processes,
    /// Where the curves go beside the run's own files.
    pub(crate) tracking: TrackingConfig,
    /// Who may speak to the ring's processes.
    pub(crate) security: SecurityConfig,
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
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
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
            tracking: TrackingConfig::default(),
            security: SecurityConfig::default(),
            stages: Vec::new(),
            coordinator: coordinator::Config::default(),
            reward_server: reward_server::Config::default(),
            learner: learner::Config::default(),
            actor: actor::Config::default(),
        }
    }
}

impl Recipe {
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
        if self.output.to_string_lossy().contains("{output}") {
            problems.push(format!("output is {}: it cannot be a part of itself", self.output.display()));
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
        problems.extend(self.stages.iter().filter_map(|stage| Some(stage.work().err()?.to_string())));
        problems.extend(rings::problems(&self.stages));
        let mut names: Vec<&str> = self.stages.iter().map(|stage| stage.name.as_str()).collect();
        names.sort_unstable();
        for pair in names.windows(2).filter(|pair| pair[0] == pair[1]) {
            problems.push(format!("two stages are called {}", pair[0]));
        }
        problems
    }
}

/// Whether variables of the environment (`SLUICE_<SECTION>__<KEY>`) lie over a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Environment {
    /// They do: the recipe is used here.
    Applied,
    /// They do not: the recipe is used elsewhere, where the environment is another.
    LeftOut,
}

/// A recipe that was read and checked, and how it is written.
#[derive(Debug)]
pub(crate) struct RecipeFile {
    /// The file.
    pub(crate) path: PathBuf,
    /// The `--set` values that lie over it.
    pub(crate) settings: Vec<String>,
    /// What it says, with all defaults.
    pub(crate) recipe: Recipe,
    /// What it says, without the defaults, and where each value came from.
    layers: Layers,
    /// The same without what follows from it: a ring lays its own values over this.
    written: Layers,
    /// Where its ring keeps its things.
    ring: RingFolder,
}

impl RecipeFile {
    /// Reads a recipe, with the environment's and `--set` values over it.
    ///
    /// # Errors
    /// Names the place and what is wrong there.
    pub(crate) fn read(path: &Path, environment: Environment, settings: &[String]) -> anyhow::Result<Self> {
        let mut layers = match environment {
            Environment::Applied => Layers::of_process(Some(path), settings)?,
            Environment::LeftOut => Layers::of_file(path, settings)?,
        };
        layers.edit(|table| placeholders::fill_in(table, path));
        let written = layers.clone();
        derived::fill_in(&mut layers);
        let recipe: Recipe = layers.parse_known()?;
        let problems = recipe.problems();
        if !problems.is_empty() {
            return Err(service::config::Error::Unusable { problems }.into());
        }
        let ring = RingFolder::of(&recipe.output);
        Ok(Self { path: path.to_owned(), settings: settings.to_vec(), recipe, layers, written, ring })
    }

    /// Where its ring keeps its things.
    pub(crate) fn ring_folder(&self) -> &RingFolder {
        &self.ring
    }

    /// A section as it is written; empty where it is not.
    fn section(&self, name: &str) -> Table {
        self.layers.table().get(name).and_then(Value::as_table).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_in_itself_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        std::fs::write(&path, "output = \"{output}/policy\"\n").unwrap();
        let error = RecipeFile::read(&path, Environment::LeftOut, &[]).unwrap_err();
        assert!(format!("{error:#}").contains("it cannot be a part of itself"), "{error:#}");
    }

    /// What a person may write: an error in words, or a recipe that can be shown, read back, and shown the
    /// same. (What is shown is all there is, so that more follows from it than from the file.)
    #[test]
    fn fuzzed_recipes_are_refused_in_words_or_read_back_the_same() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        let recipes = [
            "tiny-coder/recipe.toml",
            "grpo/recipe.toml",
            "own-model/recipe.toml",
            "pf-ppo-study/online.toml",
            "code-interpreter/recipe.toml",
        ];
        let good = recipes.map(|recipe| std::fs::read(examples.join(recipe)).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        let read = || RecipeFile::read(&path, Environment::LeftOut, &[]);
        fuzz::run("recipes", &good, |bytes| {
            std::fs::write(&path, bytes).unwrap();
            match read() {
                Ok(_) => {
                    let shown = [0; 3].map(|_| {
                        let again = read().expect("what is shown can be read");
                        let shown = service::config::render(&again.recipe);
                        std::fs::write(&path, &shown).unwrap();
                        shown
                    });
                    assert_eq!(shown[1], shown[2]);
                }
                Err(error) => {
                    let said = format!("{error:#}");
                    assert!(!said.trim().is_empty() && said.len() < 1 << 16, "{said}");
                }
            }
        });
    }
}
