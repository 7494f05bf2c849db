//! A line now and then where no terminal shows a bar, so that whoever reads a log knows what goes on.

use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use tokio::time::Instant;

use crate::say::{say_after_silence, silence, span};

/// Says a line whenever nothing was said for so long, for as long as this lives. Says nothing where standard
/// error is a terminal.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    /// Closed when this ends, which ends the thread.
    _alive: Option<mpsc::Sender<()>>,
}

impl Heartbeat {
    /// Longest time without a line of any command of ours where there is no terminal.
    pub(crate) const INTERVAL: Duration = Duration::from_secs(30);

    /// Says how long the work that begins now has taken.
    pub(crate) fn of_work() -> Self {
        let started = Instant::now();
        Self::new(Self::INTERVAL, move || format!("  at work for {}", span(started.elapsed())))
    }

    /// Says what `line` returns after each silence of `interval`.
    pub(crate) fn new(interval: Duration, line: impl Fn() -> String + Send + 'static) -> Self {
        if std::io::stderr().is_terminal() { Self { _alive: None } } else { Self::plain(interval, line) }
    }

    fn plain(interval: Duration, line: impl Fn() -> String + Send + 'static) -> Self {
        let (alive, ended) = mpsc::channel::<()>();
        // Asked here, so that the silence of a process that has said nothing yet counts from now on.
        let mut wait = interval.saturating_sub(silence());
        let work = move || {
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                wait = say_after_silence(interval, &line);
            }
        };
        // Without a thread nothing is said, and the work goes on.
        let thread = std::thread::Builder::new().name("heartbeat".to_owned()).spawn(work);
        Self { _alive: thread.is_ok().then_some(alive) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::say::say;

    #[test]
    fn a_line_comes_after_each_silence_and_none_when_the_work_has_ended() {
        const INTERVAL: Duration = Duration::from_millis(100);
        let lines = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&lines);
        let heartbeat = Heartbeat::plain(INTERVAL, move || {
            count.fetch_add(1, Ordering::Relaxed);
            "still at work".to_owned()
        });
        let waits_for = |least: u64| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while lines.load(Ordering::Relaxed) < least {
                assert!(Instant::now() < deadline, "no line");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        waits_for(2);
        drop(heartbeat);
        // One that was being said when it ended may still come.
        std::thread::sleep(INTERVAL);
        let said = lines.load(Ordering::Relaxed);
        std::thread::sleep(5 * INTERVAL);
        assert_eq!(lines.load(Ordering::Relaxed), said);
    }

    #[test]
    fn what_is_said_otherwise_puts_the_line_off() {
        let said = say_after_silence(Duration::from_secs(3600), || panic!("nothing is silent"));
        assert!(said <= Duration::from_secs(3600));
        say("a word");
        let wait = say_after_silence(Duration::from_secs(3600), || panic!("a word was just said"));
        assert!(wait > Duration::from_secs(3590), "{wait:?}");
    }
}
