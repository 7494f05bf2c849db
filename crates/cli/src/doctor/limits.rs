//! What the system lets this process have: memory, files, processes.

use std::fs;

use super::{Finding, size};

/// Less than this available memory lets a small ring fail.
const MIN_MEMORY_BYTES: u64 = 1 << 30;
/// The demo's ring takes 2.5 GB (bench/RESULTS.md).
const ENOUGH_MEMORY_BYTES: u64 = 4 << 30;
/// Open files below which a ring fails, and below which many members meet the limit.
const MIN_FILES: u64 = 256;
const ENOUGH_FILES: u64 = 4096;
/// Threads and processes: torch starts one for each core in every role.
const ENOUGH_PROCESSES: u64 = 1024;
/// Loaders of other programs share tensors there; ours need little.
const ENOUGH_SHARED_BYTES: u64 = 64 << 20;

/// Memory, and what of it a container may use.
pub(super) fn memory() -> Finding {
    const WHAT: &str = "memory";
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (Some(total), Some(available)) =
        (meminfo_bytes(&text, "MemTotal:"), meminfo_bytes(&text, "MemAvailable:"))
    else {
        return Finding::warn(WHAT, "/proc/meminfo says nothing", "mount /proc");
    };
    let limit = cgroup_left().filter(|left| *left < available);
    let left = limit.unwrap_or(available);
    let of_container = if limit.is_some() { " before the container's limit" } else { "" };
    let found = format!("{} available{of_container}, {} in all", size(left), size(total));
    if left < MIN_MEMORY_BYTES {
        Finding::fail(
            WHAT,
            found,
            "a ring with a tiny model takes 1 GiB; end what uses it, or raise the container's limit",
        )
    } else if left < ENOUGH_MEMORY_BYTES {
        Finding::warn(WHAT, found, "enough for models of some million parameters; the demo takes 2.5 GB")
    } else {
        Finding::ok(WHAT, found)
    }
}

/// Memory of this machine, bytes.
pub(crate) fn total_memory() -> Option<u64> {
    meminfo_bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// The bytes of a line of /proc/meminfo.
fn meminfo_bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim_end_matches("kB").trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// What is left below a cgroup's limit (version 2).
fn cgroup_left() -> Option<u64> {
    let path = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = path.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
    let read = |name: &str| {
        let own = fs::read_to_string(format!("/sys/fs/cgroup{path}/{name}"));
        own.or_else(|_| fs::read_to_string(format!("/sys/fs/cgroup/{name}"))).ok()?.trim().parse::<u64>().ok()
    };
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}

/// `/dev/shm`, which containers have little of.
pub(super) fn shared_memory() -> Finding {
    const WHAT: &str = "shared memory";
    match service::free_bytes(std::path::Path::new("/dev/shm")) {
        Ok(free) if free >= ENOUGH_SHARED_BYTES => Finding::ok(WHAT, format!("{} in /dev/shm", size(free))),
        Ok(free) => Finding::warn(
            WHAT,
            format!("{} in /dev/shm", size(free)),
            "NCCL between the GPUs of a machine needs more: docker run --shm-size=1g, or an emptyDir of medium Memory",
        ),
        Err(error) => Finding::warn(
            WHAT,
            format!("/dev/shm cannot be used: {error}"),
            "mount a tmpfs there; NCCL between the GPUs of a machine needs it",
        ),
    }
}

/// How many files may be open.
pub(super) fn open_files() -> Finding {
    const WHAT: &str = "open files";
    let Some((soft, hard)) = limit("Max open files") else {
        return Finding::warn(WHAT, "the limit is not known", "mount /proc");
    };
    let found = format!("{} of at most {}", shown(soft), shown(hard));
    let advice =
        "each member, page and log takes some: ulimit -n 65536 (LimitNOFILE= of a unit, --ulimit of docker)";
    match soft {
        soft if soft < MIN_FILES => Finding::fail(WHAT, found, advice),
        soft if soft < ENOUGH_FILES => {
            Finding::warn(WHAT, found, format!("enough for about {} members; {advice}", soft / 4))
        }
        _ => Finding::ok(WHAT, found),
    }
}

/// How many processes and threads there may be.
pub(super) fn processes() -> Finding {
    const WHAT: &str = "processes";
    let Some((soft, _)) = limit("Max processes") else {
        return Finding::warn(WHAT, "the limit is not known", "mount /proc");
    };
    let found = format!("{} and threads", shown(soft));
    if soft < ENOUGH_PROCESSES {
        let advice = "torch has a thread for each core in every role, and the sandbox a process for each program: ulimit -u 4096";
        Finding::warn(WHAT, found, advice)
    } else {
        Finding::ok(WHAT, found)
    }
}

/// A soft and a hard limit of this process.
fn limit(name: &str) -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?.to_owned();
    let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
    Some((numbers.next()?, numbers.next()?))
}

fn shown(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_this_process_are_found() {
        let (soft, hard) = limit("Max open files").unwrap();
        assert!(soft > 0 && soft <= hard);
        assert_eq!(limit("Max nothing"), None);
        assert_eq!((shown(7), shown(u64::MAX)), ("7".to_owned(), "unlimited".to_owned()));
    }
}
