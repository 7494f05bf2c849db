//! Ready zygotes, handed out one grading at a time.
//!
//! Callers and the spawner's thread meet here under one lock:
//!
//! | who | waits for | woken by |
//! |---|---|---|
//! | caller | a free worker and an idle zygote of each kind it needs | a returned lease, a zygote become ready |
//! | spawner | something to start or to reap | a returned lease, [`Pool::close`] |
//!
//! Bounds: at most `workers` leases are out and at most `max_waiting` callers wait, each no longer than its
//! timeout.

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
pub(crate) enum ZygoteKind {
    Candidate = 0,
    Tester = 1,
}

impl ZygoteKind {
    pub(crate) const BOTH: [Self; 2] = [Self::Candidate, Self::Tester];
}

/// How many zygotes of a kind there are, and what for.
#[derive(Debug, Default)]
struct ZygoteStock {
    idle: Vec<Zygote>,
    /// Idle, leased or starting.
    alive: usize,
    target: usize,
    max_runs_per_zygote: u32,
}

#[derive(Debug, Default)]
struct State {
    stocks: [ZygoteStock; 2],
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

/// Zygotes of both kinds, and the queue of callers that want some.
#[derive(Debug)]
pub(crate) struct Pool {
    state: Mutex<State>,
    /// Callers wait here.
    changed: Condvar,
    /// Readable for the spawner when it has something to do.
    spawner: EventFd,
    workers: usize,
    max_waiting: usize,
}

/// What the pool wants the spawner to do.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// How many to start, of each kind.
    pub(crate) start: [usize; 2],
    /// To be reaped.
    pub(crate) retired: Vec<Zygote>,
    /// The pool is closed: start none, reap all.
    pub(crate) closed: bool,
}

impl Pool {
    /// A pool that keeps zygotes of these kinds.
    pub(crate) fn new(config: &GraderConfig, kinds: &[ZygoteKind]) -> Result<Arc<Self>, Error> {
        let spawner = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::io("create an eventfd")(errno.into()))?;
        let mut state = State::default();
        // A spare lets a worker go on while a used-up zygote is replaced; cold candidates are used up by
        // every run.
        let candidates = if config.cold { config.workers * 2 } else { config.workers + 1 };
        let once = if config.cold { 1 } else { config.max_runs_per_zygote };
        for (kind, target, max_runs_per_zygote) in [
            (ZygoteKind::Candidate, candidates, once),
            (ZygoteKind::Tester, config.workers + 1, config.max_runs_per_zygote),
        ] {
            let target = if kinds.contains(&kind) { target } else { 0 };
            state.stocks[kind as usize] =
                ZygoteStock { target, max_runs_per_zygote, ..ZygoteStock::default() };
        }
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            spawner,
            workers: config.workers,
            max_waiting: config.max_waiting,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a worker with the zygotes it needs.
    pub(crate) fn lease(self: &Arc<Self>, kinds: &[ZygoteKind], timeout: Duration) -> Result<Lease, Error> {
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
            let ready = kinds.iter().all(|kind| !state.stocks[*kind as usize].idle.is_empty());
            if ready && state.busy < self.workers {
                let zygotes =
                    kinds.iter().filter_map(|kind| Some((*kind, state.stocks[*kind as usize].idle.pop()?)));
                let zygotes = zygotes.collect();
                state.waiting -= 1;
                state.busy += 1;
                return Ok(Lease { pool: Arc::clone(self), zygotes, condition: Condition::Suspect });
            }
            let waited = started.elapsed();
            let Some(left) = timeout.checked_sub(waited).filter(|left| !left.is_zero()) else {
                state.waiting -= 1;
                return Err(match &state.last_failure {
                    Some(failure) if !ready => Error::Unavailable { waited, reason: failure.to_string() },
                    _ => Error::Overloaded { workers: self.workers, waiting: state.waiting, waited },
                });
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn give_back(&self, zygotes: Vec<(ZygoteKind, Zygote)>, condition: Condition) {
        let mut state = self.lock();
        state.busy -= 1;
        let mut retired = false;
        for (kind, zygote) in zygotes {
            let stock = &mut state.stocks[kind as usize];
            let used_up = zygote.runs >= stock.max_runs_per_zygote;
            if condition == Condition::Unchanged && !used_up {
                stock.idle.push(zygote);
                continue;
            }
            stock.alive -= 1;
            match condition {
                Condition::Unchanged => state.counts.recycled += 1,
                Condition::Suspect => state.counts.discarded += 1,
            }
            state.retired.push(zygote);
            retired = true;
        }
        drop(state);
        self.changed.notify_all();
        if retired {
            self.wake_spawner();
        }
    }

    fn wake_spawner(&self) {
        // Only a counter at its maximum makes this fail, and then the spawner is awake anyway.
        let _ = self.spawner.write(1);
    }

    /// Ends the leasing; the spawner then reaps everything.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
        self.wake_spawner();
    }

    pub(crate) fn counts(&self) -> PoolCounts {
        let state = self.lock();
        let idle = ZygoteKind::BOTH.map(|kind| state.stocks[kind as usize].idle.len());
        PoolCounts { idle, busy: state.busy, waiting: state.waiting, ..state.counts }
    }

    /// For the spawner: readable when there may be new demand.
    pub(crate) fn spawner_fd(&self) -> std::io::Result<OwnedFd> {
        self.spawner.as_fd().try_clone_to_owned()
    }

    /// For the spawner: what to do now. What it is told to start counts as alive from here on.
    pub(crate) fn demand(&self) -> Demand {
        let _ = self.spawner.read();
        let mut state = self.lock();
        let mut demand =
            Demand { closed: state.closed, retired: std::mem::take(&mut state.retired), ..Demand::default() };
        for kind in ZygoteKind::BOTH {
            let stock = &mut state.stocks[kind as usize];
            if demand.closed {
                let idle = std::mem::take(&mut stock.idle);
                stock.alive -= idle.len();
                demand.retired.extend(idle);
            } else {
                demand.start[kind as usize] = stock.target.saturating_sub(stock.alive);
                stock.alive = stock.alive.max(stock.target);
            }
        }
        demand
    }

    /// For the spawner: a start has succeeded.
    pub(crate) fn started(&self, kind: ZygoteKind, zygote: Zygote) {
        let mut state = self.lock();
        state.counts.started += 1;
        state.last_failure = None;
        state.stocks[kind as usize].idle.push(zygote);
        drop(state);
        self.changed.notify_all();
    }

    /// For the spawner: a start has failed.
    pub(crate) fn not_started(&self, kind: ZygoteKind, failure: StepFailure) {
        let mut state = self.lock();
        state.counts.start_failures += 1;
        state.last_failure = Some(failure);
        state.stocks[kind as usize].alive -= 1;
        drop(state);
        self.changed.notify_all();
    }
}

/// How zygotes come back from a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    /// As they were: they may be used again.
    Unchanged,
    /// Something went wrong with them: they are replaced.
    Suspect,
}

/// The right to run guests, with the zygotes for them. Dropped without [`Lease::healthy`], its zygotes are
/// replaced.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: Arc<Pool>,
    zygotes: Vec<(ZygoteKind, Zygote)>,
    condition: Condition,
}

impl Lease {
    /// The zygotes, in the order in which they were asked for.
    pub(crate) fn zygotes(&mut self) -> impl Iterator<Item = &mut Zygote> {
        self.zygotes.iter_mut().map(|(_, zygote)| zygote)
    }

    /// Returns the zygotes for further use.
    pub(crate) fn healthy(mut self) {
        self.condition = Condition::Unchanged;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.zygotes), self.condition);
    }
}
