//! Where the run is in its life, and how long a drain may take.

use serde::{Deserialize, Serialize};
use types::Timestamp;

/// Where the run is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Prompts are leased and batches trained.
    Running,
    /// Asked to stop: what is leased is finished or handed back, then a checkpoint is written.
    Draining,
    /// Stopped before the last batch; the journal and the checkpoint allow to go on.
    Stopped,
    /// The last batch is trained and part of a checkpoint.
    Finished,
}

/// How a drain waits for the actors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Drain {
    /// Until this moment.
    WaitsUntil(Timestamp),
    /// No longer: the moment has passed.
    GivenUp,
}

impl Drain {
    /// When waiting ends, while it lasts.
    pub(super) fn deadline(self) -> Option<Timestamp> {
        match self {
            Self::WaitsUntil(deadline) => Some(deadline),
            Self::GivenUp => None,
        }
    }

    /// Gives up once the deadline has passed.
    pub(super) fn expire(&mut self, now: Timestamp) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            *self = Self::GivenUp;
        }
    }
}
