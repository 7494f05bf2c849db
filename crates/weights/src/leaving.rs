//! Leaving a broadcast group from outside the thread that works with it: an operation that waits for a member
//! that has stopped ends at once, not after its timeout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use collective::{AbortHandle, ProcessGroup};
use types::BroadcastGroupId;

/// Groups whose end is remembered, here and for groups that stand: far more than stand or form at a time.
const REMEMBERED_GROUPS: usize = 64;

/// Which groups were left, and how those that stand are ended. Clones share one state.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leaving(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    standing: BTreeMap<BroadcastGroupId, AbortHandle>,
    left: BTreeSet<BroadcastGroupId>,
}

impl Leaving {
    /// A group stands; false when it was left while it formed.
    pub(crate) fn stands(&self, id: BroadcastGroupId, group: &ProcessGroup) -> bool {
        let mut known = self.known();
        if known.left.contains(&id) {
            return false;
        }
        known.standing.insert(id, group.abort_handle());
        while known.standing.len() > REMEMBERED_GROUPS {
            known.standing.pop_first();
        }
        true
    }

    /// Leaves a group, formed or not: what ends it, if it stands. Ending it takes a moment.
    #[must_use]
    pub(crate) fn leave(&self, id: BroadcastGroupId) -> Option<AbortHandle> {
        let mut known = self.known();
        known.left.insert(id);
        while known.left.len() > REMEMBERED_GROUPS {
            known.left.pop_first();
        }
        known.standing.remove(&id)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
