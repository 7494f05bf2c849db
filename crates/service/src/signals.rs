//! How a process is told to stop.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// SIGTERMs so close together say one thing: a scheduler sends one to the whole job, and the job's script
/// passes it on. Whoever presses Ctrl-C twice means it.
const SAME_STOP: Duration = Duration::from_secs(2);

/// SIGINT (Ctrl-C) and SIGTERM, as a stream that lives as long as the work: a signal that comes while nobody
/// waits is kept for the next call. `tokio::signal::ctrl_c()` made anew in a loop would lose it.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// When the last SIGTERM came.
    terminated: Option<Instant>,
}

impl StopSignals {
    /// Takes over both signals: from now on they do not end the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())?, terminated: None })
    }

    /// Waits for the next one. Several that come before it is called may count as one, and SIGTERMs within
    /// two seconds do. Cancel safe.
    pub async fn next(&mut self) {
        loop {
            tokio::select! {
                Some(()) = self.interrupt.recv() => return,
                Some(()) = self.terminate.recv() => {
                    let before = self.terminated.replace(Instant::now());
                    if before.is_none_or(|at| at.elapsed() >= SAME_STOP) {
                        return;
                    }
                }
                // Neither stream ends while the process lives.
                else => return std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal, raise};

    use super::{SAME_STOP, StopSignals};

    #[tokio::test]
    async fn a_signal_that_comes_while_nobody_waits_is_not_lost() {
        let mut stop = StopSignals::listen().unwrap();
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let nobody = tokio::time::timeout(Duration::from_millis(20), stop.next()).await;
            assert!(nobody.is_err(), "told to stop before {signal}");
            raise(signal).unwrap();
            // Time for the runtime to hand it to whoever waits: nobody does.
            tokio::time::sleep(Duration::from_millis(50)).await;
            tokio::time::timeout(Duration::from_secs(5), stop.next()).await.unwrap();
        }
        // A second SIGTERM in the same moment is the same one; a later one is another.
        raise(Signal::SIGTERM).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(200), stop.next()).await.is_err());
        tokio::time::sleep(SAME_STOP).await;
        raise(Signal::SIGTERM).unwrap();
        tokio::time::timeout(Duration::from_secs(5), stop.next()).await.unwrap();
    }
}
