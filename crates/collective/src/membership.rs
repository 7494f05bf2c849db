//! This rank's place in a group: what its operations, its watcher and its abort handles share, and how it
//! ends.
//! ends.

use std::ops::Deref;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tch::Device;

use crate::deadline::call_within;
use crate::error::Error;
use crate::ffi::RawGroup;
use crate::progress::{Progress, Report};
use crate::store::Connection;

/// How long closing connections may take before it is left to a thread of its own. It takes a millisecond or
/// so over Gloo; ncclCommAbort is known to hang at times.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long freeing a group may take before it is left to a thread of its own. It takes some 20 ms, unless an
/// operation is stuck in c10d, which may take until c10d's own limit to end.
const FREE_TIMEOUT: Duration = Duration::from_millis(250);

/// How long telling the store may take before the news goes untold.
pub(crate) const STORE_TIMEOUT: Duration = Duration::from_millis(250);

/// What ended a group.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Ending {
    /// A failure on this rank.
    #[error("{0}")]
    Here(String),
    /// An abort handle on this rank.
    #[error("aborted: {0}")]
    Aborted(String),
    /// The end of the group on another.
    #[error("{0}")]
    Elsewhere(String),
}

/// What a group's operations, its watcher and its abort handles share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) name: String,
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
    pub(crate) timeout: Duration,
    pub(crate) device: Device,
    /// Whether waiting for an operation polls, and does not notice by itself that the group has ended.
    pub(crate) polls: bool,
    pub(crate) raw: FreedInTime,
    pub(crate) control: Connection,
    pub(crate) host_rank: Option<usize>,
    pub(crate) progress: Mutex<Progress>,
    pub(crate) ending: Mutex<Option<Ending>>,
    /// What the members said when the group ended, by rank; asked for once, under this lock.
    pub(crate) reports: Mutex<Option<Arc<Vec<Option<Report>>>>>,
    /// Operations launched and not known to be over.
    pub(crate) under_way: AtomicUsize,
}

impl Inner {
    pub(crate) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("nothing panics while it holds the progress")
    }

    pub(crate) fn ending(&self) -> MutexGuard<'_, Option<Ending>> {
        self.ending.lock().expect("nothing panics while it holds the ending")
    }

    /// Ends the group unless it has ended; true for the one call that did.
    pub(crate) fn end(&self, how: Ending) -> bool {
        let mut ending = self.ending();
        let first = ending.is_none();
        if first {
            *ending = Some(how);
        }
        first
    }

    /// Closes this rank's connections: pending operations here fail, and those of the others soon after.
    pub(crate) fn close(&self) {
        let raw = Arc::clone(self.raw.group());
        // An abort that fails or hangs changes nothing for us: the group has ended, and c10d's own limit is
        // behind it.
        let _ = call_within("group-close", CLOSE_TIMEOUT, move || raw.abort());
    }

    pub(crate) fn invalid(&self, operation: &'static str, reason: String) -> Error {
        Error::Invalid { group: self.name.clone(), operation, reason }
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = usize> {
        let own = self.rank;
        (0..self.world_size).filter(move |rank| *rank != own)
    }
}

/// A group of c10d whose end is waited for, but not for long: freeing it joins its threads, which are in no
/// hurry when they hang in the network.
#[derive(Debug)]
pub(crate) struct FreedInTime(Option<Arc<RawGroup>>);

impl FreedInTime {
    pub(crate) fn new(raw: RawGroup) -> Self {
        Self(Some(Arc::new(raw)))
    }

    pub(crate) fn group(&self) -> &Arc<RawGroup> {
        self.0.as_ref().expect("taken only when dropped")
    }
}

impl Deref for FreedInTime {
    type Target = RawGroup;

    fn deref(&self) -> &RawGroup {
        self.group()
    }
}

impl Drop for FreedInTime {
    fn drop(&mut self) {
        let raw = self.0.take();
        // When it is late, or there is no thread to be had, it is freed behind our back or not at all.
        let _ = call_within("group-free", FREE_TIMEOUT, move || drop(raw));
    }
}
