//! Ranks as threads of this process: what `replay` and the supervised objectives run on. The service runs one
//! process a rank instead, so that a rank can die alone.

use std::any::Any;
use std::io;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use collective::{Backend, GroupConfig, ProcessGroup, Store};
use model::Device;

use crate::error::{Error, Result};

/// The longest wait of an operation for the slowest rank: longer than any micro-batch, so that it only
/// strikes when a rank hangs. A rank that fails ends the group within milliseconds.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(1800);

/// The longest wait of ranks for each other at the start.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `work` once for each rank and returns the results in order of rank. A single rank runs on this
/// thread, without a group.
///
/// # Errors
/// The error of the rank that failed first, where that can be told, otherwise of the lowest.
pub fn on_ranks<T: Send>(
    count: usize,
    device: Device,
    work: impl Fn(Option<ProcessGroup>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    model::keep_freed_memory();
    if count <= 1 {
        return Ok(vec![work(None)?]);
    }
    let server = Store::serve("127.0.0.1", 0, JOIN_TIMEOUT)?;
    let port = server.port();
    let results: Vec<Result<T>> = thread::scope(|scope| {
        let mut started = Vec::with_capacity(count);
        for rank in 0..count {
            let (name, work) = (format!("rank-{rank}"), &work);
            started.push(thread::Builder::new().name(name).spawn_scoped(scope, move || {
                let store = Store::connect("127.0.0.1", port, JOIN_TIMEOUT)?;
                work(Some(join(&store, rank, count, device)?))
            }));
        }
        started.into_iter().enumerate().map(|(rank, thread)| result_of(rank, thread)).collect()
    });
    all_or_first_failure(results)
}

/// Waits for a rank's thread. One that panicked, or could not be started, has failed.
fn result_of<T>(rank: usize, thread: io::Result<ScopedJoinHandle<'_, Result<T>>>) -> Result<T> {
    match thread {
        Ok(thread) => {
            thread.join().unwrap_or_else(|panic| Err(Error::Panicked { rank, reason: message(&*panic) }))
        }
        Err(error) => Err(Error::Panicked { rank, reason: format!("no thread: {error}") }),
    }
}

/// All results, or the failure that caused the others.
fn all_or_first_failure<T>(results: Vec<Result<T>>) -> Result<Vec<T>> {
    let mut values = Vec::with_capacity(results.len());
    let mut cause = None;
    for result in results {
        match result {
            Ok(value) => values.push(value),
            // A lost connection is the consequence of another rank's failure.
            Err(error) if cause.is_none() || matches!(cause, Some(Error::Collective(_))) => {
                cause = Some(error);
            }
            Err(_) => {}
        }
    }
    cause.map_or(Ok(values), Err)
}

fn join(store: &Store, rank: usize, world_size: usize, device: Device) -> Result<ProcessGroup> {
    let config = GroupConfig {
        name: "ranks".to_owned(),
        rank,
        world_size,
        backend: Backend::for_device(device.of_rank(rank)),
        timeout: OPERATION_TIMEOUT,
        join_timeout: JOIN_TIMEOUT,
    };
    Ok(ProcessGroup::new(store, config)?)
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    text.unwrap_or("without a message").to_owned()
}

/// Gives each of `ranks` threads its share of the processors, or `threads` torch threads where that is asked
/// for.
pub(crate) fn share_processors(ranks: usize, threads: Option<usize>) {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let share = threads.unwrap_or(processors / ranks.max(1)).max(1);
    tch::set_num_threads(i32::try_from(share).unwrap_or(i32::MAX));
}
