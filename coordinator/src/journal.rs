//! The journal: facts in order, the tokens of scored responses beside them, and a snapshot now and then
//! (`docs/decisions.md`, D3).
//!
//! A fact is durable (fsync) before anybody sees its effect. Restart is snapshot plus replay. A failed
//! write ends the process: after a failed fsync nothing about the file may be assumed (Rebello et al., "Can
//! Applications Recover from fsync Failures?", 2020). What was not acknowledged is sent again by those who
//! hold it.
//!
//! Every fact carries a checksum of all facts up to it, and a mark beside the store says how far the durable
//! ones go (`chain`). What is there is then what was written, and nothing that was durable is missing: else
//! the journal is refused.

mod chain;

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use serde::{Deserialize, Serialize};
use types::{RolloutId, ScoredRollout, Timestamp};

use self::chain::{Chain, Mark, MarkFile};
use crate::state::{Durable, Fact, RunPlan};

/// Layout of the journal; another one is refused.
const FORMAT: u32 = 4;
/// Facts after which a snapshot replaces them.
const FACTS_PER_SNAPSHOT: u64 = 4096;
/// The file that says how far the durable facts go.
const MARK_FILE: &str = "durable-facts";
const SNAPSHOT_KEY: &str = "snapshot";

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be opened as a journal.
    #[error("cannot open the journal {path}: {problem}")]
    Open {
        /// Its folder.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// What it holds cannot be understood.
    #[error("the journal {path} is damaged: {problem}; restore it, or start a new run in another folder")]
    Damaged {
        /// Its folder.
        path: PathBuf,
        /// Where.
        problem: String,
    },
    /// Another release wrote it.
    #[error(
        "the journal {path} has format {format}, this release reads format {FORMAT}: finish the run with the release \
         that began it, or start a new one in another folder (its checkpoints can be the new run's model)"
    )]
    OtherFormat {
        /// Its folder.
        path: PathBuf,
        /// Its layout.
        format: u32,
    },
    /// It belongs to a run with another plan.
    #[error(
        "the journal {path} was begun under another plan: {}; restore the old values, or start a new run",
        conflicts.join("; ")
    )]
    OtherPlan {
        /// Its folder.
        path: PathBuf,
        /// What differs.
        conflicts: Vec<String>,
    },
    /// A fact would not be read back. Nothing of it is written.
    #[error("a fact cannot be written to the journal {path}, because it would not be read back: {problem}")]
    Unreadable {
        /// Its folder.
        path: PathBuf,
        /// Which one, and why.
        problem: String,
    },
    /// It cannot be written.
    #[error(
        "cannot write to the journal {path}: {problem}; nothing acknowledged is lost: make room and start again, and \
         the run goes on where it was"
    )]
    Write {
        /// Its folder.
        path: PathBuf,
        /// What the store says.
        problem: String,
    },
}

/// What one write makes durable.
#[derive(Debug, Default)]
pub struct Entries {
    /// Facts in order.
    pub facts: Vec<(Timestamp, Fact)>,
    /// Tokens of responses that count from now on.
    pub keep: Vec<ScoredRollout>,
    /// Responses whose tokens are needed no more.
    pub forget: Vec<RolloutId>,
}

/// An open journal.
pub struct Journal {
    path: PathBuf,
    database: Database,
    /// Facts since the snapshot, by sequence number.
    facts: Keyspace,
    /// The snapshot.
    head: Keyspace,
    /// Scored rollouts by id.
    rollouts: Keyspace,
    /// Sequence number of the next fact.
    next: u64,
    /// Sequence number of the first fact that the snapshot does not hold.
    snapshot_end: u64,
    /// When the newest fact happened.
    last_fact: Timestamp,
    /// The checksum of all facts.
    chain: Chain,
    mark_file: MarkFile,
    /// What was durable when it was opened, at least.
    mark: Option<Mark>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("path", &self.path).field("next", &self.next).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Snapshot<S> {
    format: u32,
    /// Sequence number of the first fact that the state does not hold.
    end: u64,
    /// When the newest fact that the state holds happened.
    last_fact: Timestamp,
    /// The checksum of the facts that the state holds.
    chain: Chain,
    state: S,
}

/// What of a snapshot every version understands.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct Entry {
    at: Timestamp,
    fact: Fact,
}

impl Journal {
    /// Opens the journal of a run and replays it, or begins one.
    ///
    /// # Errors
    /// When the folder cannot be used, holds another run, or is damaged.
    pub fn open(path: &Path, plan: &RunPlan) -> Result<(Self, Durable), Error> {
        let mut journal = Self::open_store(path)?;
        let state = journal.replay(plan)?;
        let mut conflicts = plan.conflicts_with(state.plan());
        let trained = state.batches().trained().0;
        if plan.batches < trained {
            conflicts.push(format!("batches is {} now, but {trained} are trained already", plan.batches));
        }
        if !conflicts.is_empty() {
            return Err(Error::OtherPlan { path: path.to_owned(), conflicts });
        }
        if journal.next == 0 {
            // The plan itself has to be durable before the first fact that was decided under it.
            journal.write_snapshot(&state)?;
        }
        Ok((journal, state))
    }

    fn open_store(path: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(path)
            .map_err(|error| Error::Open { path: path.to_owned(), problem: error.to_string() })?;
        // The store asserts what it reads: damage must not look like a fault of ours.
        let opened = catch_unwind(|| Database::builder(path).worker_threads(1).open());
        let opened = opened.map_err(|_| Error::Damaged {
            path: path.to_owned(),
            problem: "its store cannot make sense of its log".to_owned(),
        })?;
        let database = opened.map_err(|error| not_opened(path, &error))?;
        let facts = keyspace(path, &database, "facts")?;
        let head = keyspace(path, &database, "head")?;
        let rollouts = keyspace(path, &database, "rollouts")?;
        let (mark_file, mark) = MarkFile::open(&path.join(MARK_FILE)).map_err(|error| Error::Open {
            path: path.to_owned(),
            problem: format!("{MARK_FILE}: {error}"),
        })?;
        Ok(Self {
            path: path.to_owned(),
            database,
            facts,
            head,
            rollouts,
            next: 0,
            snapshot_end: 0,
            last_fact: Timestamp(0),
            chain: Chain::default(),
            mark_file,
            mark,
        })
    }

    fn replay(&mut self, plan: &RunPlan) -> Result<Durable, Error> {
        let snapshot = self.head.get(SNAPSHOT_KEY).map_err(|error| self.damaged(store_problem(&error)))?;
        let mut state = Durable::new(plan.clone());
        if let Some(bytes) = snapshot {
            let Format { format } = serde_json::from_slice(&bytes)
                .map_err(|error| self.damaged(format!("its snapshot names no format: {error}")))?;
            if format != FORMAT {
                return Err(self.other_format(format));
            }
            let snapshot: Snapshot<Durable> = serde_json::from_slice(&bytes)
                .map_err(|error| self.damaged(format!("its snapshot does not parse: {error}")))?;
            state = snapshot.state;
            (self.next, self.snapshot_end) = (snapshot.end, snapshot.end);
            (self.last_fact, self.chain) = (snapshot.last_fact, snapshot.chain);
        }
        for pair in self.facts.range(self.snapshot_end.to_be_bytes()..) {
            let (key, value) = pair.into_inner().map_err(|error| self.damaged(store_problem(&error)))?;
            if key.as_ref() != self.next.to_be_bytes() {
                return Err(self.damaged(format!("fact {} is missing", self.next)));
            }
            let Some((chain, fact)) = self.chain.check(&value) else {
                return Err(self.damaged(format!("fact {} is not the one that was written", self.next)));
            };
            let entry: Entry = serde_json::from_slice(fact)
                .map_err(|error| self.damaged(format!("fact {} does not parse: {error}", self.next)))?;
            self.last_fact = entry.at;
            let _ = state.replay(entry.at, entry.fact);
            self.next += 1;
            self.chain = chain;
            self.check_mark_passed()?;
        }
        self.check_mark_reached()?;
        Ok(state)
    }

    /// The facts up to the mark have to be those that it was made for.
    fn check_mark_passed(&self) -> Result<(), Error> {
        match self.mark {
            Some(mark) if mark.next == self.next && mark.chain != self.chain => {
                Err(self.damaged(format!("fact {} is of another journal than {MARK_FILE}", self.next - 1)))
            }
            _ => Ok(()),
        }
    }

    /// Nothing that was durable may be missing.
    fn check_mark_reached(&self) -> Result<(), Error> {
        let durable = self.mark.map_or(0, |mark| mark.next);
        if self.next < durable {
            let (lost, next) = (durable - self.next, self.next);
            return Err(self.damaged(format!(
                "its last {lost} facts are missing: {durable} were durable, and the store cut its log off after {next}"
            )));
        }
        if self.next > durable && self.mark.is_some() {
            let facts = self.next - durable;
            tracing::info!(facts, "the journal's last facts were written and nobody was told of them");
        }
        Ok(())
    }

    /// Makes everything in `entries` durable at once; `state` is the run after the facts.
    ///
    /// # Errors
    /// When the store cannot write. The journal must not be used any more.
    pub fn commit(&mut self, entries: Entries, state: &Durable) -> Result<(), Error> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for (at, fact) in entries.facts {
            let bytes = self.readable(Entry { at, fact })?;
            self.chain = self.chain.with(&bytes);
            batch.insert(&self.facts, self.next.to_be_bytes(), self.chain.entry(&bytes));
            self.next += 1;
            self.last_fact = at;
        }
        for scored in entries.keep {
            let key = scored.rollout().id().to_string();
            batch.insert(&self.rollouts, key.as_str(), proto::scored_to_bytes(scored));
        }
        for id in entries.forget {
            batch.remove(&self.rollouts, id.to_string().as_str());
        }
        batch.commit().map_err(|error| self.unwritable(store_problem(&error)))?;
        let mark = Mark { next: self.next, chain: self.chain };
        self.mark_file.write(mark).map_err(|error| self.unwritable(format!("{MARK_FILE}: {error}")))?;
        if self.next - self.snapshot_end >= FACTS_PER_SNAPSHOT {
            self.write_snapshot(state)?;
        }
        Ok(())
    }

    /// The bytes of an entry, which are known to be read back as what they were written for.
    fn readable(&self, entry: Entry) -> Result<Vec<u8>, Error> {
        let bytes = serde_json::to_vec(&entry)
            .map_err(|error| self.unreadable(format!("a fact does not serialise: {error}")))?;
        match serde_json::from_slice::<Entry>(&bytes) {
            Ok(back) if back == entry => Ok(bytes),
            Ok(_) => Err(self.unreadable(format!("it reads back as another: {:?}", entry.fact))),
            Err(error) => Err(self.unreadable(format!("{error}: {:?}", entry.fact))),
        }
    }

    fn unreadable(&self, problem: String) -> Error {
        Error::Unreadable { path: self.path.clone(), problem }
    }

    /// Replaces all facts so far by the state that they lead to.
    fn write_snapshot(&mut self, state: &Durable) -> Result<(), Error> {
        let snapshot = serde_json::to_vec(&Snapshot {
            format: FORMAT,
            end: self.next,
            last_fact: self.last_fact,
            chain: self.chain,
            state,
        })
        .map_err(|error| self.unwritable(format!("the state does not serialise: {error}")))?;
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&self.head, SNAPSHOT_KEY, snapshot);
        for sequence in self.snapshot_end..self.next {
            batch.remove(&self.facts, sequence.to_be_bytes());
        }
        batch.commit().map_err(|error| self.unwritable(store_problem(&error)))?;
        self.snapshot_end = self.next;
        Ok(())
    }

    /// The tokens of a response that counts.
    ///
    /// # Errors
    /// When they are not there or not sound.
    pub fn scored(&self, id: RolloutId) -> Result<ScoredRollout, Error> {
        let stored =
            self.rollouts.get(id.to_string()).map_err(|error| self.damaged(store_problem(&error)))?;
        let bytes = stored.ok_or_else(|| self.damaged(format!("the tokens of {id} are missing")))?;
        proto::scored_from_bytes(&bytes).map_err(|error| self.damaged(format!("the tokens of {id}: {error}")))
    }

    /// When the newest fact happened; 0 in a new journal.
    pub fn last_fact(&self) -> Timestamp {
        self.last_fact
    }

    /// Number of responses stored.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn stored_rollouts(&self) -> Result<usize, Error> {
        self.rollouts.len().map_err(|error| self.damaged(store_problem(&error)))
    }

    fn other_format(&self, format: u32) -> Error {
        Error::OtherFormat { path: self.path.clone(), format }
    }

    fn damaged(&self, problem: String) -> Error {
        Error::Damaged { path: self.path.clone(), problem }
    }

    fn unwritable(&self, problem: String) -> Error {
        Error::Write { path: self.path.clone(), problem }
    }
}

/// The store's error with its causes: the outermost message alone often says nothing.
fn store_problem(error: &fjall::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

fn keyspace(path: &Path, database: &Database, name: &str) -> Result<Keyspace, Error> {
    database.keyspace(name, KeyspaceCreateOptions::default).map_err(|error| not_opened(path, &error))
}

fn not_opened(path: &Path, error: &fjall::Error) -> Error {
    let problem = match error {
        fjall::Error::Locked => "another coordinator is using it; stop that one first".to_owned(),
        other => store_problem(other),
    };
    Error::Open { path: path.to_owned(), problem }
}
