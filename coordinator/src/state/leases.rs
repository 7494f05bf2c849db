//! Leases: which actor works on which prompts, and until when.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::link::actor::ActorLoad;
use types::{LeaseId, MemberId, PromptId, Timestamp};

use super::groups::LeasedGroup;
use super::plan::RunPlan;

/// Leases that an actor may hold in deterministic mode: one at work, one next.
const DETERMINISTIC_LEASE_LIMIT: usize = 2;

/// Leases not yet over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Recorded")]
pub(super) struct Leases {
    held: BTreeMap<LeaseId, Lease>,
    /// The number given out last.
    last: LeaseId,
    /// By holder, the leases with the attempts issued under each.
    #[serde(skip)]
    by_actor: BTreeMap<MemberId, BTreeMap<LeaseId, u32>>,
    #[serde(skip)]
    deadlines: BTreeSet<(Timestamp, LeaseId)>,
}

/// What of the leases a snapshot holds; the rest follows from it.
#[derive(Deserialize)]
struct Recorded {
    held: BTreeMap<LeaseId, Lease>,
    last: LeaseId,
}

impl From<Recorded> for Leases {
    fn from(Recorded { held, last }: Recorded) -> Self {
        let mut leases = Self { last, ..Self::default() };
        for (id, lease) in held {
            leases.insert(id, lease);
        }
        leases
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Lease {
    actor: MemberId,
    prompts: Vec<PromptId>,
    /// Attempts issued under it that have not ended.
    awaited: u32,
    /// Attempts issued under it.
    issued: u32,
    deadline: Timestamp,
}

/// A lease as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseView {
    /// Its number.
    pub(crate) id: LeaseId,
    /// Who holds it.
    pub(crate) actor: MemberId,
    /// Attempts that it still awaits.
    pub(crate) awaited: u32,
    /// When it runs out.
    pub(crate) deadline: Timestamp,
}

/// A lease that is over: every attempt under it has ended.
#[derive(Debug)]
pub(super) struct EndedLease {
    pub(super) actor: MemberId,
    pub(super) prompts: Vec<PromptId>,
}

/// A lease without the prompts' texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its number.
    pub id: LeaseId,
    /// The groups to generate for.
    pub groups: Vec<LeasedGroup>,
    /// What is not scored within this span is issued anew.
    pub timeout: Duration,
}

impl Grant {
    /// Attempts issued with it.
    pub(super) fn attempts(&self) -> u64 {
        self.groups.iter().map(|group| group.wanted.len() as u64).sum()
    }
}

impl Leases {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// A number that no lease had before.
    pub(super) fn next_id(&mut self) -> LeaseId {
        self.last = self.last.next();
        self.last
    }

    /// An actor holds this lease from now on.
    pub(super) fn hold(&mut self, now: Timestamp, actor: MemberId, grant: &Grant) {
        let issued = u32::try_from(grant.attempts()).unwrap_or(u32::MAX);
        let prompts = grant.groups.iter().map(|group| group.prompt).collect();
        let deadline = now + grant.timeout;
        self.insert(grant.id, Lease { actor, prompts, awaited: issued, issued, deadline });
    }

    /// Time in which nobody could be heard: every lease runs so much longer.
    pub(super) fn prolong(&mut self, by: Duration) {
        for (id, mut lease) in std::mem::take(&mut self.held) {
            self.deadlines.remove(&(lease.deadline, id));
            lease.deadline = lease.deadline + by;
            self.deadlines.insert((lease.deadline, id));
            self.held.insert(id, lease);
        }
    }

    fn insert(&mut self, id: LeaseId, lease: Lease) {
        self.by_actor.entry(lease.actor.clone()).or_default().insert(id, lease.issued);
        self.deadlines.insert((lease.deadline, id));
        self.held.insert(id, lease);
    }

    /// One attempt of a lease has ended. The last one ends the lease.
    pub(super) fn attempt_ended(&mut self, id: LeaseId) -> Option<EndedLease> {
        let lease = self.held.get_mut(&id)?;
        lease.awaited = lease.awaited.saturating_sub(1);
        if lease.awaited > 0 {
            return None;
        }
        let Lease { actor, prompts, deadline, .. } = self.held.remove(&id)?;
        self.deadlines.remove(&(deadline, id));
        if let Some(held) = self.by_actor.get_mut(&actor) {
            held.remove(&id);
            if held.is_empty() {
                self.by_actor.remove(&actor);
            }
        }
        Some(EndedLease { actor, prompts })
    }

    /// A lease past its deadline.
    pub(super) fn first_expired(&self, now: Timestamp) -> Option<LeaseId> {
        self.deadlines.first().filter(|(deadline, _)| *deadline <= now).map(|(_, id)| *id)
    }

    /// Leases of an actor.
    pub(super) fn of_actor(&self, actor: &MemberId) -> impl Iterator<Item = LeaseId> {
        self.by_actor.get(actor).into_iter().flat_map(|held| held.keys().copied())
    }

    /// Actors that hold a lease.
    pub(super) fn holders(&self) -> impl Iterator<Item = &MemberId> {
        self.by_actor.keys()
    }

    /// The leases that run longest, the oldest first.
    pub(super) fn oldest(&self, most: usize) -> Vec<LeaseView> {
        let oldest = self.held.iter().take(most);
        let views = oldest.map(|(id, lease)| LeaseView {
            id: *id,
            actor: lease.actor.clone(),
            awaited: lease.awaited,
            deadline: lease.deadline,
        });
        views.collect()
    }

    /// Whether an actor is awaited to deliver something.
    pub(super) fn has_any(&self, actor: &MemberId) -> bool {
        self.by_actor.contains_key(actor)
    }

    /// The holder of a lease.
    pub(super) fn holder(&self, id: LeaseId) -> Option<&MemberId> {
        self.held.get(&id).map(|lease| &lease.actor)
    }

    /// The prompts of a lease.
    pub(super) fn prompts(&self, id: LeaseId) -> &[PromptId] {
        self.held.get(&id).map(|lease| lease.prompts.as_slice()).unwrap_or_default()
    }

    /// Groups that an actor with this load has room for.
    pub(super) fn room(&self, plan: &RunPlan, actor: &MemberId, load: &ActorLoad) -> u64 {
        let held = self.by_actor.get(actor);
        if plan.deterministic {
            return DETERMINISTIC_LEASE_LIMIT.saturating_sub(held.map_or(0, BTreeMap::len)) as u64;
        }
        // Leases that it had not seen when it counted its free slots will take some of them.
        let unseen = held
            .into_iter()
            .flat_map(|held| held.range((Bound::Excluded(load.last_lease), Bound::Unbounded)));
        let taken: u64 = unseen.map(|(_, issued)| u64::from(*issued)).sum();
        u64::from(load.free_slots).saturating_sub(taken) / u64::from(plan.group_size)
    }
}
