//! Ranks as threads of this process, each with a connection and a group of its own.

use std::panic::resume_unwind;
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Duration;

use collective::{Backend, GlooAddress, GroupConfig, ProcessGroup, Reduce, Result, Store, Work};
use tch::{Device, Kind, Tensor};

/// Longer than anything that goes well here takes.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn serve() -> Store {
    Store::serve("127.0.0.1", 0, TIMEOUT).expect("serve a store on loopback")
}

pub(crate) fn connect(store: &Store) -> Store {
    Store::connect(store.host(), store.port(), TIMEOUT).expect("connect to the store")
}

pub(crate) fn config(name: &str, rank: usize, world_size: usize) -> GroupConfig {
    GroupConfig {
        name: name.to_owned(),
        rank,
        world_size,
        backend: Backend::Gloo(GlooAddress::TowardsStore),
        timeout: TIMEOUT,
        join_timeout: TIMEOUT,
    }
}

/// Runs `rank` on `world_size` threads, each with its rank and a store; returns the results in order of rank.
pub(crate) fn on_threads<T: Send>(world_size: usize, rank: impl Fn(usize, Store) -> T + Sync) -> Vec<T> {
    let server = serve();
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|own| {
                let (store, rank) = (connect(&server), &rank);
                scope.spawn(move || rank(own, store))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Runs `work` in a group of `world_size` threads with the given operation timeout.
pub(crate) fn in_group<T: Send>(
    world_size: usize,
    timeout: Duration,
    work: impl Fn(&ProcessGroup) -> T + Sync,
) -> Vec<T> {
    on_threads(world_size, |rank, store| {
        let group = join(&store, GroupConfig { timeout, ..config("group", rank, world_size) });
        work(&group.expect("join the group"))
    })
}

pub(crate) fn join(store: &Store, config: GroupConfig) -> Result<ProcessGroup> {
    ProcessGroup::new(store, config)
}

/// Returns when all ranks are here.
///
/// # Errors
/// When one of them never comes, or the group has ended.
pub(crate) fn barrier(group: &ProcessGroup) -> Result<()> {
    group.all_reduce(&mut one(), Reduce::Sum)
}

/// As [`barrier`], not yet waited for.
///
/// # Errors
/// When the group has ended.
pub(crate) fn start_barrier(group: &ProcessGroup) -> Result<Work> {
    group.start_all_reduce(&mut one(), Reduce::Sum)
}

fn one() -> Tensor {
    Tensor::ones([1], (Kind::Float, Device::Cpu))
}

/// Where a number of threads wait for each other, though not for one that has panicked.
pub(crate) struct Meeting {
    expected: usize,
    arrivals: Mutex<usize>,
    changed: Condvar,
}

impl Meeting {
    pub(crate) fn of(expected: usize) -> Self {
        Self { expected, arrivals: Mutex::new(0), changed: Condvar::new() }
    }

    pub(crate) fn meet(&self) {
        let mut arrivals = self.arrivals.lock().expect("nobody panics while counting");
        *arrivals += 1;
        self.changed.notify_all();
        // The arrivals of a later meeting are beyond this one's.
        let complete = arrivals.next_multiple_of(self.expected);
        let waiting = self.changed.wait_timeout_while(arrivals, TIMEOUT, |arrivals| *arrivals < complete);
        let (arrivals, timeout) = waiting.expect("nobody panics while counting");
        drop(arrivals);
        assert!(!timeout.timed_out(), "the others do not come");
    }
}
