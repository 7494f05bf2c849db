//! HumanEval where it is at hand, and problems of the same shape that always are.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

use std::path::{Path, PathBuf};

use sandbox::{Record, read_problems};

/// OpenAI's file: `$SLUICE_HUMANEVAL`, or `shared/data/` beside the repository.
pub(crate) fn human_eval_file() -> Option<PathBuf> {
    let configured = std::env::var_os("SLUICE_HUMANEVAL").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/HumanEval.jsonl.gz");
    configured.or_else(|| beside.exists().then_some(beside))
}

/// All of HumanEval, or our own problems.
pub(crate) fn problems() -> Vec<Record> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/problems/own.jsonl");
    let path = human_eval_file().unwrap_or(own);
    let records: Result<Vec<_>, _> = read_problems(&path).unwrap().collect();
    let records = records.unwrap_or_else(|error| panic!("{error}"));
    println!("{} problems of {}", records.len(), path.display());
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
