//! How a [`Grader`](crate::Grader) is set up.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tier::Tier;

/// Configuration of a [`Grader`](crate::Grader).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GraderConfig {
    /// Gradings at a time; each uses two processes that take turns.
    pub workers: usize,
    /// The tier to use; the strongest that works where not given.
    pub tier: Option<Tier>,
    /// Below this tier there is no grader.
    pub minimum_tier: Tier,
    /// Start an interpreter from nothing for every candidate, for audits: slower, and nothing of one run's
    /// memory layout tells about another's.
    pub cold: bool,
    /// The interpreter; `/usr/bin/python3`, else `python3` on the path, where not given.
    pub interpreter: Option<PathBuf>,
    /// The helper; `sluice-sandbox-init` beside the running program where not given.
    pub init: Option<PathBuf>,
    /// Folders of pure-Python or binary packages that guests may import, read-only. `sortedcontainers`, which
    /// LeetCode's own interpreter has, is there without one.
    pub import_paths: Vec<PathBuf>,
    /// Runs after which a zygote is replaced. Any anomaly replaces it at once.
    pub max_runs_per_zygote: u32,
    /// Callers that may wait for a worker; one more is [`Error::Overloaded`](crate::Error::Overloaded).
    pub max_waiting: usize,
    /// How long a caller waits for a worker before it is [`Error::Overloaded`](crate::Error::Overloaded).
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub queue_timeout: Duration,
    /// How long a zygote may take to become ready.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub start_timeout: Duration,
    /// Gradings that ended in `internal_error` are repeated this often before the caller sees it.
    pub retries: u32,
    /// Gradings that ended in `overloaded` are repeated this often before the caller sees it. None in a ring,
    /// where the coordinator issues the response again.
    pub overload_retries: u32,
    /// Seeds what tests draw, together with problem and response.
    pub seed: u64,
    /// Python that runs before every response, such as imports that a data set takes for granted.
    pub prelude: String,
    /// Whether to make the calling process unreadable to others of the same user (`PR_SET_DUMPABLE` 0), which
    /// also disables its core dumps. Guests cannot reach it either way; this is for what else runs under the
    /// user.
    pub hide_server: bool,
}

impl Default for GraderConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            workers: cores,
            tier: None,
            minimum_tier: Tier::B,
            cold: false,
            interpreter: None,
            init: None,
            import_paths: Vec::new(),
            // A zygote costs some 40 ms to start: under 0.1 ms a run at this number.
            max_runs_per_zygote: 500,
            max_waiting: 1024,
            queue_timeout: Duration::from_secs(60),
            start_timeout: Duration::from_secs(20),
            retries: 1,
            overload_retries: 0,
            seed: 0,
            prelude: String::new(),
            hide_server: true,
        }
    }
}
