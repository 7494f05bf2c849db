//! The thread that starts zygotes and reaps them.
//!
//! It is one thread for the whole life of a grader because a helper dies with the thread that started it: a zygote started
//! by a caller's thread would die with that caller.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::clock::Moment;
use crate::pool::{Kind, Pool};
use crate::tier::StepFailure;
use crate::zygote::{Dying, Recipe, Start, Starting};

/// How often processes on their way out are looked at, while there are any.
const REAP: Duration = Duration::from_millis(5);
/// How often starting ones are checked against their deadline.
const CHECK: Duration = Duration::from_millis(200);
/// Between failed starts; doubled each time up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Keeps the pool filled until it is closed, then until nothing of it is left.
pub(crate) struct Keeper {
    pool: Arc<Pool>,
    recipe: Recipe,
    cold: bool,
    start_deadline: Duration,
    starting: Vec<(Kind, Starting)>,
    dying: Vec<Dying>,
    /// Starts owed to the pool, of each kind.
    owed: [usize; 2],
    pause: Duration,
    not_before: Moment,
}

impl Keeper {
    pub(crate) fn new(pool: Arc<Pool>, recipe: Recipe, cold: bool, start_deadline: Duration) -> Self {
        Self {
            pool,
            recipe,
            cold,
            start_deadline,
            starting: Vec::new(),
            dying: Vec::new(),
            owed: [0; 2],
            pause: Duration::ZERO,
            not_before: Moment::now(),
        }
    }

    /// Runs until the pool is closed and everything is reaped.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let wake = self.pool.keeper_fd()?;
        loop {
            let orders = self.pool.orders();
            self.dying.extend(orders.retired.into_iter().map(crate::zygote::Zygote::dismiss));
            for kind in Kind::BOTH {
                self.owed[kind as usize] += orders.start[kind as usize];
            }
            self.advance();
            self.dying.retain_mut(|dying| !dying.is_gone());
            if orders.closed {
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
        for kind in Kind::BOTH {
            while self.owed[kind as usize] > 0 {
                self.owed[kind as usize] -= 1;
                match self.recipe.launch(kind == Kind::Tester || !self.cold) {
                    Ok(starting) => self.starting.push((kind, starting)),
                    Err(error) => {
                        let errno = error.raw_os_error().unwrap_or(0);
                        let step = "start sluice-sandbox-init".to_owned();
                        self.failed(kind, StepFailure { step, errno, detail: error.to_string() });
                        return;
                    }
                }
            }
        }
    }

    /// Moves every starting zygote as far as it has come.
    fn advance(&mut self) {
        for (kind, starting) in std::mem::take(&mut self.starting) {
            match starting.advance(self.start_deadline) {
                Start::Pending(starting) => self.starting.push((kind, starting)),
                Start::Ready(zygote) => {
                    self.pause = Duration::ZERO;
                    self.pool.started(kind, zygote);
                }
                Start::Failed(zygote, failure) => {
                    self.dying.push(zygote.dismiss());
                    self.failed(kind, failure);
                }
            }
        }
    }

    fn failed(&mut self, kind: Kind, failure: StepFailure) {
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        self.not_before = Moment::now() + self.pause;
        self.pool.not_started(kind, failure);
    }

    /// Waits for orders, for a starting zygote, or for the next thing that is due.
    fn wait(&self, wake: &OwnedFd) {
        let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.starting.iter().map(|(_, starting)| PollFd::new(starting.fd(), PollFlags::POLLIN)));
        let owes = self.owed.iter().any(|count| *count > 0);
        let due = [
            (!self.dying.is_empty()).then_some(REAP),
            (!self.starting.is_empty()).then_some(CHECK),
            owes.then(|| self.not_before.saturating_duration_since(Moment::now()).max(REAP)),
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
