//! Leases: which actor works on which prompts, and until when.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use types::{FailReason, LeaseId, MemberId, PromptId, RolloutId, Timestamp};

use super::effect::{Grant, LeasedGroup};
use super::{Effect, Phase, State};

/// Leases that an actor may hold in deterministic mode: one at work, one next.
const DETERMINISTIC_LEASES: usize = 2;

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
    groups: Vec<PromptId>,
    /// Attempts issued under it and not yet settled.
    awaited: u32,
    /// Attempts issued under it.
    issued: u32,
    deadline: Timestamp,
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

    fn of<'a>(&'a self, actor: &'a MemberId) -> impl Iterator<Item = (LeaseId, &'a Lease)> {
        self.held.iter().filter(move |(_, lease)| lease.actor == *actor).map(|(id, lease)| (*id, lease))
    }

    /// Responses that an actor is to generate under leases it had not seen when it reported its load.
    fn unseen(&self, actor: &MemberId, last_seen: LeaseId) -> u64 {
        let unseen = self.of(actor).filter(|(id, _)| *id > last_seen);
        unseen.map(|(_, lease)| u64::from(lease.issued)).sum()
    }
}

impl State {
    /// Gives work to the actors that can take it, the emptiest first.
    pub(super) fn grant_leases(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Running {
            return;
        }
        loop {
            let mut able: Vec<(u64, MemberId)> = self.actors_with_room();
            able.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
            let granted = able.into_iter().any(|(room, member)| self.grant(now, member, room, effects));
            if !granted {
                return;
            }
        }
    }

    /// Actors that may be given a lease now, with the number of groups they have room for.
    fn actors_with_room(&self) -> Vec<(u64, MemberId)> {
        let group_size = u64::from(self.plan.group_size);
        let able = self.actors.iter().filter_map(|(member, actor)| {
            let version = actor.usable_version()?;
            if version.0 + self.plan.max_staleness < self.batches.trained.0 {
                return None;
            }
            let room = if self.plan.deterministic {
                DETERMINISTIC_LEASES.saturating_sub(self.leases.of(member).count()) as u64
            } else {
                let unseen = self.leases.unseen(member, actor.load.last_lease);
                u64::from(actor.load.free_slots).saturating_sub(unseen) / group_size
            };
            (room > 0).then(|| (room, member.clone()))
        });
        able.collect()
    }

    fn grant(&mut self, now: Timestamp, member: MemberId, room: u64, effects: &mut Vec<Effect>) -> bool {
        let version = self.actors.get(&member).and_then(super::Actor::usable_version);
        let Some(version) = version else {
            return false;
        };
        let groups = self.next_bundle(version, room);
        if groups.is_empty() {
            return false;
        }
        let id = self.leases.last.next();
        self.leases.last = id;
        let mut leased = Vec::new();
        for prompt in &groups {
            leased.push(LeasedGroup { prompt: *prompt, wanted: self.groups.issue(*prompt, id) });
        }
        let issued = leased.iter().map(|group| group.wanted.len()).sum::<usize>();
        for _ in 0..issued {
            self.account.issue();
        }
        let issued = u32::try_from(issued).unwrap_or(u32::MAX);
        let deadline = now + self.plan.lease_timeout;
        let lease = Lease { actor: member.clone(), groups, awaited: issued, issued, deadline };
        self.leases.held.insert(id, lease);
        let grant = Grant { id, groups: leased, timeout: self.plan.lease_timeout };
        effects.push(Effect::Lease { member, grant });
        true
    }

    /// One attempt of a lease is settled; the last one ends the lease.
    pub(super) fn release(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.held.get_mut(&id) else {
            return;
        };
        lease.awaited = lease.awaited.saturating_sub(1);
        if lease.awaited == 0
            && let Some(lease) = self.leases.held.remove(&id)
        {
            self.requeue_bundle(lease.groups);
        }
    }

    /// Fails what an actor was to generate, but for the attempts it still holds.
    pub(super) fn fail_leases_of(
        &mut self,
        member: &MemberId,
        holding: &[RolloutId],
        effects: &mut Vec<Effect>,
    ) {
        let leases: Vec<LeaseId> = self.leases.of(member).map(|(id, _)| id).collect();
        for lease in leases {
            self.fail_lease(lease, FailReason::ActorLost, holding, effects);
        }
    }

    /// Fails what leases past their deadline still await.
    pub(super) fn expire_leases(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let due = self.leases.held.iter().filter(|(_, lease)| lease.deadline <= now);
        let due: Vec<LeaseId> = due.map(|(id, _)| *id).collect();
        for lease in due {
            let actor = self.leases.held.get(&lease).map(|held| held.actor.to_string()).unwrap_or_default();
            effects.push(Effect::Explain(format!("lease {lease} of actor {actor} ran out; issuing it anew")));
            self.fail_lease(lease, FailReason::LeaseExpired, &[], effects);
        }
    }

    fn fail_lease(
        &mut self,
        lease: LeaseId,
        reason: FailReason,
        holding: &[RolloutId],
        effects: &mut Vec<Effect>,
    ) {
        let groups = self.leases.held.get(&lease).map(|held| held.groups.clone()).unwrap_or_default();
        for prompt in groups {
            for id in self.groups.issued_under(prompt, lease) {
                if !holding.contains(&id) {
                    self.attempt_failed(id, reason, effects);
                }
            }
        }
    }

    /// Whether an actor is awaited to deliver something.
    pub(super) fn holds_lease(&self, member: &MemberId) -> bool {
        self.leases.of(member).next().is_some()
    }
}
