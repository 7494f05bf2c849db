//! Compiled tests of problems, so that each problem is parsed and rewritten once and not for every response to it.
//!
//! A plan comes from a tester, which reports it before it reads anything of a response, and goes to testers only. It is
//! opaque here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::problem::Problem;

/// Bytes of plans that are kept.
const MOST_BYTES: usize = 32 << 20;

/// Identifies what a plan was made from.
pub(crate) type Key = blake3::Hash;

/// A bounded cache. Where it is full it forgets everything: plans are cheap to make again, and a run over more problems
/// than fit gains nothing from any other order.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    plans: HashMap<Key, Arc<str>>,
    bytes: usize,
}

impl Plans {
    /// The key of a problem: of its content, not of its name, which two files may share.
    pub(crate) fn key(problem: &Problem) -> Key {
        let mut hash = blake3::Hasher::new();
        let mut add = |text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        match problem {
            Problem::HumanEval(problem) => {
                add("check");
                add(&problem.prompt);
                add(&problem.test);
            }
            Problem::Mbpp(problem) => {
                add("asserts");
                add(problem.entry_point.as_deref().unwrap_or_default());
                add(&problem.test_setup_code);
                problem.test_list.iter().for_each(|test| add(test));
            }
            // Nothing of these is compiled.
            Problem::FunctionCalls(_) | Problem::Stdio(_) => add("none"),
        }
        hash.finalize()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<str>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).plans.get(key).cloned()
    }

    pub(crate) fn insert(&self, key: Key, plan: String) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.bytes + plan.len() > MOST_BYTES {
            *held = Held::default();
        }
        if plan.len() <= MOST_BYTES {
            held.bytes += plan.len();
            if let Some(old) = held.plans.insert(key, plan.into()) {
                held.bytes -= old.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Mbpp;

    fn problem(tests: &[&str]) -> Problem {
        Problem::Mbpp(Mbpp {
            task_id: "same".to_owned(),
            test_setup_code: String::new(),
            test_list: tests.iter().map(|test| (*test).to_owned()).collect(),
            entry_point: None,
            mutates_arguments: false,
        })
    }

    #[test]
    fn problems_are_told_apart_by_content() {
        let keys = [problem(&["ab", "c"]), problem(&["a", "bc"]), problem(&["abc"])]
            .map(|problem| Plans::key(&problem));
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
        assert_eq!(keys[0], Plans::key(&problem(&["ab", "c"])));
    }

    #[test]
    fn the_cache_is_bounded() {
        let plans = Plans::default();
        let big = "x".repeat(MOST_BYTES / 3);
        let keys: Vec<_> = ["a", "b", "c", "d"].iter().map(|test| Plans::key(&problem(&[test]))).collect();
        for key in &keys {
            plans.insert(*key, big.clone());
        }
        let kept = keys.iter().filter(|key| plans.get(key).is_some()).count();
        assert!((1..=3).contains(&kept) && plans.get(&keys[3]).is_some());
        plans.insert(keys[0], "x".repeat(MOST_BYTES + 1));
        assert_eq!(plans.get(&keys[0]).map(|plan| plan.len()).filter(|len| *len > MOST_BYTES), None);
        plans.insert(keys[1], "small".to_owned());
        assert_eq!(plans.get(&keys[1]).as_deref(), Some("small"));
    }
}
