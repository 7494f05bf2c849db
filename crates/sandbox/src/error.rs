//! Why there is no grader, or no grade.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::tier::{StepFailure, Tier, TierReport};

/// No grader, or no grade. None of these says anything about a response.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The helper binary is nowhere.
    #[error(
        "sluice-sandbox-init is not at {}; install it beside the program or configure its path",
        list(looked)
    )]
    NoInit {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// An interpreter cannot be used.
    #[error("python interpreter {}: {reason}", path.display())]
    Interpreter {
        /// The interpreter.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No isolation that is good enough works here.
    #[error("minimum tier {minimum} is not available: {report}")]
    BelowMinimumTier {
        /// What the configuration asks for.
        minimum: Tier,
        /// What works.
        report: TierReport,
    },
    /// The configured tier does not work here.
    #[error("tier {tier} is configured but does not work: {failure}")]
    TierUnavailable {
        /// The configured tier.
        tier: Tier,
        /// Why.
        failure: StepFailure,
    },
    /// A value of the configuration is out of range.
    #[error("sandbox configuration: {0}")]
    Config(String),
    /// A resource of the server itself.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// All workers are busy and enough callers wait already, or waited too long. Try later or elsewhere.
    #[error("all {workers} sandbox workers are busy, {waiting} callers wait, this one waited {waited:?}")]
    Overloaded {
        /// Configured workers.
        workers: usize,
        /// Callers waiting.
        waiting: usize,
        /// How long this one did.
        waited: Duration,
    },
    /// No zygote could be started within the timeout.
    #[error("no sandbox could be started for {waited:?}: {reason}")]
    Unavailable {
        /// How long the caller waited.
        waited: Duration,
        /// The last failure.
        reason: String,
    },
    /// The machine gave a session's step too little processor time. It says nothing about the code.
    #[error(
        "a step had {cpu:?} of processor time in {wall:?} and waited for more: the machine is overloaded"
    )]
    Starved {
        /// Processor time that it had.
        cpu: Duration,
        /// How long it took.
        wall: Duration,
    },
    /// The sandbox of a session failed. It says nothing about the code.
    #[error("the sandbox of the session failed: {reason}")]
    SessionLost {
        /// Why.
        reason: String,
    },
    /// The limits of an episode are reached: it has no further step.
    #[error("the episode has no step left within its limits")]
    SessionOver,
    /// The grader is shutting down.
    #[error("the grader is shutting down")]
    Closed,
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
}

impl Error {
    /// An error of the server's own resources.
    pub(crate) fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
