//! The store under a journal: keys and values, written in batches.

use std::panic::catch_unwind;
use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use service::is_disk_full;

use super::error::Error;

/// The store under a journal.
pub(super) struct Store {
    pub(super) database: Database,
    /// Facts since the snapshot, by sequence number.
    pub(super) facts: Keyspace,
    /// The snapshot.
    pub(super) head: Keyspace,
    /// Scored rollouts by id.
    pub(super) rollouts: Keyspace,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
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
        Ok(Self { database, facts, head, rollouts })
    }
}

/// Whether a write failed for want of room. A store whose background work found none takes nothing more and
/// does not say why.
pub(super) fn has_no_room(error: &fjall::Error) -> bool {
    is_disk_full(error) || matches!(error, fjall::Error::Poisoned)
}

/// The store's error with its causes: the outermost message alone often says nothing.
pub(super) fn store_problem(error: &fjall::Error) -> String {
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
    if is_disk_full(error) {
        return Error::NoRoom { path: path.to_owned(), problem: store_problem(error) };
    }
    if matches!(error, fjall::Error::Locked) {
        return Error::Locked { path: path.to_owned() };
    }
    Error::Open { path: path.to_owned(), problem: store_problem(error) }
}
