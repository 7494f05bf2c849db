//! Compiled tests of problems, so that each problem is parsed and rewritten once and not for every response
//! to it.
//!
//! They come from a tester, which reports them before it reads anything of a response, and go to testers
//! only. They are opaque here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::problem::Problem;

/// Bytes of compiled tests that are kept.
const CACHE_BYTES: usize = 32 << 20;

/// Identifies what tests were compiled from.
pub(crate) type Key = blake3::Hash;

/// A bounded cache. Where it is full it forgets everything: compiling again is cheap, and a run over more
/// problems than fit gains nothing from any other order.
#[derive(Debug, Default)]
pub(crate) struct CompiledTestsCache {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    tests: HashMap<Key, Arc<str>>,
    bytes: usize,
}

impl CompiledTestsCache {
    /// The key of a problem: of its content, not of its name, which two files may share.
    pub(crate) fn key(problem: &Problem) -> Key {
        let mut hasher = blake3::Hasher::new();
        match problem {
            Problem::HumanEval(problem) => {
                for text in ["check", &problem.prompt, &problem.test] {
                    add(&mut hasher, text);
                }
            }
            Problem::Mbpp(problem) => {
                let entry_point = problem.entry_point.as_deref().unwrap_or_default();
                for text in ["asserts", entry_point, &problem.prelude, &problem.test_setup_code] {
                    add(&mut hasher, text);
                }
                for test in &problem.test_list {
                    add(&mut hasher, test);
                }
            }
            // Nothing of these is compiled.
            Problem::FunctionCalls(_) | Problem::Stdio(_) => add(&mut hasher, "none"),
        }
        hasher.finalize()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<str>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).tests.get(key).cloned()
    }

    pub(crate) fn insert(&self, key: Key, tests: String) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.bytes + tests.len() > CACHE_BYTES {
            *held = Held::default();
        }
        if tests.len() <= CACHE_BYTES {
            held.bytes += tests.len();
            if let Some(old) = held.tests.insert(key, tests.into()) {
                held.bytes -= old.len();
            }
        }
    }
}

/// Adds a text with its length, so that no two lists of texts run into each other.
fn add(hasher: &mut blake3::Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Mbpp;

    fn problem(tests: &[&str]) -> Problem {
        Problem::Mbpp(Mbpp {
            task_id: "same".to_owned(),
            test_list: tests.iter().map(|test| (*test).to_owned()).collect(),
            ..Mbpp::default()
        })
    }

    #[test]
    fn problems_are_told_apart_by_content() {
        let keys = [problem(&["ab", "c"]), problem(&["a", "bc"]), problem(&["abc"])]
            .map(|problem| CompiledTestsCache::key(&problem));
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
        assert_eq!(keys[0], CompiledTestsCache::key(&problem(&["ab", "c"])));
    }

    #[test]
    fn the_cache_is_bounded() {
        let cache = CompiledTestsCache::default();
        let big = "x".repeat(CACHE_BYTES / 3);
        let keys: Vec<_> =
            ["a", "b", "c", "d"].iter().map(|test| CompiledTestsCache::key(&problem(&[test]))).collect();
        for key in &keys {
            cache.insert(*key, big.clone());
        }
        let kept = keys.iter().filter(|key| cache.get(key).is_some()).count();
        assert!((1..=3).contains(&kept) && cache.get(&keys[3]).is_some());
        cache.insert(keys[0], "x".repeat(CACHE_BYTES + 1));
        assert_eq!(cache.get(&keys[0]).map(|tests| tests.len()).filter(|len| *len > CACHE_BYTES), None);
        cache.insert(keys[1], "small".to_owned());
        assert_eq!(cache.get(&keys[1]).as_deref(), Some("small"));
    }
}
