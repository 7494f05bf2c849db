//! Where a run listens and writes.

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Write as _};
use std::net::{TcpListener, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Finding, size};

/// Ports that commands take where none is named.
const DEFAULT_PORTS: [(u16, &str); 2] = [(7780, "sluice dashboard"), (8000, "sluice serve")];
/// A few checkpoints of a small model.
const ENOUGH_FREE_BYTES: u64 = 5 << 30;
/// Durable writes that are timed.
const WRITES: usize = 9;
/// A durable write that takes longer is a step's part: each lot of events costs one.
const SLOW_WRITE: Duration = Duration::from_millis(30);
/// A difference of clocks that leases and heartbeats would notice.
const MAX_SKEW: Duration = Duration::from_secs(2);
/// No clock that is set is before this release: 2026.
const RELEASED: Duration = Duration::from_secs(1_767_225_600);

/// Whether there are ports to listen on.
pub(super) fn ports() -> Vec<Finding> {
    const WHAT: &str = "ports";
    if let Err(error) = TcpListener::bind("127.0.0.1:0") {
        let advice = "every role listens on 127.0.0.1: bring up the loopback interface (ip link set lo up)";
        return vec![Finding::fail(WHAT, format!("127.0.0.1 cannot be listened on: {error}"), advice)];
    }
    let taken = DEFAULT_PORTS.iter().filter(|(port, _)| TcpListener::bind(("127.0.0.1", *port)).is_err());
    let taken: Vec<String> = taken.map(|(port, command)| format!("{port} ({command})")).collect();
    if taken.is_empty() {
        return vec![Finding::ok(WHAT, "127.0.0.1 can be listened on; the commands' own ports are free")];
    }
    let found = format!("taken: {}", taken.join(", "));
    vec![Finding::warn(WHAT, found, "runs take free ports; those commands take --port")]
}

/// Whether the name of this machine has an address: ranks of a learner find each other by it.
pub(super) fn host_name() -> Finding {
    const WHAT: &str = "host name";
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    match (name, 0).to_socket_addrs().map(|mut addresses| addresses.next()) {
        Ok(Some(address)) => Finding::ok(WHAT, format!("{name} is {}", address.ip())),
        _ => {
            let advice = format!(
                "ranks on several machines find each other by it: add a line `ADDRESS {name}` to /etc/hosts"
            );
            Finding::warn(WHAT, format!("{name} has no address"), advice)
        }
    }
}

/// Room for checkpoints and the journal.
pub(super) fn room(folder: &Path) -> Finding {
    const WHAT: &str = "disk";
    let there = existing(folder);
    let free = match service::free_bytes(&there) {
        Ok(free) => free,
        Err(error) => {
            return Finding::fail(WHAT, format!("{}: {error}", there.display()), "name another --folder");
        }
    };
    let found = format!("{} free in {}", size(free), there.display());
    let advice = "checkpoints hold policy, critic and optimizer: 16 bytes a parameter and network in f32; set output to a larger disk";
    match free {
        // The coordinator would begin nothing.
        free if free < coordinator::Config::default().journal_reserve_bytes => {
            Finding::fail(WHAT, found, advice)
        }
        free if free < ENOUGH_FREE_BYTES => Finding::warn(WHAT, found, advice),
        _ => Finding::ok(WHAT, found),
    }
}

/// What making events durable costs.
pub(super) fn durable_writes(folder: &Path) -> Finding {
    const WHAT: &str = "durable write";
    let there = existing(folder);
    match timed_writes(&there) {
        Err(error) => cannot_write(WHAT, &there, &error),
        Ok(median) => {
            let found = format!("{:.1} ms", median.as_secs_f64() * 1e3);
            if median <= SLOW_WRITE {
                return Finding::ok(WHAT, found);
            }
            let advice =
                "the journal waits for one at every lot of events: put coordinator.journal on a local disk";
            Finding::warn(WHAT, found, advice)
        }
    }
}

/// This machine's clock against that of the disk, which may be another machine's.
pub(super) fn clock(folder: &Path) -> Finding {
    const WHAT: &str = "clock";
    let there = existing(folder);
    let now = SystemTime::now();
    if now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() < RELEASED {
        return Finding::fail(
            WHAT,
            "before this release was made",
            "set it: chronyd or systemd-timesyncd keep it right",
        );
    }
    let modified = Probe::create(&there).and_then(|probe| fs::metadata(&probe.0)?.modified());
    let skew = match modified {
        Err(error) => return cannot_write(WHAT, &there, &error),
        Ok(modified) => {
            modified.duration_since(now).or_else(|_| now.duration_since(modified)).unwrap_or_default()
        }
    };
    let found = format!("within {} ms of the disk's", skew.as_millis());
    if skew <= MAX_SKEW {
        return Finding::ok(WHAT, found);
    }
    let found = format!("{:.1} s off the clock of {}", skew.as_secs_f64(), there.display());
    Finding::warn(
        WHAT,
        found,
        "members on several machines compare times: let chronyd keep all of them right",
    )
}

fn cannot_write(what: &'static str, folder: &Path, error: &Error) -> Finding {
    let advice = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "set output to a folder that you may write"
        }
        _ => "look at that disk, or set output to another",
    };
    Finding::fail(what, format!("{} cannot be written: {error}", folder.display()), advice)
}

/// The folder, or the nearest above it that is there.
fn existing(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// A file that is gone when it is dropped.
struct Probe(PathBuf);

impl Probe {
    fn create(folder: &Path) -> std::io::Result<Self> {
        let path = folder.join(format!(".{}", service::unique_name("sluice-doctor")));
        File::create_new(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // One that stays is of no harm, and was asked to go.
        let _ = fs::remove_file(&self.0);
    }
}

#[expect(clippy::disallowed_types, reason = "a disk is timed, on a thread of its own")]
fn timed_writes(folder: &Path) -> std::io::Result<Duration> {
    let probe = Probe::create(folder)?;
    let mut file = File::options().write(true).open(&probe.0)?;
    let mut times = Vec::new();
    for _ in 0..WRITES {
        let began = std::time::Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times[WRITES / 2])
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_is_looked_at_above() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(existing(&folder.path().join("runs/a")), folder.path());
        assert!(durable_writes(&folder.path().join("runs")).level <= Level::Warn);
        assert_eq!(clock(folder.path()).level, Level::Ok);
        assert_eq!(durable_writes(Path::new("/proc/1")).level, Level::Fail, "nobody writes there");
    }
}
