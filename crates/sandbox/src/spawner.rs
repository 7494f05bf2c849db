//! The thread that starts zygotes and reaps them.
//!
//! It is one thread for the whole life of a grader because a helper dies with the thread that started it: a
//! zygote started by a caller's thread would die with that caller.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::clock::Moment;
use crate::pool::{Pool, ZygoteKind};
use crate::tier::StepFailure;
use crate::zygote::{Dying, Imports, Start, Starting, ZygoteLauncher};

/// How often processes on their way out are looked at, while there are any.
const REAP_INTERVAL: Duration = Duration::from_millis(5);
/// How often starting ones are checked against their timeout.
const START_CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// From a failed start to the next one; doubled each time, up to the longest.
const MIN_RESTART_DELAY: Duration = Duration::from_millis(50);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(2);

/// Keeps the pool filled until it is closed, then reaps until nothing of it is left.
pub(crate) struct ZygoteSpawner {
    pool: Arc<Pool>,
    launcher: ZygoteLauncher,
    cold: bool,
    start_timeout: Duration,
    starting: Vec<(ZygoteKind, Starting)>,
    dying: Vec<Dying>,
    /// Starts owed to the pool, of each kind.
    owed: [usize; 2],
    restart_delay: Duration,
    not_before: Moment,
}

impl ZygoteSpawner {
    pub(crate) fn new(
        pool: Arc<Pool>,
        launcher: ZygoteLauncher,
        cold: bool,
        start_timeout: Duration,
    ) -> Self {
        Self {
            pool,
            launcher,
            cold,
            start_timeout,
            starting: Vec::new(),
            dying: Vec::new(),
            owed: [0; 2],
            restart_delay: Duration::ZERO,
            not_before: Moment::now(),
        }
    }

    /// Runs until the pool is closed and everything is reaped.
    ///
    /// # Errors
    /// Where the pool's eventfd cannot be duplicated; nothing has been started then.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let wake = self.pool.spawner_fd()?;
        loop {
            let demand = self.pool.demand();
            self.dying.extend(demand.retired.into_iter().map(crate::zygote::Zygote::dismiss));
            for kind in ZygoteKind::BOTH {
                self.owed[kind as usize] += demand.start[kind as usize];
            }
            self.advance();
            self.dying.retain_mut(|dying| !dying.is_gone());
            if demand.closed {
                for (_, starting) in self.starting.drain(..) {
                    self.dying.push(starting.dismiss());
                }
                if self.dying.is_empty() {
                    return Ok(());
                }
            } else if Moment::now() >= self.not_before {
                self.launch();
            }
            self.wait(&wake);
        }
    }

    fn launch(&mut self) {
        for kind in ZygoteKind::BOTH {
            while self.owed[kind as usize] > 0 {
                self.owed[kind as usize] -= 1;
                let imports =
                    if kind == ZygoteKind::Candidate && self.cold { Imports::None } else { Imports::Usual };
                match self.launcher.launch(imports) {
                    Ok(starting) => self.starting.push((kind, starting)),
                    Err(error) => {
                        self.failed(kind, StepFailure::not_started(&error));
                        return;
                    }
                }
            }
        }
    }

    /// Moves every starting zygote as far as it has come.
    fn advance(&mut self) {
        for (kind, starting) in std::mem::take(&mut self.starting) {
            match starting.advance(self.start_timeout) {
                Start::Pending(starting) => self.starting.push((kind, starting)),
                Start::Ready(zygote) => {
                    self.restart_delay = Duration::ZERO;
                    self.pool.started(kind, zygote);
                }
                Start::Failed(zygote, failure) => {
                    self.dying.push(zygote.dismiss());
                    self.failed(kind, failure);
                }
            }
        }
    }

    fn failed(&mut self, kind: ZygoteKind, failure: StepFailure) {
        self.restart_delay = (self.restart_delay * 2).clamp(MIN_RESTART_DELAY, MAX_RESTART_DELAY);
        self.not_before = Moment::now() + self.restart_delay;
        self.pool.not_started(kind, failure);
    }

    /// Waits for new demand, for a starting zygote, or for the next thing that is due.
    fn wait(&self, wake: &OwnedFd) {
        let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.starting.iter().map(|(_, starting)| PollFd::new(starting.fd(), PollFlags::POLLIN)));
        let owes = self.owed.iter().any(|count| *count > 0);
        let due = [
            (!self.dying.is_empty()).then_some(REAP_INTERVAL),
            (!self.starting.is_empty()).then_some(START_CHECK_INTERVAL),
            owes.then(|| self.not_before.saturating_duration_since(Moment::now()).max(REAP_INTERVAL)),
        ];
        let timeout = due
            .into_iter()
            .flatten()
            .min()
            .map_or(PollTimeout::NONE, |time| PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX));
        // An interrupted or failed wait only means looking earlier.
        let _ = poll(&mut fds, timeout);
    }
}
