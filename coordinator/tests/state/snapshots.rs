//! Snapshots beside the loop: nothing waits for the one that is being written, and whatever part of it a
//! crash leaves, the same run is found again.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coordinator::journal::{Entries, Error, Journal};
use coordinator::state::{Durable, Fact};
use tokio::time::Instant;
use types::{BatchId, Timestamp};

use crate::journal::{commit_at_once, copy, facts, idle, used};
use crate::small_run::plan;

/// Facts after which a snapshot is due.
const DUE: usize = 4096;
const DEADLINE: Duration = Duration::from_secs(60);
const PARTIAL: &str = "snapshot.partial";

/// The snapshots in a folder, of the one that holds fewest facts on.
fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect();
    files.sort();
    files
}

fn wait_for_files(folder: &Path, count: usize) -> Vec<PathBuf> {
    let begun = Instant::now();
    loop {
        let files = files(folder);
        if files.len() == count {
            return files;
        }
        assert!(begun.elapsed() < DEADLINE, "{files:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Facts that are still in the store of a journal that nobody has open.
fn facts_left(folder: &Path) -> usize {
    let database = fjall::Database::builder(folder).worker_threads(1).open().unwrap();
    database.keyspace("facts", fjall::KeyspaceCreateOptions::default).unwrap().len().unwrap()
}

/// A journal's folder as a crash would have left it, and the run that has to be found there.
struct Crash {
    name: String,
    folder: tempfile::TempDir,
    run: Durable,
}

impl Crash {
    fn of(name: &str, folder: &Path, run: &Durable) -> Self {
        let copied = tempfile::tempdir().unwrap();
        copy(folder, copied.path());
        Self { name: name.to_owned(), folder: copied, run: run.clone() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The run is found, goes on past the next snapshot, and is found again.
    fn check(&self) {
        let (mut journal, mut run) =
            Journal::open(self.path(), &plan()).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        assert_eq!(run, self.run, "{}", self.name);
        assert_eq!(files(self.path()).len(), 1, "{}: what is no snapshot is removed", self.name);
        assert!(!self.path().join(PARTIAL).exists(), "{}", self.name);
        let at = Timestamp(journal.last_fact().0 + 1);
        commit_at_once(&mut journal, &mut run, idle(at, DUE));
        commit_at_once(&mut journal, &mut run, idle(at, 1));
        drop(journal);
        assert_eq!(Journal::open(self.path(), &plan()).unwrap().1, run, "{}: later", self.name);
    }
}

#[test]
fn a_crash_at_any_point_of_a_snapshot_finds_the_same_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let (mut journal, mut run) = Journal::open(path, &plan()).unwrap();
    let mut written = facts(9_000);
    let at = written[written.len() - 1].0;
    written.extend(idle(at, DUE));
    commit_at_once(&mut journal, &mut run, written);

    // The file is whole, and the store does not know of it.
    let new = wait_for_files(path, 2)[1].clone();
    let name = new.file_name().unwrap();
    let mut crashes = vec![Crash::of("a file that nobody names", path, &run)];
    let bytes = std::fs::read(&new).unwrap();
    for part in [0, 1, bytes.len() / 2, bytes.len() - 1, bytes.len()] {
        let crash = Crash::of(&format!("{part} bytes of a file"), path, &run);
        std::fs::remove_file(crash.path().join(name)).unwrap();
        std::fs::write(crash.path().join(PARTIAL), &bytes[..part]).unwrap();
        crashes.push(crash);
    }

    // The next write names it; a part of that write leaves the snapshot before.
    let log = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let log = log.into_iter().find(|path| path.extension().is_some_and(|end| end == "jnl")).unwrap();
    let (before, unnamed) = (used(&log).len(), Crash::of("before it is named", path, &run));
    commit_at_once(&mut journal, &mut run, idle(at, 1));
    assert_eq!(wait_for_files(path, 1).as_slice(), std::slice::from_ref(&new), "the one before is removed");
    let whole = used(&log);
    for end in (before..whole.len()).step_by(41) {
        let torn = Crash::of(&format!("a head cut at {end}"), unnamed.path(), &unnamed.run);
        let file = OpenOptions::new().write(true).open(torn.path().join(log.file_name().unwrap())).unwrap();
        file.write_all_at(&whole[before..end], before as u64).unwrap();
        crashes.push(torn);
    }

    // The facts that it holds go in parts, one with each write.
    let mut left = Vec::new();
    for part in 0..14 {
        let crash = Crash::of(&format!("{part} parts of the facts removed"), path, &run);
        left.push(facts_left(crash.path()));
        crashes.push(crash);
        commit_at_once(&mut journal, &mut run, idle(at, 1));
    }
    assert!(left[0] > DUE && left.is_sorted_by(|before, after| before >= after || *after < 64), "{left:?}");
    assert!(left[13] < 64, "all of them are removed in the end: {left:?}");
    assert!(crashes.len() > 25);
    crashes.iter().for_each(Crash::check);
}

#[test]
fn a_snapshot_that_is_not_what_was_written_is_refused_and_nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, mut run) = Journal::open(folder.path(), &plan()).unwrap();
    commit_at_once(&mut journal, &mut run, facts(50));
    drop(journal);
    let name = files(folder.path())[0].file_name().unwrap().to_owned();
    let bytes = std::fs::read(folder.path().join(&name)).unwrap();
    let flipped = |place: usize| {
        let mut bytes = bytes.clone();
        bytes[place] ^= 4;
        Some(bytes)
    };
    let middle = bytes.len() / 2;
    for damage in
        [None, Some(bytes[..middle].to_vec()), flipped(0), flipped(middle), flipped(bytes.len() - 1)]
    {
        let crash = Crash::of("damaged", folder.path(), &run);
        let path = crash.path().join(&name);
        match &damage {
            None => std::fs::remove_file(&path).unwrap(),
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
        }
        std::fs::write(crash.path().join(PARTIAL), "evidence").unwrap();
        let error = Journal::open(crash.path(), &plan()).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(name.to_str().unwrap()), "{error}");
        assert_eq!(std::fs::read(&path).ok(), damage);
        assert!(crash.path().join(PARTIAL).exists());
    }
}

#[test]
fn nothing_waits_for_a_snapshot_that_is_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, mut run) = Journal::open(folder.path(), &plan()).unwrap();
    // Whoever writes to a pipe waits for a reader.
    let pipe = folder.path().join(PARTIAL);
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    commit_at_once(&mut journal, &mut run, idle(Timestamp(5), DUE));
    for number in 0..200 {
        let fact = (Timestamp(6 + number), Fact::Checkpointed(BatchId(0)));
        drop(run.replay(fact.0, fact.1.clone()));
        journal.commit(&Entries { facts: vec![fact], ..Entries::default() }).unwrap();
    }
    let crash = Crash::of("while it is written", &without_pipe(folder.path()), &run);
    let mut text = String::new();
    File::open(&pipe).unwrap().read_to_string(&mut text).unwrap();
    assert!(text.starts_with("{\"format\":6,\"end\":4096,"), "{text:.60}");
    // A pipe cannot be flushed: the snapshot is given up, and the next one is written.
    commit_at_once(&mut journal, &mut run, idle(Timestamp(300), 1));
    while pipe.exists() {
        commit_at_once(&mut journal, &mut run, idle(Timestamp(300), 1));
    }
    commit_at_once(&mut journal, &mut run, idle(Timestamp(300), 1));
    commit_at_once(&mut journal, &mut run, idle(Timestamp(301), DUE));
    wait_for_files(folder.path(), 2);
    drop(journal);
    assert_eq!(Journal::open(folder.path(), &plan()).unwrap().1, run);
    crash.check();
}

/// A copy of a folder but for the pipe in it, which nobody can copy.
fn without_pipe(folder: &Path) -> PathBuf {
    let copied = tempfile::tempdir().unwrap().keep();
    let status = Command::new("cp").args(["-r", "--"]).arg(folder).arg(&copied).status().unwrap();
    assert!(status.success());
    let copied = copied.join(folder.file_name().unwrap());
    std::fs::remove_file(copied.join(PARTIAL)).unwrap();
    copied
}
