//! How responses are graded: the keys of a reward server's `[sandbox]`, so that a program is judged by a tool
//! as it is in the ring.

use std::path::Path;

use extraction::Extract;
use reward_server::config::SandboxConfig;
use sandbox::{GraderConfig, Limits};
use serde::Deserialize as _;
use service::BadInput;
use toml::{Table, Value};

use crate::recipe::Recipe;

/// How often a program is tried again that the machine had no time for: nobody retries a tool.
const OVERLOAD_RETRIES: u32 = 2;

/// How responses are graded.
#[derive(Debug, Clone)]
pub(crate) struct GradingSetup {
    pub(crate) grader: GraderConfig,
    pub(crate) limits: Limits,
    /// Which part of a response is graded.
    pub(crate) extract: Extract,
}

impl GradingSetup {
    /// As a reward server is told.
    pub(crate) fn of(config: &SandboxConfig) -> Self {
        let overload_retries = config.grader.overload_retries.max(OVERLOAD_RETRIES);
        Self {
            grader: GraderConfig { overload_retries, ..config.grader.clone() },
            limits: config.limits.clone(),
            extract: config.extract,
        }
    }

    /// As the reward servers of a recipe's ring are told.
    pub(crate) fn of_recipe(recipe: &Recipe) -> Self {
        Self::of(&recipe.reward_server.sandbox.clone().unwrap_or_default())
    }

    /// As the `[sandbox]` of a reward server's configuration says, or the `[reward_server.sandbox]` of a
    /// recipe; the defaults without either.
    ///
    /// # Errors
    /// Names the file, and what in it cannot be used.
    pub(crate) fn read(path: &Path) -> Result<Self, BadInput> {
        let text = std::fs::read_to_string(path).map_err(|error| wrong(path, &error))?;
        let mut file: Table = text.parse().map_err(|error| wrong(path, &error))?;
        if let Some(Value::Table(reward_server)) = file.remove("reward_server") {
            file = reward_server;
        }
        let Some(table) = file.remove("sandbox") else { return Ok(Self::of(&SandboxConfig::default())) };
        let config = SandboxConfig::deserialize(table);
        let config = config.map_err(|error| wrong(path, &format!("[sandbox]: {error}")))?;
        Ok(Self::of(&config))
    }
}

fn wrong(path: &Path, problem: &dyn std::fmt::Display) -> BadInput {
    BadInput(format!("{}: {problem}", path.display()))
}
