//! The room on the journal's disk: looked at now and then, so that nothing new is begun when there is little.
//!
//! What is in flight still needs room: its scores, and every batch until a checkpoint holds it. That is what
//! the reserve is for. When even that is used up the loop waits, with what is durable as it was.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics;

/// Between two lines of the log while there is no room.
const WARN_INTERVAL: Duration = Duration::from_secs(30);

/// What is known of the room.
#[derive(Debug)]
pub(crate) struct DiskRoom {
    /// The journal's folder.
    path: PathBuf,
    /// Bytes below which nothing new is begun.
    reserve: u64,
    is_short: bool,
    warned_at: Option<Instant>,
}

impl DiskRoom {
    /// The room for a journal.
    pub(crate) fn new(path: PathBuf, reserve: u64) -> Self {
        Self { path, reserve, is_short: false, warned_at: None }
    }

    /// Looks at the disk; yields what is to be told of it if that has changed: why nothing new is begun, or
    /// that there is room again.
    pub(crate) fn look(&mut self) -> Option<Option<String>> {
        let free = service::free_bytes(&self.path).ok()?;
        metrics::journal_room(free);
        // With some distance, so that a disk at the edge does not stop and start the run all the time.
        let enough = if self.is_short { self.reserve.saturating_add(self.reserve / 8) } else { self.reserve };
        let is_short = free < enough;
        if is_short == self.is_short {
            return None;
        }
        self.is_short = is_short;
        if is_short {
            let said = self.said(free);
            tracing::warn!(path = %self.path.display(), free_bytes = free, reserve_bytes = self.reserve, "{said}");
            Some(Some(said))
        } else {
            self.say_enough(free);
            Some(None)
        }
    }

    /// A write has failed for want of room; yields what people are told.
    pub(crate) fn is_full(&mut self, error: &dyn std::error::Error) -> String {
        let free = service::free_bytes(&self.path).unwrap_or(0);
        metrics::journal_room(free);
        metrics::journal_full(true);
        if self.warned_at.is_none_or(|moment| moment.elapsed() >= WARN_INTERVAL) {
            self.warned_at = Some(Instant::now());
            tracing::warn!(
                path = %self.path.display(),
                free_bytes = free,
                %error,
                "the journal's disk is full: the run waits for room"
            );
        }
        format!("room on the disk of the journal {}: {free} bytes are free", self.path.display())
    }

    /// A write for which there was no room has succeeded.
    pub(crate) fn has_written(&mut self) {
        if self.warned_at.take().is_some() {
            metrics::journal_full(false);
            let free = service::free_bytes(&self.path).unwrap_or(0);
            self.say_enough(free);
        }
    }

    fn say_enough(&self, free: u64) {
        tracing::info!(path = %self.path.display(), free_bytes = free, "the journal's disk has room: the run goes on");
    }

    fn said(&self, free: u64) -> String {
        format!(
            "room on the disk of the journal {}: {free} bytes are free, and below journal_reserve_bytes = {} nothing new \
             is begun",
            self.path.display(),
            self.reserve
        )
    }
}
