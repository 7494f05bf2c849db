//! What a run uses: processor time, memory and tasks of all its processes, read from `/proc`.
//!
//! There is no cgroup to ask (a pod or a job may not make one), so the numbers are sampled. Between two
//! samples a guest is bounded by its resource limits.

use std::fs;
use std::time::Duration;

/// A run's use of resources at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) memory_bytes: u64,
    /// Processes and threads, without the run's first process.
    pub(crate) tasks: u64,
}

/// More processes than any limit allows: a walk that finds more has been overtaken by a fork bomb and stops.
const MOST_PROCESSES: usize = 4096;

/// Samples a run. `pids` are what [`EventKind::Started`](crate::wire::EventKind::Started) brought: the
/// process that holds the namespace, if the run has one (`nested`), and the guest. A process that ends
/// meanwhile counts as nothing.
pub(crate) fn sample(pids: &[u32], nested: bool) -> Usage {
    let mut usage = Usage::default();
    for pid in members(pids, nested) {
        usage.cpu += cpu(pid).unwrap_or_default();
        let (memory_bytes, tasks) = memory(pid).unwrap_or_default();
        usage.memory_bytes += memory_bytes;
        usage.tasks += tasks;
    }
    usage
}

/// What the scheduler has counted of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Time on a processor.
    pub(crate) ran: Duration,
    /// Time ready to run, without a processor. A wait counts when it ends.
    pub(crate) waited: Duration,
}

/// The threads of a run by their ids. Empty where the kernel does not count (`CONFIG_SCHED_INFO`).
pub(crate) fn schedules(pids: &[u32], nested: bool) -> Vec<(u32, Schedule)> {
    let mut found = Vec::new();
    for pid in members(pids, nested) {
        for thread in threads(pid) {
            if let Some(schedule) = schedule(pid, thread) {
                found.push((thread, schedule));
            }
        }
    }
    found
}

fn schedule(pid: u32, thread: u32) -> Option<Schedule> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()?;
    let mut nanos = text.split_ascii_whitespace().map_while(|field| field.parse().ok());
    let mut next = || nanos.next().map(Duration::from_nanos);
    Some(Schedule { ran: next()?, waited: next()? })
}

/// Whether a thread is running or ready to run.
pub(crate) fn is_ready(thread: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{thread}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('R'))
}

/// Whether a process stands still, with all its threads: stopped, or dead.
pub(crate) fn is_still(pid: u32) -> bool {
    threads(pid).into_iter().all(|thread| {
        let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        matches!(state, None | Some('T' | 't' | 'Z' | 'X'))
    })
}

/// Memory of a nested run with shared pages split between those that share them; slower, and exact where a
/// guest forked with a large heap.
pub(crate) fn proportional_memory(pids: &[u32]) -> Option<u64> {
    let mut total = 0;
    for pid in members(pids, true) {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        total += kib(&rollup, "Pss_Anon:")? + kib(&rollup, "Pss_Shmem:")?;
    }
    Some(total)
}

/// The guest and its descendants, orphans included. The process that holds the namespace is the zygote's own
/// memory and does nothing, so only what was left to it counts.
pub(crate) fn members(pids: &[u32], nested: bool) -> Vec<u32> {
    let [holder, guest] = pids else { return Vec::new() };
    let mut found = vec![*guest];
    if !nested {
        return found;
    }
    found.extend(children(*holder));
    let mut next = 0;
    while next < found.len() && found.len() < MOST_PROCESSES {
        found.extend(children(found[next]));
        next += 1;
    }
    found
}

/// User and system time of a process and of the children it has reaped.
fn cpu(pid: u32) -> Option<Duration> {
    const TICKS_PER_SECOND: u64 = 100; // USER_HZ, fixed in the kernel's interface
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the numbers follow the last one.
    let numbers = stat.rsplit_once(')')?.1;
    let ticks: u64 =
        numbers.split_ascii_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Anonymous and shared memory in bytes, and the number of threads.
fn memory(pid: u32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bytes = kib(&status, "RssAnon:")? + kib(&status, "RssShmem:")?;
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"))?.trim().parse().ok()?;
    Some((bytes, threads))
}

/// A line `Name:  123 kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Children of all threads of a process.
fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for thread in threads(pid) {
        let list = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).unwrap_or_default();
        found.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    found
}

/// The ids of a process's threads.
fn threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::clock::Moment;

    #[test]
    fn this_process_uses_what_it_uses() {
        let me = [std::process::id(); 2];
        let before = sample(&me, false);
        assert!(before.tasks >= 1 && before.memory_bytes > 0);
        let held = vec![7_u8; 64 << 20];
        let after = sample(&me, false);
        assert!(after.memory_bytes >= before.memory_bytes + (60 << 20), "{before:?} {after:?}");
        drop(held);
    }

    #[test]
    fn descendants_and_orphans_count_and_their_spawner_does_not() {
        let mut spawner = Command::new("sh").args(["-c", "sleep 60 & sleep 60 & wait"]).spawn().unwrap();
        let mut guest = Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let deadline = Moment::now() + Duration::from_secs(20);
        let mut usage = Usage::default();
        while usage.tasks != 4 && Moment::now() < deadline {
            usage = sample(&[spawner.id(), guest.id()], true);
        }
        assert_eq!(usage.tasks, 4, "two orphans, the guest and its child");
        let exact = proportional_memory(&[spawner.id(), guest.id()]);
        for pid in members(&[spawner.id(), guest.id()], true) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::SIGKILL)
                .unwrap();
        }
        spawner.kill().unwrap();
        for process in [&mut spawner, &mut guest] {
            process.wait().unwrap();
        }
        assert!(exact.is_some_and(|bytes| bytes < usage.memory_bytes * 2));
    }

    #[test]
    fn a_process_that_is_gone_uses_nothing() {
        let nobody = [u32::MAX - 1; 2];
        assert_eq!(sample(&nobody, true), Usage::default());
        assert_eq!(proportional_memory(&nobody), None);
    }
}
