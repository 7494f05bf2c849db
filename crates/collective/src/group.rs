//! A process group: connected ranks that run operations together, and how the group ends.
//!
//! Life: open, then ended for good. What ends it is whatever comes first: an operation that fails or misses
//! its deadline here, [`AbortHandle::abort`] here, or the end of the group on another member, which the
//! [`watcher`](crate::watcher) hears of. Ending closes this rank's connections, which makes every pending
//! operation here fail. Before that it is announced in the store, so that the others hear of the cause rather
//! than of broken connections.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tch::Device;

use crate::error::Result;
use crate::join::{Backend, GroupConfig, Joined, join};
use crate::membership::{Ending, FreedInTime, Inner};
use crate::progress::Standing;
use crate::store::Store;
use crate::watcher;

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
    /// `Error::Invalid` when the config makes no sense or the name was used before; `Error::Join` when
    /// not all members came and connected within `join_timeout`; `Error::Store` and `Error::StoreTimeout`
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
            raw: FreedInTime::new(raw),
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
    /// `Error::Aborted` with this reason, elsewhere `Error::Lost`. Does nothing when the group has ended
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
