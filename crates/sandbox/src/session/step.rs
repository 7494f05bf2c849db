//! What a session may use, and what a step of it brings.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits::Limits;

/// What an episode may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SessionLimits {
    /// Limits of one step. Memory, files and processes are those that the interpreter has at any time;
    /// `value_bytes` bounds a step's code.
    pub step: Limits,
    /// Steps.
    pub steps: u32,
    /// Processor time of all steps together.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub cpu: Duration,
    /// Wall time of all steps together, without the time in which they waited for a processor.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub wall: Duration,
    /// Bytes of a step's output that are shown: its beginning and its end, with a mark between them.
    pub shown_bytes: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            step: Limits { value_bytes: 256 << 10, ..Limits::default() },
            steps: 64,
            cpu: Duration::from_secs(30),
            wall: Duration::from_secs(120),
            shown_bytes: 8 << 10,
        }
    }
}

/// What a step brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it printed, and the value of an expression at its end; then why it ended, where it did not end by
    /// itself.
    pub output: String,
    /// Bytes of the output that are left out of it.
    pub left_out: u64,
    /// How it ended.
    pub end: StepEnd,
    /// Processor time.
    pub cpu: Duration,
    /// Wall time, without the time in which it waited for a processor.
    pub wall: Duration,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepEnd {
    /// By itself.
    Finished,
    /// With an exception, which the output shows.
    Raised,
    /// The interpreter was ended; what earlier steps have defined is gone.
    Ended(Interruption),
}

/// What ended an interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interruption {
    /// The processor time of a step.
    Cpu,
    /// The wall time of a step.
    Wall,
    /// The memory of the interpreter.
    Memory,
    /// Its processes and threads.
    Processes,
    /// The output of a step.
    Output,
    /// It ended itself, or the kernel did.
    Died,
    /// It was killed for a system call that no program needs.
    DangerousSyscall,
    /// It would not stand still after a step.
    Restless,
    /// The steps, the processor time or the wall time of the episode: there is no further step.
    Episode,
}

impl fmt::Display for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "processor time limit",
            Self::Wall => "time limit",
            Self::Memory => "memory limit",
            Self::Processes => "limit of processes and threads",
            Self::Output => "output limit",
            Self::Died => "the interpreter ended",
            Self::DangerousSyscall => "a system call that is not allowed",
            Self::Restless => "processes that would not stop",
            Self::Episode => "limit of the episode",
        })
    }
}

/// What a session has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionUsage {
    /// Steps.
    pub steps: u32,
    /// Processor time.
    pub cpu: Duration,
    /// Wall time, without the time in which steps waited for a processor.
    pub wall: Duration,
    /// Bytes of output.
    pub output_bytes: u64,
}
