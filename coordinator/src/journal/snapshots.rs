//! Snapshots, written beside the loop by a thread that replays the facts as a restart would.
//!
//! ```text
//!  loop:    facts committed ......... next commit: the head names the file ... facts removed in parts
//!                 \ entries, read back         ^ written
//!  thread:         replay -> serialise -> read back, compare -> file, fsync, rename, fsync of the folder
//! ```
//!
//! | a crash leaves                           | a restart finds                                             |
//! |------------------------------------------|-------------------------------------------------------------|
//! | a part of a file (`snapshot.partial`)    | the snapshot before, and all facts since (the part goes)    |
//! | a whole file that the head does not name | the same                                                    |
//! | a head that names the file               | that snapshot, and the facts since                          |
//! | facts that the snapshot holds            | that snapshot; they are removed later                       |
//!
//! The loop waits for none of it, but for a thread that is [`BACKLOG_LIMIT`] facts behind.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use types::{Timestamp, WeightHash};

use super::chain::{Chain, Mark};
use super::error::{Error, FORMAT};
use super::{Entry, sync_folder};
use crate::state::Durable;

/// Facts after which a snapshot replaces them, at least.
const FACTS_PER_SNAPSHOT: u64 = 4096;
/// A larger state is written less often, so that its snapshots cost about as much as its facts did.
const BYTES_PER_FACT: u64 = 256;
/// Facts that may wait for the thread, and after which a snapshot is due, at most.
const BACKLOG_LIMIT: usize = 1 << 16;
/// How the names of snapshots begin, and the name of one that is being written.
const PREFIX: &str = "snapshot-";
const PARTIAL: &str = "snapshot.partial";

/// What the store knows of the snapshot: where it lies, and what is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) format: u32,
    /// Sequence number of the first fact that the state does not hold.
    pub(super) end: u64,
    /// When the newest fact that the state holds happened.
    pub(super) last_fact: Timestamp,
    /// The checksum of the facts that the state holds.
    pub(super) chain: Chain,
    /// The hash of the file; none in format 5, which had the state here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) hash: Option<WeightHash>,
    /// Bytes of the file.
    #[serde(default)]
    pub(super) bytes: u64,
}

/// A snapshot as its file has it.
#[derive(Serialize, Deserialize)]
pub(super) struct Snapshot<S> {
    format: u32,
    end: u64,
    last_fact: Timestamp,
    chain: Chain,
    pub(super) state: S,
}

/// Facts for the thread, and where the journal is after them.
struct Job {
    entries: Vec<Entry>,
    end: Mark,
    last_fact: Timestamp,
}

/// The thread, and what waits for it.
pub(super) struct Snapshots {
    folder: PathBuf,
    jobs: Option<mpsc::Sender<Job>>,
    written: mpsc::Receiver<Result<Head, Error>>,
    thread: Option<JoinHandle<()>>,
    is_busy: bool,
    /// Facts that the thread does not have yet.
    backlog: Vec<Entry>,
    /// Sequence number from which on a snapshot is due.
    due: u64,
}

impl Head {
    /// Sequence number from which on the next snapshot is due.
    fn next_due(&self) -> u64 {
        self.end + FACTS_PER_SNAPSHOT.max(self.bytes / BYTES_PER_FACT).min(BACKLOG_LIMIT as u64)
    }

    pub(super) fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{PREFIX}{:012}.json", self.end))
    }

    /// The state that it stands for.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn read(&self, folder: &Path) -> Result<Durable, String> {
        let path = self.path(folder);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let bytes = std::fs::read(&path).map_err(|error| format!("its snapshot {name}: {error}"))?;
        if self.hash != Some(hash_of(&bytes)) {
            return Err(format!("its snapshot {name} is not the one that was written"));
        }
        let snapshot: Snapshot<Durable> = serde_json::from_slice(&bytes)
            .map_err(|error| format!("its snapshot {name} does not parse: {error}"))?;
        Ok(snapshot.state)
    }
}

impl Snapshots {
    /// A thread over the state that the journal in `folder` leads to, of which `head` holds the first part.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(folder: &Path, head: &Head, state: Durable) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let (outbox, written) = mpsc::channel();
        let (folder, to) = (folder.to_owned(), folder.to_owned());
        let thread = std::thread::Builder::new().name("snapshots".to_owned());
        let thread = thread.spawn(move || work(&to, state, &inbox, &outbox))?;
        Ok(Self {
            folder,
            jobs: Some(jobs),
            written,
            thread: Some(thread),
            is_busy: false,
            backlog: Vec::new(),
            due: head.next_due(),
        })
    }

    /// The snapshot that was asked for, once it lies on the disk. One that cannot be written is for later:
    /// the facts are durable.
    ///
    /// # Errors
    /// When the thread is gone.
    pub(super) fn take_written(&mut self, next: u64) -> Result<Option<Head>, Error> {
        if !self.is_busy {
            return Ok(None);
        }
        let answer = if self.backlog.len() >= BACKLOG_LIMIT {
            self.written.recv().map_err(|_| self.is_gone())?
        } else {
            match self.written.try_recv() {
                Err(mpsc::TryRecvError::Empty) => return Ok(None),
                other => other.map_err(|_| self.is_gone())?,
            }
        };
        self.is_busy = false;
        match answer {
            Ok(head) => {
                self.due = head.next_due();
                return Ok(Some(head));
            }
            Err(Error::NoRoom { problem, .. }) => tracing::warn!(problem, "no room for a snapshot"),
            Err(error) => {
                tracing::error!(%error, "no snapshot is written: the facts stay in its place");
            }
        }
        self.due = next + FACTS_PER_SNAPSHOT;
        Ok(None)
    }

    /// Facts are durable, up to `end`.
    ///
    /// # Errors
    /// When the thread is gone.
    pub(super) fn add(&mut self, entries: Vec<Entry>, end: Mark, last_fact: Timestamp) -> Result<(), Error> {
        self.backlog.extend(entries);
        if self.is_busy || end.next < self.due {
            return Ok(());
        }
        let job = Job { entries: std::mem::take(&mut self.backlog), end, last_fact };
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        self.is_busy = sent;
        if sent { Ok(()) } else { Err(self.is_gone()) }
    }

    fn is_gone(&self) -> Error {
        let problem = "the thread that writes its snapshots has ended".to_owned();
        Error::Write { path: self.folder.clone(), problem }
    }
}

impl Drop for Snapshots {
    /// Waits for the thread, so that nothing appears in a folder that another process may use by then.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn work(
    folder: &Path,
    mut state: Durable,
    jobs: &mpsc::Receiver<Job>,
    written: &mpsc::Sender<Result<Head, Error>>,
) {
    while let Ok(Job { entries, end, last_fact }) = jobs.recv() {
        let (started, facts) = (Instant::now(), entries.len());
        for Entry { at, fact } in entries {
            drop(state.replay(at, fact));
        }
        let answer = write(folder, &state, end, last_fact);
        if let Ok(Head { bytes, .. }) = &answer {
            tracing::debug!(facts, bytes, seconds = started.elapsed().as_secs_f64(), "snapshot written");
        }
        if written.send(answer).is_err() {
            break;
        }
    }
}

/// Writes the state after the facts up to `end`, which is known to be read back as what it is. It counts once
/// the store's head names it.
///
/// # Errors
/// A state that would not be read back; a disk that does not take it.
pub(super) fn write(folder: &Path, state: &Durable, end: Mark, last_fact: Timestamp) -> Result<Head, Error> {
    let unreadable = |problem: String| Error::Unreadable { path: folder.to_owned(), problem };
    let Mark { next: end, chain } = end;
    let bytes = serde_json::to_vec(&Snapshot { format: FORMAT, end, last_fact, chain, state })
        .map_err(|error| unreadable(format!("the state does not serialise: {error}")))?;
    match serde_json::from_slice::<Snapshot<Durable>>(&bytes) {
        Ok(back) if back.state == *state => {}
        Ok(_) => return Err(unreadable("the state reads back as another".to_owned())),
        Err(error) => return Err(unreadable(format!("the state: {error}"))),
    }
    let hash = Some(hash_of(&bytes));
    let head = Head { format: FORMAT, end, last_fact, chain, hash, bytes: bytes.len() as u64 };
    let partial = folder.join(PARTIAL);
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, head.path(folder))?;
        sync_folder(folder)
    });
    written.map_err(|error| {
        drop(std::fs::remove_file(&partial));
        let (path, problem) = (folder.to_owned(), format!("{PARTIAL}: {error}"));
        if service::is_disk_full(&error) {
            Error::NoRoom { path, problem }
        } else {
            Error::Write { path, problem }
        }
    })?;
    Ok(head)
}

/// Removes the files of snapshots that `head` does not name. One that cannot be removed is in nobody's way.
pub(super) fn remove_others(folder: &Path, head: &Head) {
    let kept = head.path(folder);
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| *path != kept) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if (name.starts_with(PREFIX) || name == PARTIAL)
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "an old snapshot cannot be removed");
        }
    }
}

fn hash_of(bytes: &[u8]) -> WeightHash {
    WeightHash(*blake3::hash(bytes).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::chain::CHAIN_BYTES;
    use super::*;
    use crate::state::Fact;

    /// A run up to what its learner says of the first batch, and that.
    fn until_trained() -> (Durable, Entry) {
        let (head, facts) = include_str!("../../tests/data/journal-5-facts.txt").split_once('\n').unwrap();
        let mut state = serde_json::from_str::<Snapshot<Durable>>(head).unwrap().state;
        for line in facts.lines() {
            let entry: Entry = serde_json::from_str(&line[2 * CHAIN_BYTES..]).unwrap();
            if matches!(entry.fact, Fact::Trained { .. }) {
                return (state, entry);
            }
            drop(state.replay(entry.at, entry.fact));
        }
        unreachable!("it trains something")
    }

    #[test]
    fn a_state_that_would_not_be_read_back_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let (mut state, Entry { at, mut fact }) = until_trained();
        write(folder.path(), &state, Mark::default(), at).unwrap();
        // As a fault of ours could make it.
        if let Fact::Trained { metrics, .. } = &mut fact {
            metrics.kl_coefficient = f64::NAN;
        }
        drop(state.replay(at, fact));
        let later = Mark { next: 1, ..Mark::default() };
        let error = write(folder.path(), &state, later, at).unwrap_err();
        assert!(matches!(error, Error::Unreadable { .. }), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_large_state_is_written_less_often() {
        let head = |bytes| Head {
            format: FORMAT,
            end: 10,
            last_fact: Timestamp(0),
            chain: Chain::default(),
            hash: None,
            bytes,
        };
        assert_eq!(head(1_000).next_due(), 10 + FACTS_PER_SNAPSHOT);
        assert_eq!(head(2_560_000).next_due(), 10_010);
        assert_eq!(head(1 << 40).next_due(), 10 + BACKLOG_LIMIT as u64);
    }
}
