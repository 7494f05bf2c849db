//! Configuration: one TOML schema in layers, defaults < file < environment < `--set a.b=c`.
//!
//! Unknown keys and wrong types are refused with the place they came from (file and line, variable or flag)
//! and, for a misspelt key, the nearest one that exists. Environment variables are read here and nowhere
//! else: `SLUICE_<SECTION>__<KEY>=value` sets `section.key`.

mod describe;
mod fields;
mod layers;
mod origin;
mod place;
mod resolved;
mod rest;
mod schema;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use fields::fields_of;
pub use layers::{Layers, render};
pub use origin::Source;
pub use resolved::resolved;
pub use schema::{Choice, Key, Schema, Section, find_keys};

use crate::security::{Door, SecurityConfig};

/// What is wrong with the configuration. Each message says where the value came from and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {problem}")]
    Read {
        /// The file that was asked for.
        path: PathBuf,
        /// What the operating system says.
        problem: String,
    },
    /// A value at some place is not what the schema wants.
    #[error("{origin}: {problem}")]
    Value {
        /// `file:line`, a variable or a flag.
        origin: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Somebody asks about a key that does not exist.
    #[error("there is no key {path}; {hint}")]
    UnknownKey {
        /// What was asked for.
        path: String,
        /// Which keys are like it.
        hint: String,
    },
    /// The values are sound one by one but not together; every problem is listed.
    #[error("the configuration is not usable:\n  - {}", problems.join("\n  - "))]
    Unusable {
        /// Each names its keys.
        problems: Vec<String>,
    },
}

/// The configuration of a process.
pub trait Config: Serialize + DeserializeOwned + Default + JsonSchema {
    /// The section that the chassis reads.
    fn service(&self) -> &ServiceConfig;

    /// Everything that makes the values unusable together, each as one sentence that begins with a key.
    fn problems(&self) -> Vec<String>;

    /// The ports that it listens on beside `service.listen_metrics`.
    fn doors(&self) -> Vec<Door> {
        Vec::new()
    }

    /// All problems, doors that stand open to strangers among them.
    fn every_problem(&self) -> Vec<String> {
        let mut doors = self.doors();
        doors.push(Door::new("service.listen_metrics", self.service().listen_metrics));
        let mut problems = self.problems();
        problems.extend(self.service().security.problems(&doors));
        problems
    }
}

/// The chassis' own section, `[service]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// Where `/metrics`, `/health` and `/ready` are served. Port 0 takes any free port; the log says which.
    pub listen_metrics: SocketAddr,
    /// A file that receives the bound addresses as JSON once the process listens; none by default.
    pub address_file: Option<PathBuf>,
    /// What is logged, as a `tracing` filter.
    pub log: String,
    /// `text` for people, `json` for machines: an object a line, which begins with `role`, `run` and `member`
    /// as far as they are configured.
    pub log_format: LogFormat,
    /// How long a shutdown may take before what has not finished is named and abandoned.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub grace_period: Duration,
    /// Stop when standard input closes: a supervisor holds it open, so that no process outlives its
    /// supervisor.
    pub follow_stdin: bool,
    /// Exit code of a process that left because a signal told it to, with its work not done. A scheduler that
    /// takes 0 for the end of the work, as Kubernetes' Jobs do, needs another than 0 to start it again.
    pub stopped_code: u8,
    /// Threads of the I/O runtime. The work of a role has threads of its own.
    pub io_threads: usize,
    /// Who may speak to it.
    pub security: SecurityConfig,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            // Loopback only: what other machines reach is a decision, never a default.
            listen_metrics: SocketAddr::from(([127, 0, 0, 1], 0)),
            address_file: None,
            // What the journal's store does is of interest to nobody who has no question about it.
            log: "info,fjall=warn,lsm_tree=warn".to_owned(),
            log_format: LogFormat::Text,
            grace_period: Duration::from_secs(30),
            follow_stdin: false,
            stopped_code: 0,
            io_threads: 2,
            security: SecurityConfig::default(),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// A configuration that was read and checked, and where its values came from.
#[derive(Debug)]
pub struct Loaded<C> {
    /// The configuration.
    pub config: C,
    layers: Layers,
}

impl<C: Config> Loaded<C> {
    /// Every key with its value, where that came from and what it means, as TOML with comments.
    pub fn resolved(&self) -> String {
        let values = serde_json::to_value(&self.config).unwrap_or_default();
        resolved(&Schema::of::<C>().sections_of(&values), |path| self.layers.source(path))
    }
}

/// Reads a configuration from its layers and checks it.
///
/// # Errors
/// The first value that does not fit the schema, or all the problems of values that do not fit together.
pub fn load<C: Config>(file: Option<&Path>, settings: &[String]) -> Result<Loaded<C>, Error> {
    let layers = Layers::of_process(file, settings)?;
    let config: C = layers.parse_known()?;
    let problems: Vec<String> =
        config.every_problem().into_iter().map(|problem| layers.placed(problem)).collect();
    if problems.is_empty() { Ok(Loaded { config, layers }) } else { Err(Error::Unusable { problems }) }
}
