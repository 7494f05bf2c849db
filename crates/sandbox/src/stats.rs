//! Counts for metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::syscalls;
use crate::tier::Tier;
use crate::verdict::Verdict;
use crate::wire::Event;

/// A snapshot of a [`Grader`](crate::Grader).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The tier in use.
    pub tier: Tier,
    /// Gradings by verdict.
    pub verdicts: BTreeMap<Verdict, u64>,
    /// Guests started: two for a function problem, one for each case of a program.
    pub runs: u64,
    /// Gradings repeated after an internal error.
    pub retries: u64,
    /// Gradings repeated because the machine was overloaded.
    pub overload_retries: u64,
    /// Callers turned away or timed out because every worker was busy.
    pub overloaded: u64,
    /// Refused system calls of responses, by name.
    pub denied_syscalls: BTreeMap<String, u64>,
    /// Zygotes started.
    pub zygotes_started: u64,
    /// Zygotes that could not be started.
    pub zygote_start_failures: u64,
    /// Zygotes replaced because they had done their runs.
    pub zygotes_recycled: u64,
    /// Zygotes replaced because something about them was not as it should be.
    pub zygotes_discarded: u64,
    /// Zygotes ready for a candidate.
    pub idle_candidates: usize,
    /// Zygotes ready for a tester.
    pub idle_testers: usize,
    /// Gradings under way.
    pub busy: usize,
    /// Callers waiting for a worker.
    pub waiting: usize,
}

/// What is counted while gradings run; the pool counts the rest.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    counts: Mutex<Counts>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) verdicts: BTreeMap<Verdict, u64>,
    pub(crate) runs: u64,
    pub(crate) retries: u64,
    pub(crate) overload_retries: u64,
    pub(crate) overloaded: u64,
    pub(crate) denied: BTreeMap<String, u64>,
}

impl Counters {
    /// Changes the counts.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Adds what a guest was refused.
    pub(crate) fn denied(&self, event: &Event) {
        let listed = event.denied.iter().take(event.denied_len as usize);
        self.update(|counts| {
            for entry in listed {
                *counts.denied.entry(syscalls::name(entry.syscall)).or_default() += u64::from(entry.count);
            }
        });
    }

    pub(crate) fn snapshot(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
