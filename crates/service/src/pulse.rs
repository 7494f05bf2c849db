//! Whether the work of a process goes round, for `/health`: a process whose loop is stuck answers, and works
//! no more.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Beaten by the loop that does the work. Where nobody has beaten it yet, the process is alive as long as it
/// answers.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<Mutex<Option<Beat>>>);

#[derive(Debug, Clone, Copy)]
struct Beat {
    at: Instant,
    allowed: Duration,
}

impl Pulse {
    /// The work goes round; it does again within this time.
    pub fn beat(&self, allowed: Duration) {
        *self.last() = Some(Beat { at: Instant::now(), allowed });
    }

    /// The work is over: no beat is expected any more.
    pub fn rest(&self) {
        *self.last() = None;
    }

    /// How long there was no beat, and how long that may take, where it was longer.
    pub(crate) fn overdue(&self) -> Option<(Duration, Duration)> {
        let Beat { at, allowed } = (*self.last())?;
        Some((at.elapsed(), allowed)).filter(|(silent, _)| *silent > allowed)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Beat>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_beat_in_time_is_overdue_until_the_next_beat() {
        let pulse = Pulse::default();
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(pulse.overdue(), None, "nobody said that there is a loop");
        pulse.beat(Duration::from_secs(5));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(pulse.overdue(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(pulse.overdue(), Some((Duration::from_secs(6), Duration::from_secs(5))));
        pulse.beat(Duration::from_secs(60));
        assert_eq!(pulse.overdue(), None);
        pulse.rest();
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(pulse.overdue(), None);
    }
}
