//! Wall time of the phases of a step.

#![expect(clippy::disallowed_types, reason = "a step runs on a plain thread, where no test pauses time")]

use std::time::Instant;

/// Runs from its start on; a step reads it at the end of each phase.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PhaseTimer {
    started: Instant,
}

impl PhaseTimer {
    /// A timer that starts now.
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
