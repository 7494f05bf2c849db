//! Looks through the store's logs before the store does.
//!
//! The store (fjall 3) cuts its newest log off where it stops making sense, without a word, or refuses to
//! open at all, for good. Neither is right for every damage:
//!
//! | what does not make sense                         | what is done                                            |
//! |--------------------------------------------------|---------------------------------------------------------|
//! | the end of the newest log, which no mark counts: | it is cut off and kept in a file beside; the log of     |
//! | a write that nobody was told of                  | this process says how many bytes that were              |
//! | the end of the newest log, which a mark counts   | the journal is refused, and nothing of it is changed    |
//! | anything that whole writes follow                | the journal is refused, and nothing of it is changed    |
//!
//! A log is a sequence of batches: `1 | items u32 | seqno u64`, then items
//! `2 | type u8 | compression u8 | keyspace u64 | key length u16 | length u32 | stored length u32 | key | value`
//! or `4 | keyspace u64`, then `3 | xxh3-64 of the items u64 | "FJL" 3`; all little-endian. The newest log has
//! zeros behind its end, where room is reserved.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::chain::Mark;
use super::error::Error;

/// Ends of logs that are kept after they were cut off.
const KEPT_LIMIT: usize = 8;
/// How often the store's lock is tried, and the pause between.
const LOCK_TRIES: u32 = 3;
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// What ends a batch.
const TRAILER: &[u8] = b"FJL\x03";
/// Facts are numbered from 0 in eight bytes; keys of the same length that are no such numbers are larger.
const FACTS_LIMIT: u64 = 1 << 48;
/// The type of an item that is a value.
const VALUE: u8 = 0;

/// A batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Batch {
    /// Its length in bytes.
    length: usize,
    /// The highest fact in it.
    last_fact: Option<u64>,
}

/// Cuts off what a write that was not finished has left, if that is the only damage.
///
/// # Errors
/// When something is damaged that was durable. Nothing was changed then.
pub(super) fn mend(folder: &Path, mark: Option<Mark>) -> Result<(), Error> {
    let Some(_lock) = lock(folder)? else { return Ok(()) };
    let logs = logs(folder).map_err(|error| not_looked_through(folder, &error))?;
    let (mut last_fact, mut torn) = (None, None);
    for (place, log) in logs.iter().enumerate() {
        let bytes = std::fs::read(log).map_err(|error| not_looked_through(folder, &error))?;
        let (whole, fact) = whole_part(&bytes);
        last_fact = last_fact.max(fact);
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1).max(whole);
        if used == whole {
            continue;
        }
        let end = &bytes[whole..used];
        if place + 1 < logs.len() || (1..end.len()).any(|at| Batch::at(&end[at..]).is_some()) {
            return Err(damaged(folder, log, whole, "and whole writes follow"));
        }
        torn = Some((log, whole, end.to_vec()));
    }
    let Some((log, whole, end)) = torn else { return Ok(()) };
    let durable = mark.map_or(0, |mark| mark.next);
    if let Some(next) = last_fact.map(|last| last + 1).filter(|next| *next < durable) {
        let lost = durable - next;
        return Err(damaged(folder, log, whole, &format!("and {lost} facts that were durable lay there")));
    }
    let kept = keep(folder, log, whole, &end);
    cut(log, whole).map_err(|error| not_looked_through(folder, &error))?;
    tracing::warn!(
        log = %log.display(),
        bytes_cut = end.len(),
        kept_in = kept,
        "the journal's torn end was cut off: a write that was not finished, and that nobody was told of"
    );
    Ok(())
}

impl Batch {
    /// The whole batch that these bytes begin with, if they do.
    fn at(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        rest.tag(1)?;
        let count = u32::from_le_bytes(rest.array()?);
        rest.take(8)?;
        let (start, mut last_fact) = (rest.0, None);
        for _ in 0..count {
            rest.item(&mut last_fact)?;
        }
        let items = &start[..start.len() - rest.0.len()];
        rest.tag(3)?;
        let checksum = u64::from_le_bytes(rest.array()?);
        let is_whole = rest.take(TRAILER.len())? == TRAILER && checksum == xxh3_64(items);
        is_whole.then(|| Self { length: bytes.len() - rest.0.len(), last_fact })
    }
}

/// What of some bytes is not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn tag(&mut self, tag: u8) -> Option<()> {
        (self.array()? == [tag]).then_some(())
    }

    /// The next item, which may be a later fact.
    fn item(&mut self, last_fact: &mut Option<u64>) -> Option<()> {
        match self.array()? {
            [2] => {
                let [kind, _compression] = self.array()?;
                self.take(8)?;
                let key = usize::from(u16::from_le_bytes(self.array()?));
                self.take(4)?;
                let value = usize::try_from(u32::from_le_bytes(self.array()?)).ok()?;
                let key = self.take(key)?;
                self.take(value)?;
                let number = key.try_into().ok().map(u64::from_be_bytes);
                let fact = number.filter(|number| kind == VALUE && *number < FACTS_LIMIT);
                *last_fact = (*last_fact).max(fact);
                Some(())
            }
            [4] => self.take(8).map(|_| ()),
            _ => None,
        }
    }
}

/// How many bytes of a log are whole batches, and the highest fact in them.
fn whole_part(bytes: &[u8]) -> (usize, Option<u64>) {
    let (mut whole, mut last_fact) = (0, None);
    while let Some(batch) = Batch::at(&bytes[whole..]) {
        whole += batch.length;
        last_fact = last_fact.max(batch.last_fact);
    }
    (whole, last_fact)
}

/// The store's lock, so that nothing is cut off under another process; none where there is no store.
fn lock(folder: &Path) -> Result<Option<File>, Error> {
    match OpenOptions::new().read(true).write(true).open(folder.join("lock")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(not_looked_through(folder, &error)),
        Ok(file) => {
            for _ in 0..LOCK_TRIES {
                match file.try_lock() {
                    Ok(()) => return Ok(Some(file)),
                    // One that is about to leave has it for a moment.
                    Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
                    Err(TryLockError::Error(error)) => return Err(not_looked_through(folder, &error)),
                }
            }
            Err(Error::Locked { path: folder.to_owned() })
        }
    }
}

/// The store's logs, the newest one last.
fn logs(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let number =
            path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok());
        logs.extend(number.map(|number| (number, path)));
    }
    logs.sort();
    Ok(logs.into_iter().map(|(_, path)| path).collect())
}

fn cut(log: &Path, length: usize) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(log)?;
    file.set_len(length as u64)?;
    file.sync_all()
}

/// Writes the end of a log to a file of its own, for whoever wants to know. Yields its name, or why there is
/// none: nothing waits for it.
fn keep(folder: &Path, log: &Path, whole: usize, end: &[u8]) -> String {
    let name = log.file_name().unwrap_or_default().to_string_lossy();
    let path = folder.join(format!("{name}.cut-at-{whole}"));
    let written = make_room(folder).and_then(|()| File::create(&path)).and_then(|mut file| {
        file.write_all(end)?;
        file.sync_all()
    });
    match written {
        Ok(()) => path.display().to_string(),
        Err(error) => {
            let _ = std::fs::remove_file(&path);
            format!("nothing: {error}")
        }
    }
}

/// Of what was kept before, the newest stays.
fn make_room(folder: &Path) -> io::Result<()> {
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains(".jnl.cut-at-") {
            kept.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    kept.sort();
    let too_many = kept.len().saturating_sub(KEPT_LIMIT - 1);
    kept.into_iter().take(too_many).try_for_each(|(_, path)| std::fs::remove_file(path))
}

fn damaged(folder: &Path, log: &Path, place: usize, why: &str) -> Error {
    let name = log.file_name().unwrap_or_default().to_string_lossy();
    let problem = format!("from byte {place} on {name} is not what was written, {why}");
    Error::Damaged { path: folder.to_owned(), problem }
}

fn not_looked_through(folder: &Path, error: &io::Error) -> Error {
    Error::Open { path: folder.to_owned(), problem: format!("its log cannot be looked through: {error}") }
}
