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
//! that would not be is left out, and the facts stay.
//!
//! Every fact carries a checksum of all facts up to it, and a mark beside the store says how far the durable
//! ones go (`chain`). What is there is then what was written, and nothing that was durable is missing: else
//! the journal is refused.

mod chain;
mod error;
mod log_scan;
mod store;

use std::path::{Path, PathBuf};

use fjall::PersistMode;
use serde::{Deserialize, Serialize};
use types::{RolloutId, ScoredRollout, Timestamp};

use self::chain::{Chain, Mark, MarkFile};
pub use self::error::Error;
use self::error::FORMAT;
use self::store::{Store, store_problem};
use crate::state::{Durable, Fact, RunPlan};

/// Facts after which a snapshot replaces them.
const FACTS_PER_SNAPSHOT: u64 = 4096;
/// The file that says how far the durable facts go.
const MARK_FILE: &str = "durable-facts";
const SNAPSHOT_KEY: &str = "snapshot";

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
    /// Sequence number of the first fact that the snapshot does not hold.
    snapshot_end: u64,
    /// Sequence number from which on a snapshot is due.
    snapshot_due: u64,
    /// When the newest fact happened.
    last_fact: Timestamp,
    /// The checksum of all facts.
    chain: Chain,
    mark_file: MarkFile,
    /// What was durable when it was opened, at least.
    mark: Option<Mark>,
}

/// Facts as they are written, and where the journal is with them.
struct Lot {
    facts: Vec<(u64, Vec<u8>)>,
    end: Mark,
    last_fact: Timestamp,
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
            snapshot_end: 0,
            snapshot_due: FACTS_PER_SNAPSHOT,
            last_fact: Timestamp(0),
            chain: Chain::default(),
            mark_file,
            mark,
        })
    }

    fn replay(&mut self, plan: &RunPlan) -> Result<Durable, Error> {
        let snapshot =
            self.store()?.head.get(SNAPSHOT_KEY).map_err(|error| self.damaged(store_problem(&error)))?;
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
            self.snapshot_due = snapshot.end + FACTS_PER_SNAPSHOT;
            (self.last_fact, self.chain) = (snapshot.last_fact, snapshot.chain);
        }
        let facts = self.store()?.facts.clone();
        for pair in facts.range(self.snapshot_end.to_be_bytes()..) {
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
    /// [`Error::NoRoom`] when the disk is full: then the same can be committed again, and nothing else. After
    /// any other error the journal must not be used any more.
    pub fn commit(&mut self, entries: &Entries, state: &Durable) -> Result<(), Error> {
        let lot = self.encode(&entries.facts)?;
        if self.store.is_none() {
            self.open_anew(&lot)?;
        }
        let written = self.write(&lot, entries);
        self.shut_if_full(written)?;
        (self.next, self.chain, self.last_fact) = (lot.end.next, lot.end.chain, lot.last_fact);
        // The mark says less than the store where there was no room for it.
        let marked = self.mark_file.write(lot.end);
        match marked {
            Err(error) if service::is_disk_full(&error) => tracing::warn!(%error, "no room for {MARK_FILE}"),
            other => other.map_err(|error| self.unwritable(format!("{MARK_FILE}: {error}")))?,
        }
        if self.next >= self.snapshot_due {
            let written = self.write_snapshot(state);
            match self.shut_if_full(written) {
                // The facts are durable; the snapshot is for later.
                Err(Error::NoRoom { problem, .. }) => tracing::warn!(problem, "no room for a snapshot"),
                Err(Error::Unreadable { problem, .. }) => {
                    tracing::error!(problem, "no snapshot is written: the facts stay in its place");
                    self.snapshot_due = self.next + FACTS_PER_SNAPSHOT;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Facts as they are written after those that are durable.
    fn encode(&self, facts: &[(Timestamp, Fact)]) -> Result<Lot, Error> {
        let mut lot = Lot {
            facts: Vec::with_capacity(facts.len()),
            end: Mark { next: self.next, chain: self.chain },
            last_fact: self.last_fact,
        };
        for (at, fact) in facts {
            let bytes = self.readable(Entry { at: *at, fact: fact.clone() })?;
            lot.end.chain = lot.end.chain.with(&bytes);
            lot.facts.push((lot.end.next, lot.end.chain.entry(&bytes)));
            lot.end.next += 1;
            lot.last_fact = *at;
        }
        Ok(lot)
    }

    fn write(&self, lot: &Lot, entries: &Entries) -> Result<(), Error> {
        let store = self.store()?;
        let mut batch = store.database.batch().durability(Some(PersistMode::SyncAll));
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
            let head: Snapshot<serde::de::IgnoredAny> = serde_json::from_slice(&bytes)
                .map_err(|error| self.damaged(format!("its snapshot does not parse: {error}")))?;
            (next, chain, self.snapshot_end) = (head.end, head.chain, head.end);
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

    /// The bytes of a snapshot, which are known to be read back as this state: the facts that led to it are
    /// removed when it is written.
    fn readable_snapshot(&self, state: &Durable) -> Result<Vec<u8>, Error> {
        let Self { next: end, last_fact, chain, .. } = *self;
        let bytes = serde_json::to_vec(&Snapshot { format: FORMAT, end, last_fact, chain, state })
            .map_err(|error| self.unreadable(format!("the state does not serialise: {error}")))?;
        match serde_json::from_slice::<Snapshot<Durable>>(&bytes) {
            Ok(back) if back.state == *state => Ok(bytes),
            Ok(_) => Err(self.unreadable("the state reads back as another".to_owned())),
            Err(error) => Err(self.unreadable(format!("the state: {error}"))),
        }
    }

    /// Replaces all facts so far by the state that they lead to.
    fn write_snapshot(&mut self, state: &Durable) -> Result<(), Error> {
        let snapshot = self.readable_snapshot(state)?;
        let store = self.store()?;
        let mut batch = store.database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&store.head, SNAPSHOT_KEY, snapshot);
        for sequence in self.snapshot_end..self.next {
            batch.remove(&store.facts, sequence.to_be_bytes());
        }
        batch.commit().map_err(|error| self.not_written(&error))?;
        (self.snapshot_end, self.snapshot_due) = (self.next, self.next + FACTS_PER_SNAPSHOT);
        Ok(())
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
