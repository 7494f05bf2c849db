//! A circuit breaker (Nygard, "Release It!", 2007): after so many failures in a row nothing is sent for a
//! while, then one probe at a time, until one succeeds. Pure; time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// Whether a remote service is worth a request.
#[derive(Debug)]
pub(crate) struct Breaker {
    max_failures: u32,
    delay: Duration,
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    /// A closed breaker that opens for `delay` after `max_failures` failures in a row.
    pub(crate) fn new(max_failures: u32, delay: Duration) -> Self {
        Self { max_failures, delay, failures: 0, open_until: None }
    }

    /// Asks leave to send a request.
    ///
    /// # Errors
    /// While the breaker is open: when to ask again. Of those who ask after that, one gets leave.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), Instant> {
        match self.open_until {
            Some(until) if now < until => Err(until),
            Some(_) => {
                // The probe. The others wait one delay more, unless it succeeds.
                self.open_until = Some(now + self.delay);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A request succeeded.
    pub(crate) fn succeeded(&mut self) {
        (self.failures, self.open_until) = (0, None);
    }

    /// A request failed.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.max_failures {
            self.open_until = Some(now + self.delay);
        }
    }

    /// How long nobody gets leave; none when somebody would.
    pub(crate) fn open_for(&self, now: Instant) -> Option<Duration> {
        self.open_until.filter(|until| now < *until).map(|until| until - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN_DELAY: Duration = Duration::from_secs(5);

    #[test]
    fn it_opens_after_failures_in_a_row_and_probes_with_one() {
        let mut breaker = Breaker::new(3, OPEN_DELAY);
        let start = Instant::now();
        breaker.failed(start);
        breaker.failed(start);
        breaker.succeeded();
        breaker.failed(start);
        breaker.failed(start);
        assert_eq!((breaker.admit(start), breaker.open_for(start)), (Ok(()), None), "not in a row");
        breaker.failed(start);
        assert_eq!(breaker.admit(start), Err(start + OPEN_DELAY));
        assert_eq!(breaker.open_for(start + OPEN_DELAY / 5), Some(OPEN_DELAY * 4 / 5));
        let later = start + OPEN_DELAY;
        assert_eq!(breaker.open_for(later), None, "somebody has to come and probe");
        assert_eq!(breaker.admit(later), Ok(()), "the probe");
        assert_eq!(breaker.admit(later), Err(later + OPEN_DELAY), "nobody else");
        breaker.succeeded();
        assert_eq!((breaker.admit(later), breaker.open_for(later)), (Ok(()), None));
    }

    #[test]
    fn a_failed_probe_opens_it_again() {
        let mut breaker = Breaker::new(1, OPEN_DELAY);
        let start = Instant::now();
        breaker.failed(start);
        let probed = start + OPEN_DELAY * 2;
        assert_eq!(breaker.admit(probed), Ok(()));
        breaker.failed(probed + OPEN_DELAY / 2);
        assert_eq!(breaker.admit(probed + OPEN_DELAY), Err(probed + OPEN_DELAY / 2 + OPEN_DELAY));
    }
}
