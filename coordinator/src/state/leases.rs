//! Leases: which actor works on which prompts, and until when.

use std::collections::BTreeMap;
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
pub(super) struct Leases {
    held: BTreeMap<LeaseId, Lease>,
    /// The number given out last.
    last: LeaseId,
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
        self.held.clear();
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.held.values().map(|lease| lease.deadline).min()
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
        self.held.insert(grant.id, Lease { actor, prompts, awaited: issued, issued, deadline });
    }

    /// One attempt of a lease has ended. The last one ends the lease: then its prompts are returned.
    pub(super) fn attempt_ended(&mut self, id: LeaseId) -> Option<Vec<PromptId>> {
        let lease = self.held.get_mut(&id)?;
        lease.awaited = lease.awaited.saturating_sub(1);
        if lease.awaited > 0 {
            return None;
        }
        self.held.remove(&id).map(|lease| lease.prompts)
    }

    /// Leases past their deadline.
    pub(super) fn expired(&self, now: Timestamp) -> Vec<LeaseId> {
        let expired = self.held.iter().filter(|(_, lease)| lease.deadline <= now);
        expired.map(|(id, _)| *id).collect()
    }

    /// Leases of an actor.
    pub(super) fn of_actor(&self, actor: &MemberId) -> Vec<LeaseId> {
        self.held_by(actor).map(|(id, _)| id).collect()
    }

    /// Whether an actor is awaited to deliver something.
    pub(super) fn has_any(&self, actor: &MemberId) -> bool {
        self.held_by(actor).next().is_some()
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
        if plan.deterministic {
            return DETERMINISTIC_LEASE_LIMIT.saturating_sub(self.held_by(actor).count()) as u64;
        }
        // Leases that it had not seen when it counted its free slots will take some of them.
        let unseen = self.held_by(actor).filter(|(id, _)| *id > load.last_lease);
        let taken: u64 = unseen.map(|(_, lease)| u64::from(lease.issued)).sum();
        u64::from(load.free_slots).saturating_sub(taken) / u64::from(plan.group_size)
    }

    fn held_by<'a>(&'a self, actor: &'a MemberId) -> impl Iterator<Item = (LeaseId, &'a Lease)> {
        self.held.iter().filter(move |(_, lease)| lease.actor == *actor).map(|(id, lease)| (*id, lease))
    }
}
