//! `sluice render`: what it writes is what the roles, Kubernetes and Slurm take.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cluster_tools;
mod kubernetes;
mod refusals;
mod slurm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use service::config::Layers;

/// A recipe of a ring with several processes of each role.
const RECIPE: &str = r#"
name = "Ring_1"
seed = 3
output = "runs/{name}"

[processes]
actors = 3
reward_servers = 2
learner_ranks = 2

[coordinator]
batches = 5
deterministic = true

[coordinator.data]
path = "prompts.jsonl"

[reward_server.reference]
model = "models/sft"

[[reward_server.scorers]]
kind = "reward-model"
model = "models/reward"

[reward_server.sandbox]

[learner]
policy = "models/sft"
critic = "models/reward"

[learner.ppo]
critic_on = "all"
"#;

/// A folder with a recipe, and the command called in it.
struct Project(tempfile::TempDir);

impl Project {
    fn new(recipe: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// `sluice` with these arguments.
    fn sluice(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(arguments).current_dir(self.0.path());
        command
    }

    /// `sluice render TARGET recipe.toml --output out`, which has to succeed.
    fn render(&self, target: &str, options: &[&str]) -> Output {
        let arguments = [&["render", target, "recipe.toml", "--output", "out"][..], options].concat();
        let output = self.sluice(&arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }
}

/// A role's configuration from its file and `--set` arguments, read and checked as the role does it.
fn load<C: service::Config>(file: &Path, settings: &[String]) -> C {
    let mut layers = Layers::default();
    layers.add_file(file).unwrap();
    settings.iter().for_each(|setting| layers.add_setting(setting).unwrap());
    let config: C = layers.parse().unwrap();
    assert_eq!(config.every_problem(), Vec::<String>::new());
    config
}
