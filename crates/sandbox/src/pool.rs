//! Ready zygotes, handed out one grading at a time.
//!
//! Callers and the keeper thread meet here under one lock:
//!
//! | who | waits for | woken by |
//! |---|---|---|
//! | caller | a free worker and an idle zygote of each kind it needs | a returned lease, a zygote become ready |
//! | keeper | something to start or to reap | a returned lease, [`Pool::close`] |
//!
//! Bounds: at most `workers` leases are out and at most `max_waiting` callers wait, each no longer than its deadline.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::clock::Moment;
use crate::config::GraderConfig;
use crate::error::Error;
use crate::tier::StepFailure;
use crate::zygote::Zygote;

/// What a zygote is kept for. Testers are always warm: they run the problem's own tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Candidate = 0,
    Tester = 1,
}

impl Kind {
    pub(crate) const BOTH: [Self; 2] = [Self::Candidate, Self::Tester];
}

/// How many zygotes of a kind there are, and what for.
#[derive(Debug, Default)]
struct Shelf {
    idle: Vec<Zygote>,
    /// Idle, leased or starting.
    alive: usize,
    target: usize,
    recycle_after: u32,
}

#[derive(Debug, Default)]
struct State {
    shelves: [Shelf; 2],
    retired: Vec<Zygote>,
    busy: usize,
    waiting: usize,
    closed: bool,
    last_failure: Option<StepFailure>,
    counts: PoolCounts,
}

/// Zygotes over the pool's life.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PoolCounts {
    pub(crate) started: u64,
    pub(crate) start_failures: u64,
    pub(crate) recycled: u64,
    pub(crate) discarded: u64,
    pub(crate) idle: [usize; 2],
    pub(crate) busy: usize,
    pub(crate) waiting: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pool {
    state: Mutex<State>,
    /// Callers wait here.
    changed: Condvar,
    /// The keeper polls this.
    keeper: EventFd,
    workers: usize,
    max_waiting: usize,
}

/// The keeper's orders.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    /// How many to start, of each kind.
    pub(crate) start: [usize; 2],
    /// To be reaped.
    pub(crate) retired: Vec<Zygote>,
    /// The pool is closed: start none, reap all.
    pub(crate) closed: bool,
}

impl Pool {
    pub(crate) fn new(config: &GraderConfig) -> Result<Arc<Self>, Error> {
        let keeper = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::io("create an eventfd")(errno.into()))?;
        let mut state = State::default();
        // A spare lets a worker go on while a used-up zygote is replaced; cold candidates are used up by every run.
        let candidates = if config.cold { config.workers * 2 } else { config.workers + 1 };
        let once = if config.cold { 1 } else { config.recycle_after };
        for (kind, target, recycle_after) in
            [(Kind::Candidate, candidates, once), (Kind::Tester, config.workers + 1, config.recycle_after)]
        {
            state.shelves[kind as usize] = Shelf { target, recycle_after, ..Shelf::default() };
        }
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            keeper,
            workers: config.workers,
            max_waiting: config.max_waiting,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a worker with the zygotes it needs.
    pub(crate) fn lease(self: &Arc<Self>, kinds: &[Kind], deadline: Duration) -> Result<Lease, Error> {
        let started = Moment::now();
        let mut state = self.lock();
        if state.waiting >= self.max_waiting {
            return Err(Error::Overloaded {
                workers: self.workers,
                waiting: state.waiting,
                waited: Duration::ZERO,
            });
        }
        state.waiting += 1;
        loop {
            if state.closed {
                state.waiting -= 1;
                return Err(Error::Closed);
            }
            let ready = kinds.iter().all(|kind| !state.shelves[*kind as usize].idle.is_empty());
            if ready && state.busy < self.workers {
                let zygotes =
                    kinds.iter().filter_map(|kind| Some((*kind, state.shelves[*kind as usize].idle.pop()?)));
                let zygotes = zygotes.collect();
                state.waiting -= 1;
                state.busy += 1;
                return Ok(Lease { pool: Arc::clone(self), zygotes, healthy: false });
            }
            let waited = started.elapsed();
            let Some(left) = deadline.checked_sub(waited).filter(|left| !left.is_zero()) else {
                state.waiting -= 1;
                return Err(match &state.last_failure {
                    Some(failure) if !ready => Error::Unavailable { waited, reason: failure.to_string() },
                    _ => Error::Overloaded { workers: self.workers, waiting: state.waiting, waited },
                });
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn give_back(&self, zygotes: Vec<(Kind, Zygote)>, healthy: bool) {
        let mut state = self.lock();
        state.busy -= 1;
        let mut retired = false;
        for (kind, zygote) in zygotes {
            let shelf = &mut state.shelves[kind as usize];
            let used_up = zygote.runs >= shelf.recycle_after;
            if healthy && !used_up {
                shelf.idle.push(zygote);
                continue;
            }
            shelf.alive -= 1;
            if healthy {
                state.counts.recycled += 1;
            } else {
                state.counts.discarded += 1;
            }
            state.retired.push(zygote);
            retired = true;
        }
        drop(state);
        self.changed.notify_all();
        if retired {
            self.wake_keeper();
        }
    }

    fn wake_keeper(&self) {
        // Only a counter at its maximum makes this fail, and then the keeper is awake anyway.
        let _ = self.keeper.write(1);
    }

    /// Ends the leasing; the keeper then reaps everything.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
        self.wake_keeper();
    }

    pub(crate) fn counts(&self) -> PoolCounts {
        let state = self.lock();
        let idle = Kind::BOTH.map(|kind| state.shelves[kind as usize].idle.len());
        PoolCounts { idle, busy: state.busy, waiting: state.waiting, ..state.counts }
    }

    /// For the keeper: readable when there are orders.
    pub(crate) fn keeper_fd(&self) -> std::io::Result<OwnedFd> {
        self.keeper.as_fd().try_clone_to_owned()
    }

    /// For the keeper: what to do now. What it is told to start counts as alive from here on.
    pub(crate) fn orders(&self) -> Orders {
        let _ = self.keeper.read();
        let mut state = self.lock();
        let mut orders =
            Orders { closed: state.closed, retired: std::mem::take(&mut state.retired), ..Orders::default() };
        for kind in Kind::BOTH {
            let shelf = &mut state.shelves[kind as usize];
            if orders.closed {
                let idle = std::mem::take(&mut shelf.idle);
                shelf.alive -= idle.len();
                orders.retired.extend(idle);
            } else {
                orders.start[kind as usize] = shelf.target.saturating_sub(shelf.alive);
                shelf.alive = shelf.alive.max(shelf.target);
            }
        }
        orders
    }

    /// For the keeper: a start has succeeded.
    pub(crate) fn started(&self, kind: Kind, zygote: Zygote) {
        let mut state = self.lock();
        state.counts.started += 1;
        state.last_failure = None;
        state.shelves[kind as usize].idle.push(zygote);
        drop(state);
        self.changed.notify_all();
    }

    /// For the keeper: a start has failed.
    pub(crate) fn not_started(&self, kind: Kind, failure: StepFailure) {
        let mut state = self.lock();
        state.counts.start_failures += 1;
        state.last_failure = Some(failure);
        state.shelves[kind as usize].alive -= 1;
        drop(state);
        self.changed.notify_all();
    }
}

/// The right to run guests, with the zygotes for them. Dropped without [`Lease::healthy`], its zygotes are replaced.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: Arc<Pool>,
    zygotes: Vec<(Kind, Zygote)>,
    healthy: bool,
}

impl Lease {
    /// The zygotes, in the order in which they were asked for.
    pub(crate) fn zygotes(&mut self) -> impl Iterator<Item = &mut Zygote> {
        self.zygotes.iter_mut().map(|(_, zygote)| zygote)
    }

    /// Returns the zygotes for further use.
    pub(crate) fn healthy(mut self) {
        self.healthy = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.zygotes), self.healthy);
    }
}
