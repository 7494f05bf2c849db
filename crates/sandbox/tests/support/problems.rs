//! HumanEval (`tests/problems/HumanEval.LICENSE`), and problems of our own in the same shape.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

use std::path::Path;

use sandbox::{Record, read_problems};

/// The problems of a file in `tests/problems/`.
pub(crate) fn file(name: &str) -> Vec<Record> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/problems").join(name);
    read_problems(&path).unwrap().collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{error}"))
}

/// All 164 problems of HumanEval, and our own.
pub(crate) fn problems() -> Vec<Record> {
    let mut records = file("HumanEval.jsonl.gz");
    assert_eq!(records.len(), 164);
    records.extend(file("own.jsonl"));
    records
}

/// Runs `task` on every item from as many threads as there are cores.
pub(crate) fn in_parallel<T: Sync, R: Send>(items: &[T], task: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut done = Vec::new();
                    loop {
                        let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let Some(item) = items.get(index) else { return done };
                        done.push((index, task(item)));
                    }
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}
