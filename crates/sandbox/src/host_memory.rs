//! Whether the host killed a process for want of memory: the kernel's own count of such kills.
//!
//! A guest over its own limit is stopped by the server, which knows that it did. One that dies of SIGKILL
//! otherwise has killed itself, or the kernel had no memory for it; only the second is the host's doing. The
//! count is the machine's (`oom_kill` of `/proc/vmstat`, those of memory groups included), so a kill
//! elsewhere at the same time makes a guest that killed itself be tried again, and no more than that.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Moment;

/// How old the count may be that a run begins with: reading it takes as long as a small part of a run.
const COUNT_AGE_LIMIT: Duration = Duration::from_secs(1);

/// The count and when it was read.
static LAST_READ: Mutex<Option<(Moment, u64)>> = Mutex::new(None);

/// A count of kills that is not newer than now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KillCount(u64);

impl KillCount {
    /// The count now, or shortly before.
    pub(crate) fn before_a_run() -> Self {
        let mut last = LAST_READ.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Moment::now();
        let known = last.filter(|(read, _)| now < *read + COUNT_AGE_LIMIT);
        let (_, count) = *last.insert(known.unwrap_or_else(|| (now, read())));
        Self(count)
    }

    /// Whether the host has killed since.
    pub(crate) fn has_grown(self) -> bool {
        read() > self.0
    }
}

/// 0 where the kernel does not say.
fn read() -> u64 {
    count(&fs::read_to_string("/proc/vmstat").unwrap_or_default())
}

fn count(vmstat: &str) -> u64 {
    let line = vmstat.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_count_is_found_among_the_others() {
        assert_eq!(count("oom_kill_disable 9\npgfault 5\noom_kill 3\nthp 1\n"), 3);
        assert_eq!(count("pgfault 5\n"), 0);
    }
}
