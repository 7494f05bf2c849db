//! Waiting longer after each failure, with jitter, so that many clients do not return at once.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

/// Exponential back-off with full jitter (Brooker, "Exponential Backoff and Jitter", 2015): the k-th pause is
/// drawn uniformly from the upper half of `[0, min(max, first * 2^k)]`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Pauses from about `first` to at most `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, failures: 0 }
    }

    /// The pause after one more failure.
    pub fn next_pause(&mut self) -> Duration {
        let ceiling = self.first.saturating_mul(2u32.saturating_pow(self.failures)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        // RandomState is seeded by the operating system; jitter needs no better randomness.
        let random = RandomState::new().hash_one(self.failures);
        let share = 0.5 + 0.5 * (random >> 11) as f64 / (1u64 << 53) as f64;
        ceiling.mul_f64(share)
    }

    /// After a success the pauses start anew.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_bound_and_start_anew() {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut backoff = Backoff::new(first, max);
        for failures in 0..70u32 {
            let ceiling = first.saturating_mul(2u32.saturating_pow(failures)).min(max);
            let pause = backoff.next_pause();
            assert!(pause <= ceiling && pause >= ceiling / 2, "pause {failures} is {pause:?}");
        }
        backoff.reset();
        assert!(backoff.next_pause() <= first);
    }
}
