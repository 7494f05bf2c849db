//! The journal: facts in order, the tokens of scored responses beside them, and a snapshot now and then
//! (`docs/decisions.md`, D3).
//!
//! A fact is durable (fsync) before anybody sees its effect. Restart is snapshot plus replay. A failed
//! write ends the process: after a failed fsync nothing about the file may be assumed (Rebello et al., "Can
//! Applications Recover from fsync Failures?", 2020). What was not acknowledged is sent again by those who
//! hold it. A disk without room is the exception: what was to be written is known, so the store is opened
//! anew, what of it is torn is cut off, and it is written again.
//!
//! What is written is known to be read back as what it was written for, facts and snapshots alike: a snapshot
//! that would not be is left out, and the facts stay. Snapshots are written beside the loop (`snapshots`).
//!
//! Every fact carries a checksum of all facts up to it, and a mark beside the store says how far the durable
//! ones go (`chain`). What is there is then what was written, and nothing that was durable is missing: else
//! the journal is refused.

mod chain;
mod error;
mod log_scan;
mod snapshots;
mod store;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use fjall::PersistMode;
use serde::{Deserialize, Serialize};
use types::{RolloutId, ScoredRollout, Timestamp};

use self::chain::{Chain, Mark, MarkFile};
pub use self::error::Error;
use self::error::{FORMAT, FORMAT_BEFORE};
use self::snapshots::{Head, Snapshot, Snapshots};
use self::store::{Store, store_problem};
use crate::state::{Durable, Fact, RunPlan};

/// The file that says how far the durable facts go.
const MARK_FILE: &str = "durable-facts";
const SNAPSHOT_KEY: &str = "snapshot";
/// Facts that a snapshot holds and that one write removes, at most.
const REMOVALS_PER_WRITE: u64 = 512;

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
    /// None after a write for which there was no room, until it can be opened anew.
    store: Option<Store>,
    /// Sequence number of the next fact.
    next: u64,
    /// The snapshot that a restart begins with.
    head: Option<Head>,
    /// One that lies on the disk and that the store does not name yet.
    next_head: Option<Head>,
    /// Sequence number of the first fact that is still there, although the snapshot may hold it.
    first: u64,
    snapshots: Option<Snapshots>,
    /// When the newest fact happened.
    last_fact: Timestamp,
    /// The checksum of all facts.
    chain: Chain,
    mark_file: MarkFile,
    /// What was durable when it was opened, at least.
    mark: Option<Mark>,
}

/// Facts as they are written and as they are read back, and where the journal is with them.
struct Lot {
    facts: Vec<(u64, Vec<u8>)>,
    entries: Vec<Entry>,
    end: Mark,
    last_fact: Timestamp,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("path", &self.path).field("next", &self.next).finish_non_exhaustive()
    }
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
        let head = match journal.head.take() {
            Some(head) => head,
            // The plan itself has to be durable before the first fact that was decided under it.
            None => journal.begin(&state)?,
        };
        snapshots::remove_others(path, &head);
        let snapshots = Snapshots::start(path, &head, state.clone()).map_err(|error| {
            let problem = format!("no thread for its snapshots: {error}");
            Error::Open { path: path.to_owned(), problem }
        })?;
        (journal.head, journal.snapshots) = (Some(head), Some(snapshots));
        Ok((journal, state))
    }

    /// Writes the first snapshot of a run.
    fn begin(&self, state: &Durable) -> Result<Head, Error> {
        let head = snapshots::write(&self.path, state, Mark::default(), self.last_fact)?;
        let store = self.store()?;
        let mut batch = store.database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&store.head, SNAPSHOT_KEY, self.head_bytes(&head)?);
        batch.commit().map_err(|error| self.not_written(&error))?;
        Ok(head)
    }

    fn open_store(path: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(path)
            .map_err(|error| Error::Open { path: path.to_owned(), problem: error.to_string() })?;
        let (mark_file, mark) = MarkFile::open(&path.join(MARK_FILE)).map_err(|error| Error::Open {
            path: path.to_owned(),
            problem: format!("{MARK_FILE}: {error}"),
        })?;
        log_scan::mend(path, mark)?;
        let store = Store::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            store: Some(store),
            next: 0,
            head: None,
            next_head: None,
            first: 0,
            snapshots: None,
            last_fact: Timestamp(0),
            chain: Chain::default(),
            mark_file,
            mark,
        })
    }

    fn replay(&mut self, plan: &RunPlan) -> Result<Durable, Error> {
        let mut state = Durable::new(plan.clone());
        if let Some((head, in_head)) = self.read_head()? {
            state = match in_head {
                Some(state) => state,
                None => head.read(&self.path).map_err(|problem| self.damaged(problem))?,
            };
            (self.next, self.last_fact, self.chain) = (head.end, head.last_fact, head.chain);
            self.head = Some(head);
        }
        let (facts, end) = (self.store()?.facts.clone(), self.next);
        self.first = end;
        // What a snapshot holds is removed in parts, and the last ones may still be there.
        if let Some(pair) = facts.range(..end.to_be_bytes()).next() {
            let key = pair.key().map_err(|error| self.damaged(store_problem(&error)))?;
            self.first = key.as_ref().try_into().map_or(end, u64::from_be_bytes);
        }
        for pair in facts.range(end.to_be_bytes()..) {
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

    /// The head of the store, and the state where it lies in it as format 5 had it.
    fn read_head(&self) -> Result<Option<(Head, Option<Durable>)>, Error> {
        let bytes = self.store()?.head.get(SNAPSHOT_KEY);
        let Some(bytes) = bytes.map_err(|error| self.damaged(store_problem(&error)))? else {
            return Ok(None);
        };
        let Format { format } = serde_json::from_slice(&bytes)
            .map_err(|error| self.damaged(format!("its snapshot names no format: {error}")))?;
        if ![FORMAT_BEFORE, FORMAT].contains(&format) {
            return Err(self.other_format(format));
        }
        let unparsable = |error| self.damaged(format!("its snapshot does not parse: {error}"));
        let head: Head = serde_json::from_slice(&bytes).map_err(unparsable)?;
        if format == FORMAT {
            return Ok(Some((head, None)));
        }
        let snapshot: Snapshot<Durable> = serde_json::from_slice(&bytes).map_err(unparsable)?;
        Ok(Some((Head { bytes: bytes.len() as u64, ..head }, Some(snapshot.state))))
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

    /// Makes everything in `entries` durable at once.
    ///
    /// # Errors
    /// [`Error::NoRoom`] when the disk is full: then the same can be committed again, and nothing else. After
    /// any other error the journal must not be used any more.
    pub fn commit(&mut self, entries: &Entries) -> Result<(), Error> {
        let lot = self.encode(&entries.facts)?;
        if self.store.is_none() {
            self.open_anew(&lot)?;
        }
        if let Some(snapshots) = &mut self.snapshots
            && let Some(written) = snapshots.take_written(self.next)?
        {
            self.next_head = Some(written);
        }
        let removed = self.removals();
        let written = self.write(&lot, entries, removed.clone());
        self.shut_if_full(written)?;
        (self.next, self.chain, self.last_fact) = (lot.end.next, lot.end.chain, lot.last_fact);
        self.first = removed.end;
        // The mark says less than the store where there was no room for it.
        let marked = self.mark_file.write(lot.end);
        match marked {
            Err(error) if service::is_disk_full(&error) => tracing::warn!(%error, "no room for {MARK_FILE}"),
            other => other.map_err(|error| self.unwritable(format!("{MARK_FILE}: {error}")))?,
        }
        if let Some(head) = self.next_head.take() {
            snapshots::remove_others(&self.path, &head);
            self.head = Some(head);
        }
        match &mut self.snapshots {
            Some(snapshots) => snapshots.add(lot.entries, lot.end, lot.last_fact),
            None => Ok(()),
        }
    }

    /// The next facts that the snapshot holds and that are still there.
    fn removals(&self) -> std::ops::Range<u64> {
        let end = self.head.as_ref().map_or(0, |head| head.end);
        self.first..end.min(self.first + REMOVALS_PER_WRITE).max(self.first)
    }

    /// Facts as they are written after those that are durable.
    fn encode(&self, facts: &[(Timestamp, Fact)]) -> Result<Lot, Error> {
        let mut lot = Lot {
            facts: Vec::with_capacity(facts.len()),
            entries: Vec::with_capacity(facts.len()),
            end: Mark { next: self.next, chain: self.chain },
            last_fact: self.last_fact,
        };
        for (at, fact) in facts {
            let (bytes, entry) = self.readable(Entry { at: *at, fact: fact.clone() })?;
            lot.entries.push(entry);
            lot.end.chain = lot.end.chain.with(&bytes);
            lot.facts.push((lot.end.next, lot.end.chain.entry(&bytes)));
            lot.end.next += 1;
            lot.last_fact = *at;
        }
        Ok(lot)
    }

    fn write(&self, lot: &Lot, entries: &Entries, removed: std::ops::Range<u64>) -> Result<(), Error> {
        let store = self.store()?;
        let mut batch = store.database.batch().durability(Some(PersistMode::SyncAll));
        if let Some(head) = &self.next_head {
            batch.insert(&store.head, SNAPSHOT_KEY, self.head_bytes(head)?);
        }
        for sequence in removed {
            batch.remove(&store.facts, sequence.to_be_bytes());
        }
        for (sequence, entry) in &lot.facts {
            batch.insert(&store.facts, sequence.to_be_bytes(), entry.as_slice());
        }
        for scored in &entries.keep {
            let key = scored.rollout().id().to_string();
            batch.insert(&store.rollouts, key.as_str(), proto::scored_to_bytes(scored.clone()));
        }
        for id in &entries.forget {
            batch.remove(&store.rollouts, id.to_string().as_str());
        }
        batch.commit().map_err(|error| self.not_written(&error))
    }

    /// A store that could not write is not used any more.
    fn shut_if_full(&mut self, written: Result<(), Error>) -> Result<(), Error> {
        if matches!(written, Err(Error::NoRoom { .. })) {
            self.store = None;
        }
        written
    }

    /// Opens the store again after a write of `lot` for which there was no room, and checks that it holds
    /// what was durable before and nothing else, or all of the lot besides: what was torn is cut off, but a
    /// write can fail when it is complete, before it is flushed. The lot is written again in either case, to
    /// the same keys.
    fn open_anew(&mut self, lot: &Lot) -> Result<(), Error> {
        let store = Store::open(&self.path)?;
        let (mut next, mut chain) = (0, Chain::default());
        if let Some(bytes) = store.head.get(SNAPSHOT_KEY).map_err(|error| self.not_written(&error))? {
            let head: Head = serde_json::from_slice(&bytes)
                .map_err(|error| self.damaged(format!("its snapshot does not parse: {error}")))?;
            (next, chain) = (head.end, head.chain);
        }
        for pair in store.facts.range(next.to_be_bytes()..) {
            let (_, value) = pair.into_inner().map_err(|error| self.not_written(&error))?;
            let Some((with, _)) = chain.check(&value) else {
                return Err(self.damaged(format!("fact {next} is not the one that was written")));
            };
            (next, chain) = (next + 1, with);
        }
        let found = Mark { next, chain };
        if found != lot.end && found != (Mark { next: self.next, chain: self.chain }) {
            let problem = format!("it has {next} facts after a write that failed, {} are durable", self.next);
            return Err(self.unwritable(problem));
        }
        self.store = Some(store);
        Ok(())
    }

    fn store(&self) -> Result<&Store, Error> {
        self.store.as_ref().ok_or_else(|| self.no_room("it could not be written".to_owned()))
    }

    /// The bytes of an entry, which are known to be read back as what they were written for, and the entry.
    fn readable(&self, entry: Entry) -> Result<(Vec<u8>, Entry), Error> {
        let bytes = serde_json::to_vec(&entry)
            .map_err(|error| self.unreadable(format!("a fact does not serialise: {error}")))?;
        match serde_json::from_slice::<Entry>(&bytes) {
            Ok(back) if back == entry => Ok((bytes, back)),
            Ok(_) => Err(self.unreadable(format!("it reads back as another: {:?}", entry.fact))),
            Err(error) => Err(self.unreadable(format!("{error}: {:?}", entry.fact))),
        }
    }

    fn unreadable(&self, problem: String) -> Error {
        Error::Unreadable { path: self.path.clone(), problem }
    }

    fn head_bytes(&self, head: &Head) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(head)
            .map_err(|error| self.unreadable(format!("the head does not serialise: {error}")))
    }

    /// The tokens of a response that counts.
    ///
    /// # Errors
    /// When they are not there or not sound.
    pub fn scored(&self, id: RolloutId) -> Result<ScoredRollout, Error> {
        let stored = self.store()?.rollouts.get(id.to_string());
        let stored = stored.map_err(|error| self.damaged(store_problem(&error)))?;
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
        self.store()?.rollouts.len().map_err(|error| self.damaged(store_problem(&error)))
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

    fn no_room(&self, problem: String) -> Error {
        Error::NoRoom { path: self.path.clone(), problem }
    }

    fn not_written(&self, error: &fjall::Error) -> Error {
        if store::has_no_room(error) {
            self.no_room(store_problem(error))
        } else {
            self.unwritable(store_problem(error))
        }
    }
}

/// Flushes a folder: the names in it are those that it has now, also after a crash.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
