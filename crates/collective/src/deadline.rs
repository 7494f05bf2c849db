//! Time limits: how long is left, and calls that return on time even when what they call does not.

#![expect(clippy::disallowed_types, reason = "waits on OS threads and in C++, where only wall time passes")]

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The longest wait handed to C++, whose clocks overflow far below [`Duration::MAX`].
const WAIT_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// A limit counted from when it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    start: Instant,
    limit: Duration,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self { start: Instant::now(), limit }
    }

    pub(crate) fn waited(&self) -> Duration {
        self.start.elapsed()
    }

    /// Zero once the deadline has passed.
    pub(crate) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.waited())
    }
}

/// Whole milliseconds for C++, at least one: rounding down to zero would mean "for ever" to c10d.
pub(crate) fn milliseconds(duration: Duration) -> i64 {
    let rounded_up = duration.min(WAIT_LIMIT).as_micros().div_ceil(1000).max(1);
    i64::try_from(rounded_up).expect("a year in milliseconds fits i64")
}

/// Why [`call_within`] has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Late {
    #[error("no answer after {0:?}")]
    NotBack(Duration),
    #[error("cannot start a thread: {0}")]
    NoThread(#[from] std::io::Error),
}

/// Runs `call` on a thread of its own and waits at most `limit` for its result. A call that is late is left
/// behind: its thread ends whenever the call does, and what it owns is dropped then.
pub(crate) fn call_within<T, F>(name: &str, limit: Duration, call: F) -> Result<T, Late>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (done, result) = mpsc::sync_channel(1);
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        // The receiver is gone exactly when the call was given up.
        let _ = done.send(call());
    })?;
    result.recv_timeout(limit).map_err(|_| Late::NotBack(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_round_up_and_saturate() {
        assert_eq!(milliseconds(Duration::ZERO), 1);
        assert_eq!(milliseconds(Duration::from_micros(1001)), 2);
        assert_eq!(milliseconds(Duration::from_secs(3)), 3000);
        assert_eq!(milliseconds(Duration::MAX), 365 * 24 * 3600 * 1000);
    }

    #[test]
    fn a_late_call_is_left_behind() {
        let (release, held) = mpsc::channel::<()>();
        let deadline = Deadline::after(Duration::from_millis(20));
        let late = call_within("late", Duration::from_millis(20), move || held.recv());
        assert!(matches!(late, Err(Late::NotBack(_))));
        assert!(deadline.left().is_zero() && deadline.waited() < Duration::from_secs(5));
        drop(release);
        assert_eq!(call_within("prompt", Duration::from_secs(5), || 7).expect("in time"), 7);
    }
}
