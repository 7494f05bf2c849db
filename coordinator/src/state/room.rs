//! Which actors have room for a lease, found without looking at the others.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use types::{MemberId, PolicyVersion};

/// Actors that have room for a group or more: by the version that they would generate with, the emptiest
/// first, then by name.
#[derive(Debug, Clone, Default)]
pub(super) struct RoomIndex {
    by_version: BTreeMap<PolicyVersion, BTreeSet<(Reverse<u64>, MemberId)>>,
    places: BTreeMap<MemberId, Room>,
}

/// How much room an actor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Groups that fit.
    pub(super) groups: u64,
    /// What it would generate with.
    pub(super) version: PolicyVersion,
}

impl RoomIndex {
    /// An actor has this much room from now on, or none.
    pub(super) fn place(&mut self, member: &MemberId, room: Option<Room>) {
        let room = room.filter(|room| room.groups > 0);
        if self.places.get(member).copied() == room {
            return;
        }
        if let Some(old) = self.places.remove(member)
            && let Some(actors) = self.by_version.get_mut(&old.version)
        {
            actors.remove(&(Reverse(old.groups), member.clone()));
            if actors.is_empty() {
                self.by_version.remove(&old.version);
            }
        }
        if let Some(room) = room {
            self.places.insert(member.clone(), room);
            let actors = self.by_version.entry(room.version).or_default();
            actors.insert((Reverse(room.groups), member.clone()));
        }
    }

    /// The emptiest actor among those with a version of `oldest` or newer that `may` take work.
    pub(super) fn emptiest(
        &self,
        oldest: PolicyVersion,
        may: impl Fn(PolicyVersion) -> bool,
    ) -> Option<(MemberId, Room)> {
        let able = self.by_version.range(oldest..).filter(|(version, _)| may(**version));
        let first = able.filter_map(|(version, actors)| actors.first().map(|actor| (actor, *version)));
        let ((Reverse(groups), member), version) = first.min_by_key(|(actor, _)| *actor)?;
        Some((member.clone(), Room { groups: *groups, version }))
    }
}
