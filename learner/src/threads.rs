//! Ranks as threads of this process: what `replay` and the supervised objectives run on. The service runs one process a rank
//! instead, so that a rank can die alone.

use std::any::Any;
use std::thread;
use std::time::Duration;

use collective::{Backend, GlooAddress, GroupConfig, ProcessGroup, Store};
use model::Device;

use crate::error::{Error, Result};

/// How long an operation may wait for the slowest rank: longer than any micro-batch, so that it only strikes when a rank hangs.
/// A rank that fails ends the group within milliseconds.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// How long ranks wait for each other at the start.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `work` once for each rank and returns the results in order of rank. A single rank runs on this thread, without a
/// group.
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
        let start = |rank: usize| {
            let work = &work;
            thread::Builder::new().name(format!("rank-{rank}")).spawn_scoped(scope, move || {
                let store = Store::connect("127.0.0.1", port, JOIN_TIMEOUT)?;
                work(Some(join(&store, rank, count, device)?))
            })
        };
        let started: Vec<_> = (0..count).map(start).collect();
        let finish = |(rank, thread): (usize, std::io::Result<thread::ScopedJoinHandle<'_, Result<T>>>)| {
            let failed = |reason: String| Error::Panicked { rank, reason };
            match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| Err(failed(message(&*panic)))),
                Err(error) => Err(failed(format!("no thread: {error}"))),
            }
        };
        started.into_iter().enumerate().map(finish).collect()
    });
    let mut values = Vec::with_capacity(count);
    let mut worst = None;
    for result in results {
        match result {
            Ok(value) => values.push(value),
            // A lost connection is the consequence of another rank's failure.
            Err(error) if worst.is_none() || matches!(worst, Some(Error::Collective(_))) => {
                worst = Some(error)
            }
            Err(_) => {}
        }
    }
    worst.map_or(Ok(values), Err)
}

fn join(store: &Store, rank: usize, world_size: usize, device: Device) -> Result<ProcessGroup> {
    let backend = match device.of_rank(rank) {
        tch::Device::Cuda(device) => Backend::Nccl { device },
        _ => Backend::Gloo(GlooAddress::TowardsStore),
    };
    let config = GroupConfig {
        name: "ranks".to_owned(),
        rank,
        world_size,
        backend,
        timeout: TIMEOUT,
        join_timeout: JOIN_TIMEOUT,
    };
    Ok(ProcessGroup::new(store, config)?)
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    text.unwrap_or("without a message").to_owned()
}

/// Gives each of `ranks` threads its share of the processors, or `threads` torch threads where that is asked for.
pub(crate) fn share_processors(ranks: usize, threads: Option<usize>) {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let share = threads.unwrap_or(processors / ranks.max(1)).max(1);
    tch::set_num_threads(i32::try_from(share).unwrap_or(i32::MAX));
}
