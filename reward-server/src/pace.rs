//! How fast rollouts leave, and when one that was refused shall come back. Pure; time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// The delay while nothing is known about the pace.
pub(crate) const UNKNOWN_PACE_DELAY: Duration = Duration::from_millis(500);
const MIN_RETRY_DELAY: Duration = Duration::from_millis(50);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(5);
/// What the newest interval counts in the smoothed one.
const SMOOTHING: f64 = 0.05;

/// The smoothed time between two departures while there is work, and the last time that somebody was told to
/// return at.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last_departure: Option<Instant>,
    /// Seconds.
    interval: Option<f64>,
    /// When the next one that is refused shall return, at the earliest.
    next_return: Option<Instant>,
}

impl Pace {
    /// Work has come after a time without any, which says nothing about the pace.
    pub(crate) fn wake(&mut self, now: Instant) {
        self.last_departure = Some(now);
    }

    /// A rollout has left.
    pub(crate) fn departed(&mut self, now: Instant) {
        if let Some(last) = self.last_departure.replace(now) {
            let seconds = now.duration_since(last).as_secs_f64();
            let smoothed = self.interval.map(|interval| (1.0 - SMOOTHING) * interval + SMOOTHING * seconds);
            self.interval = smoothed.or(Some(seconds));
        }
    }

    /// When one that is refused shall come back: about half of the `entries` will have left by then, and all
    /// that are refused return one by one, at twice the pace. So they neither flood the server nor leave it
    /// idle, however many they are.
    pub(crate) fn retry_after(&mut self, now: Instant, entries: usize) -> Duration {
        let Some(interval) = self.interval else { return UNKNOWN_PACE_DELAY };
        let earliest = now + bounded_seconds(interval * entries as f64 / 2.0);
        let next = self.next_return.map_or(earliest, |next| next.max(earliest)).min(now + MAX_RETRY_DELAY);
        self.next_return = Some(next + bounded_seconds(interval / 2.0));
        next.duration_since(now).clamp(MIN_RETRY_DELAY, MAX_RETRY_DELAY)
    }
}

fn bounded_seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.min(MAX_RETRY_DELAY.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fifty rollouts in work, of which one leaves every 20 ms.
    fn steady() -> (Pace, Instant) {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..50 {
            now += Duration::from_millis(20);
            pace.departed(now);
        }
        (pace, now)
    }

    #[test]
    fn the_refused_return_one_by_one_after_half_of_the_work() {
        let (mut pace, now) = steady();
        let delays: Vec<f64> = (0..100).map(|_| pace.retry_after(now, 50).as_secs_f64()).collect();
        assert!((0.45..0.55).contains(&delays[0]), "half of 50 at 20 ms each: {}", delays[0]);
        for pair in delays.windows(2) {
            assert!((0.009..0.011).contains(&(pair[1] - pair[0])), "at twice the pace: {pair:?}");
        }
        let longest = (0..10_000).map(|_| pace.retry_after(now, 50)).max();
        assert_eq!(longest, Some(MAX_RETRY_DELAY));
        let later = now + Duration::from_secs(60);
        assert!(pace.retry_after(later, 50).as_secs_f64() < 0.55, "earlier returns are past");
    }

    #[test]
    fn a_time_without_work_says_nothing_about_the_pace() {
        let (mut pace, now) = steady();
        let later = now + Duration::from_secs(600);
        pace.wake(later);
        pace.departed(later + Duration::from_millis(20));
        assert!(pace.retry_after(later, 50).as_secs_f64() < 0.55);
    }
}
