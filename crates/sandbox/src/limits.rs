//! What a response may use.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Limits of one run: one grading, or one case of a stdin/stdout problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Processor time of the response, all its processes together.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub cpu: Duration,
    /// Wall time from the start of the run, without the time in which it waited for a processor.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub wall: Duration,
    /// Wall time with that: a run that lasts so long was starved by the machine, and is
    /// [`Overloaded`](crate::Verdict::Overloaded). At least `wall`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub overload_wall: Duration,
    /// Resident memory of the response, all its processes together, without files.
    pub memory_bytes: u64,
    /// What it may print to stdout, and to stderr.
    pub output_bytes: u64,
    /// A value it may return, in its encoded form.
    pub value_bytes: u64,
    /// Its scratch folder, and each file in it (tier A).
    pub file_bytes: u64,
    /// Files and folders in the scratch folder (tier A).
    pub files: u64,
    /// Open descriptors of each of its processes.
    pub open_files: u64,
    /// Its processes and threads together.
    pub processes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // The time-out of OpenAI's HumanEval harness; twice that on the wall for programs that wait for
            // something, and twenty times for machines that have other things to do.
            cpu: Duration::from_secs(3),
            wall: Duration::from_secs(6),
            overload_wall: Duration::from_secs(60),
            memory_bytes: 512 << 20,
            output_bytes: 1 << 20,
            value_bytes: 16 << 20,
            file_bytes: 32 << 20,
            files: 1024,
            open_files: 64,
            processes: 128,
        }
    }
}

impl Limits {
    /// The default limits with another time-out: processor time, twice that on the wall, and twenty times
    /// that on the wall of a busy machine.
    pub fn with_timeout(timeout: Duration) -> Self {
        Self { cpu: timeout, wall: timeout * 2, overload_wall: timeout * 20, ..Self::default() }
    }
}
