//! Broadcast groups: who is in the next one, which one stands, and the broadcast under way.
//!
//! Groups are numbered and have an explicit member list. When the members have changed one new group is
//! formed beside the active one, once nobody has come or left for a moment or a new version is there, and
//! takes its place when it stands. Whoever is in a group that has ended is told to leave it, so that nobody
//! waits for a member that has stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use types::link::actor::BroadcastGroup;
use types::{BroadcastGroupId, Manifest, MemberId, PolicyVersion, Timestamp};

use super::super::members::{Learner, Members};
use super::super::plan::RunPlan;
use super::backend;

/// Numbers for the groups of one start.
const GROUPS_PER_TERM: u64 = 1_000_000;

/// A broadcast that is slower than this is given up: slower networks than these have no GPUs behind them.
const SLOWEST_BYTES_PER_SECOND: u64 = 50_000_000;

/// The groups of one start of the coordinator.
#[derive(Debug, Clone, Default)]
pub(super) struct Broadcasts {
    /// Actors that hold weights and go on taking work.
    holders: BTreeSet<MemberId>,
    /// When that changed, until a group is formed of it.
    changed_at: Option<Timestamp>,
    /// A version came since a group was formed.
    new_version: bool,
    /// The group that broadcasts now.
    active: Option<Group>,
    /// The group that will.
    forming: Option<FormingGroup>,
    /// The broadcast under way.
    under_way: Option<Broadcast>,
    /// The number given out last.
    last: BroadcastGroupId,
    /// After a failure no group is formed before this.
    form_after: Option<Timestamp>,
    /// Which actors' group has failed last, and how often in a row before it stood.
    failed: (BTreeSet<MemberId>, u32),
    /// Why the last group goes through the hosts although some have GPUs.
    through_hosts: Option<String>,
    /// Groups that have ended, with the actors that are still to be told.
    ended: BTreeMap<BroadcastGroupId, BTreeSet<MemberId>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Group {
    id: BroadcastGroupId,
    /// The actors in it; the learner is rank 0.
    actors: BTreeSet<MemberId>,
}

#[derive(Debug, Clone, PartialEq)]
struct FormingGroup {
    group: Group,
    /// Members (the learner included) that are not yet connected.
    unready: BTreeSet<MemberId>,
    deadline: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
struct Broadcast {
    group: BroadcastGroupId,
    version: PolicyVersion,
    /// Members that have not said how it ended for them.
    unconfirmed: BTreeSet<MemberId>,
    deadline: Timestamp,
}

/// A broadcast that begins.
pub(super) struct BroadcastStart {
    pub(super) group: BroadcastGroupId,
    pub(super) manifest: Manifest,
    pub(super) actors: BTreeSet<MemberId>,
    pub(super) deadline: Timestamp,
}

impl Broadcasts {
    /// Nothing is formed; groups are numbered for this start.
    pub(super) fn of_term(term: u64) -> Self {
        Self { last: BroadcastGroupId(term.saturating_mul(GROUPS_PER_TERM)), ..Self::default() }
    }

    /// A version is there: a group whose members have changed is formed at once.
    pub(super) fn new_version(&mut self) {
        self.new_version = true;
    }

    /// The learner's processes, and with them every group, are gone.
    pub(super) fn forget(&mut self, now: Timestamp) {
        self.end_groups(now, |_| true);
        self.end_broadcast();
        self.under_way = None;
        self.changed_at = Some(now);
    }

    /// Whether an actor holds weights and goes on taking work.
    pub(super) fn set_holder(&mut self, now: Timestamp, actor: &MemberId, holds: bool) {
        let changed = if holds {
            !self.holders.contains(actor) && self.holders.insert(actor.clone())
        } else {
            self.holders.remove(actor)
        };
        if changed {
            self.changed_at = Some(now);
        }
    }

    /// The actors of the active group; empty when there is none.
    pub(super) fn active_actors(&self) -> impl Iterator<Item = &MemberId> {
        self.active.iter().flat_map(|active| &active.actors)
    }

    /// Whether an actor is in the active group.
    pub(super) fn serves(&self, actor: &MemberId) -> bool {
        self.active.as_ref().is_some_and(|active| active.actors.contains(actor))
    }

    /// The next moment at which something is past its deadline, or a group is formed.
    pub(super) fn next_deadline(&self, plan: &RunPlan, learner_is_there: bool) -> Option<Timestamp> {
        let forming = self.forming.as_ref().map(|forming| forming.deadline);
        let broadcast = self.under_way.as_ref().map(|broadcast| broadcast.deadline);
        let form_at = learner_is_there.then(|| self.form_at(plan)).flatten();
        [forming, broadcast, form_at].into_iter().flatten().min()
    }

    /// When a group of other members is formed.
    fn form_at(&self, plan: &RunPlan) -> Option<Timestamp> {
        let settled = self.changed_at.filter(|_| self.forming.is_none())? + plan.membership_delay();
        let due = if self.new_version { Timestamp(0) } else { settled };
        Some(self.form_after.map_or(due, |moment| moment.max(due)))
    }

    /// Forms a group when the actors that hold weights are not the ones in the active group. It comes with
    /// the reason why it is not on the GPUs that some have, once for as long as that is so.
    pub(super) fn form_group(
        &mut self,
        now: Timestamp,
        plan: &RunPlan,
        learner: &Learner,
        members: &Members,
    ) -> Option<(BroadcastGroup, Option<String>)> {
        self.form_at(plan).filter(|moment| *moment <= now)?;
        (self.changed_at, self.new_version) = (None, false);
        let actors = self.next_actors(plan.broadcast_members);
        let unchanged = self.active.as_ref().is_some_and(|active| active.actors == actors);
        if unchanged || actors.is_empty() {
            return None;
        }
        self.last = self.last.next();
        self.form_after = None;
        let mut ranks = vec![learner.member.clone()];
        ranks.extend(actors.iter().cloned());
        self.forming = Some(FormingGroup {
            group: Group { id: self.last, actors },
            unready: ranks.iter().cloned().collect(),
            deadline: now + plan.broadcast_timeout,
        });
        let mut gpus = vec![(&learner.member, learner.gpu.as_deref())];
        for actor in &ranks[1..] {
            gpus.push((actor, members.actors().get(actor).and_then(|actor| actor.gpu.as_deref())));
        }
        let (backend, reason) = backend::choose(gpus);
        let is_new = self.through_hosts != reason;
        self.through_hosts.clone_from(&reason);
        let store = learner.store.clone();
        let group = BroadcastGroup { id: self.last, store, members: ranks, backend };
        Some((group, reason.filter(|_| is_new)))
    }

    /// The actors of the next group: those of the active one that are still there, then others by name.
    fn next_actors(&self, limit: usize) -> BTreeSet<MemberId> {
        let staying = self.active_actors().filter(|actor| self.holders.contains(*actor));
        let mut actors: BTreeSet<MemberId> = staying.take(limit).cloned().collect();
        for holder in &self.holders {
            if actors.len() >= limit {
                break;
            }
            actors.insert(holder.clone());
        }
        actors
    }

    /// A member's end of a group is connected. When it was the last one the group takes the place of the
    /// active one, whose actors are returned.
    pub(super) fn group_ready(&mut self, member: &MemberId, id: BroadcastGroupId) -> BTreeSet<MemberId> {
        if let Some(forming) = self.forming.as_mut().filter(|forming| forming.group.id == id) {
            forming.unready.remove(member);
            if forming.unready.is_empty() {
                let stands = self.forming.take().map(|forming| forming.group);
                self.failed = Default::default();
                let replaced = std::mem::replace(&mut self.active, stands);
                return replaced.map(|group| group.actors).unwrap_or_default();
            }
        }
        BTreeSet::new()
    }

    /// A member's end of a group is dead; so is the group. The next one is formed after a pause, which grows
    /// to the time that a group may take to form where it is always the same members' that fails: they pull
    /// meanwhile. Returns the actors that it served.
    pub(super) fn group_failed(
        &mut self,
        now: Timestamp,
        id: BroadcastGroupId,
        plan: &RunPlan,
    ) -> BTreeSet<MemberId> {
        let forming = self.forming.as_ref().map(|forming| &forming.group);
        let group = self.active.iter().chain(forming).find(|group| group.id == id);
        let Some(actors) = group.map(|group| group.actors.clone()) else { return BTreeSet::new() };
        let served = self.end_groups(now, |group| group.id == id);
        let times = if self.failed.0 == actors { self.failed.1.saturating_add(1) } else { 0 };
        let pause = plan.weights_retry_delay().saturating_mul(1 << times.min(16));
        self.form_after = Some(now + pause.min(plan.broadcast_timeout.max(plan.weights_retry_delay())));
        self.failed = (actors, times);
        served
    }

    /// Ends the groups that `condition` holds for. Returns the actors that the active one served.
    fn end_groups(&mut self, now: Timestamp, condition: impl Fn(&Group) -> bool) -> BTreeSet<MemberId> {
        let active = self.active.take_if(|group| condition(group));
        let forming = self.forming.take_if(|forming| condition(&forming.group));
        for group in active.iter().chain(forming.as_ref().map(|forming| &forming.group)) {
            self.ended.entry(group.id).or_default().extend(group.actors.iter().cloned());
            self.changed_at = Some(now);
        }
        active.map(|group| group.actors).unwrap_or_default()
    }

    /// Ends the group of the broadcast under way, which may have been replaced already.
    fn end_broadcast(&mut self) {
        if let Some(broadcast) = &self.under_way {
            self.ended.entry(broadcast.group).or_default().extend(broadcast.unconfirmed.iter().cloned());
        }
    }

    /// An actor is away, or another process has its name: every group that it is part of ends. Returns the
    /// actors that the active one served.
    pub(super) fn actor_left(&mut self, now: Timestamp, actor: &MemberId) -> BTreeSet<MemberId> {
        self.set_holder(now, actor, false);
        let before = self.ended.len();
        let served = self.end_groups(now, |group| group.actors.contains(actor));
        if self.ended.len() > before {
            // The others need not wait: nothing is wrong with them.
            self.form_after = None;
        }
        if self.group_awaiting(actor).is_some() {
            self.end_broadcast();
        }
        self.ended_for(actor);
        served
    }

    /// Groups to leave and the actors in them, each told once.
    pub(super) fn take_ended(&mut self) -> BTreeMap<BroadcastGroupId, BTreeSet<MemberId>> {
        std::mem::take(&mut self.ended)
    }

    /// Whether a broadcast can begin: a group stands, and none is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.active.is_some() && self.under_way.is_none()
    }

    /// Begins a broadcast in the active group.
    pub(super) fn start(
        &mut self,
        now: Timestamp,
        plan: &RunPlan,
        learner: &MemberId,
        manifest: &Manifest,
    ) -> Option<BroadcastStart> {
        let active = self.active.as_ref()?;
        // The members wait for each chunk; here the whole is awaited.
        let wire = Duration::from_secs(manifest.total_bytes() / SLOWEST_BYTES_PER_SECOND);
        let deadline = now + plan.broadcast_timeout + wire;
        self.under_way = Some(Broadcast {
            group: active.id,
            version: manifest.version(),
            unconfirmed: active.actors.iter().chain([learner]).cloned().collect(),
            deadline,
        });
        let (group, actors) = (active.id, active.actors.clone());
        Some(BroadcastStart { group, manifest: manifest.clone(), actors, deadline })
    }

    /// The group of the broadcast under way, if it has not ended for this member.
    pub(super) fn group_awaiting(&self, member: &MemberId) -> Option<BroadcastGroupId> {
        let broadcast = self.under_way.as_ref().filter(|broadcast| broadcast.unconfirmed.contains(member));
        broadcast.map(|broadcast| broadcast.group)
    }

    /// The broadcast under way has ended for a member, well or not.
    pub(super) fn ended_for(&mut self, member: &MemberId) {
        if let Some(broadcast) = &mut self.under_way {
            broadcast.unconfirmed.remove(member);
            if broadcast.unconfirmed.is_empty() {
                self.under_way = None;
            }
        }
    }

    /// Gives up a group that has not formed in time: its number, and who is not connected.
    pub(super) fn expire_forming(
        &mut self,
        now: Timestamp,
        plan: &RunPlan,
    ) -> Option<(BroadcastGroupId, Vec<MemberId>)> {
        let late = self.forming.as_ref().filter(|forming| forming.deadline <= now)?;
        let (id, unready) = (late.group.id, late.unready.iter().cloned().collect());
        self.group_failed(now, id, plan);
        Some((id, unready))
    }

    /// Gives up a broadcast that has not ended in time: its group and version, and who has not said how it
    /// ended.
    pub(super) fn expire_broadcast(
        &mut self,
        now: Timestamp,
    ) -> Option<(BroadcastGroupId, PolicyVersion, Vec<MemberId>)> {
        if self.under_way.as_ref().is_none_or(|broadcast| broadcast.deadline > now) {
            return None;
        }
        self.end_broadcast();
        let Broadcast { group, version, unconfirmed, .. } = self.under_way.take()?;
        Some((group, version, unconfirmed.into_iter().collect()))
    }
}
