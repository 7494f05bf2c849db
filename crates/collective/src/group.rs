//! A process group: connected ranks that run operations together, and how the group ends.
//!
//! Life: open, then ended for good. What ends it is whatever comes first: an operation that fails or misses
//! its deadline here, [`AbortHandle::abort`] here, or the end of the group on another member, which the
//! [`watcher`](crate::watcher) hears of. Ending closes this rank's connections, which makes every pending
//! operation here fail. Before that it is announced in the store, so that the others hear of the cause rather
//! than of broken connections.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tch::Device;

use crate::deadline::call_within;
use crate::error::{Error, Result};
use crate::ffi::RawGroup;
use crate::join::{Backend, GroupConfig, Joined, join};
use crate::progress::{Progress, Report, Standing};
use crate::store::{Connection, Store};
use crate::watcher;

/// How long closing connections may take before it is left to a thread of its own. It takes a millisecond or
/// so over Gloo; ncclCommAbort is known to hang at times.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long freeing a group may take before it is left to a thread of its own. It takes some 20 ms, unless an
/// operation is stuck in c10d, which may take until c10d's own limit to end.
const FREE_TIMEOUT: Duration = Duration::from_millis(250);

/// How long telling the store may take before the news goes untold.
pub(crate) const STORE_TIMEOUT: Duration = Duration::from_millis(250);

/// Connected ranks that run operations on tensors together.
///
/// All ranks launch the same collective operations in the same order. One thread of a process works with a
/// group (`Send`, not `Sync`); other threads may end it through an [`AbortHandle`]. Dropping the group ends
/// what is still under way in it, here and, where they still wait for this rank, on the others.
#[derive(Debug)]
pub struct ProcessGroup {
    pub(crate) inner: Arc<Inner>,
    not_sync: PhantomData<Cell<()>>,
}

impl ProcessGroup {
    /// Joins a group. Blocks until all its members have joined.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the config makes no sense or the name was used before; [`Error::Join`] when
    /// not all members came and connected within `join_timeout`; [`Error::Store`] and [`Error::StoreTimeout`]
    /// when the store does not answer.
    pub fn new(store: &Store, config: GroupConfig) -> Result<Self> {
        config.validate()?;
        let Joined { raw, control, host_rank } = join(store, &config)?;
        let (device, polls) = match config.backend {
            Backend::Gloo(_) => (Device::Cpu, false),
            Backend::Nccl { device } => (Device::Cuda(device), true),
        };
        let watched = control.reconnect()?;
        let inner = Arc::new(Inner {
            name: config.name,
            rank: config.rank,
            world_size: config.world_size,
            timeout: config.timeout,
            device,
            polls,
            raw: FreedInTime(Some(Arc::new(raw))),
            control,
            host_rank,
            progress: Mutex::default(),
            ending: Mutex::default(),
            reports: Mutex::default(),
            under_way: AtomicUsize::new(0),
        });
        watcher::start(watched, &inner)?;
        Ok(Self { inner, not_sync: PhantomData })
    }

    /// The name of the group.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// This process's rank, from 0.
    pub fn rank(&self) -> usize {
        self.inner.rank
    }

    /// Number of members.
    pub fn world_size(&self) -> usize {
        self.inner.world_size
    }

    /// The device whose tensors the group works on.
    pub fn device(&self) -> Device {
        self.inner.device
    }

    /// What ended the group; `None` while it is open. A member that fails ends it here too, within
    /// milliseconds, also between operations.
    pub fn ended(&self) -> Option<String> {
        self.inner.ending().as_ref().map(Ending::to_string)
    }

    /// A handle by which another thread may end the group.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle { group: Arc::downgrade(&self.inner) }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let was_open = self.inner.end(Ending::Here("dropped".to_owned()));
        if was_open && self.inner.under_way.load(Ordering::Acquire) > 0 {
            self.inner.close();
        }
        watcher::leave(&self.inner, was_open);
    }
}

/// Ends a group from another thread.
#[derive(Clone, Debug)]
pub struct AbortHandle {
    group: Weak<Inner>,
}

impl AbortHandle {
    /// Ends the group on all members, and with it every pending operation: here they return
    /// [`Error::Aborted`] with this reason, elsewhere [`Error::Lost`]. Does nothing when the group has ended
    /// already or is gone.
    pub fn abort(&self, reason: &str) {
        let Some(group) = self.group.upgrade() else { return };
        if group.end(Ending::Aborted(reason.to_owned())) {
            let cause = format!("rank {} aborted: {reason}", group.rank);
            group.announce(cause, Standing::Aborted(reason.to_owned()));
            group.close();
        }
    }
}

/// What ended a group.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Ending {
    /// A failure on this rank.
    #[error("{0}")]
    Here(String),
    /// [`AbortHandle::abort`] on this rank.
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
    progress: Mutex<Progress>,
    ending: Mutex<Option<Ending>>,
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
