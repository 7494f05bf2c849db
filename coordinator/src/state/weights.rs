//! The weight plane: who gets the next weights, and how (`docs/decisions.md`, D6 and D16).
//!
//! A version is offered when the learner has it. Actors that are members of the active broadcast group
//! receive it together; everybody else pulls it point to point. Groups are numbered and have an explicit
//! member list. When the members have changed one new group is formed beside the active one, once nobody has
//! come or left for a moment or a new version is there, and takes its place when it stands. A failure ends
//! the group, never the run; whoever missed a version pulls it.
//!
//! Nothing here is journaled. Group numbers begin anew with each start, far from those before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use types::link::actor::{ActorCommand, BroadcastGroup};
use types::link::learner::LearnerCommand;
use types::{BroadcastGroupId, Manifest, MemberId, PolicyVersion, Timestamp, WeightHash};

use super::deadlines::Deadlines;
use super::members::{Actor, Members};
use super::plan::RunPlan;

/// Numbers for the groups of one start.
const GROUPS_PER_TERM: u64 = 1_000_000;

/// Versions, groups and broadcasts.
#[derive(Debug, Clone, Default)]
pub(super) struct WeightPlane {
    /// The newest version that the learner has.
    current: Option<Manifest>,
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
    broadcast: Option<Broadcast>,
    /// The number given out last.
    last: BroadcastGroupId,
    /// After a failure no group is formed before this.
    form_after: Option<Timestamp>,
    /// Deliveries of the newest version to connected actors.
    deliveries: BTreeMap<MemberId, Delivery>,
    deadlines: Deadlines<MemberId>,
    /// Actors that may lack the newest version.
    unserved: BTreeSet<MemberId>,
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

/// How weights get to one actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// They are on their way, and have to be there by then.
    UnderWay(Timestamp),
    /// They did not arrive; the actor pulls no sooner than this.
    PullAfter(Timestamp),
}

/// What a member is told about weights.
pub(super) enum WeightCommand {
    Actor(MemberId, ActorCommand),
    Learner(LearnerCommand),
}

/// A broadcast that begins.
struct BroadcastStart {
    group: BroadcastGroupId,
    manifest: Manifest,
    actors: BTreeSet<MemberId>,
}

/// Actors that begin to pull a version.
struct PullStart {
    version: PolicyVersion,
    hash: WeightHash,
    actors: Vec<MemberId>,
}

/// What was given up because its deadline has passed.
#[derive(Debug, Default)]
pub(super) struct ExpiredWeights {
    /// The group that did not form, and the members that are not connected.
    pub(super) unformed: Option<(BroadcastGroupId, Vec<MemberId>)>,
    /// The version whose broadcast did not end, and the members that did not say how.
    pub(super) unconfirmed: Option<(PolicyVersion, Vec<MemberId>)>,
}

impl WeightPlane {
    /// Nothing is formed, sent or received; groups are numbered for this start.
    pub(super) fn of_term(term: u64) -> Self {
        Self { last: BroadcastGroupId(term.saturating_mul(GROUPS_PER_TERM)), ..Self::default() }
    }

    /// The learner has these weights.
    pub(super) fn offer(&mut self, manifest: Manifest, members: &Members) {
        self.current = Some(manifest);
        self.new_version = true;
        self.unserved.extend(members.connected_actors().map(|(member, _)| member.clone()));
    }

    /// The learner's processes, and with them every group, are gone.
    pub(super) fn forget_groups(&mut self, now: Timestamp) {
        (self.active, self.forming, self.broadcast) = (None, None, None);
        self.changed_at = Some(now);
    }

    /// A learner has come that has these weights: nothing of the one before is on its way any more.
    pub(super) fn learner_joined(&mut self, now: Timestamp, manifest: Manifest, members: &Members) {
        self.forget_groups(now);
        self.offer(manifest, members);
        self.deliveries.retain(|_, delivery| matches!(delivery, Delivery::PullAfter(_)));
    }

    /// What an actor holds, or whether it goes on taking work, may have changed.
    pub(super) fn actor_changed(&mut self, now: Timestamp, member: &MemberId, actor: &Actor) {
        let holds = actor.usable_version().is_some();
        let changed = if holds {
            !self.holders.contains(member) && self.holders.insert(member.clone())
        } else {
            self.holders.remove(member)
        };
        if changed {
            self.changed_at = Some(now);
        }
        if actor.connected && self.current.as_ref().is_some_and(|current| lacks(actor, current)) {
            self.unserved.insert(member.clone());
        } else {
            self.unserved.remove(member);
        }
    }

    /// The next moment at which [`WeightPlane::expire`] or [`WeightPlane::advance`] can change something.
    pub(super) fn next_deadline(&self, plan: &RunPlan, members: &Members) -> Option<Timestamp> {
        let forming = self.forming.as_ref().map(|forming| forming.deadline);
        let broadcast = self.broadcast.as_ref().map(|broadcast| broadcast.deadline);
        let form_at = members.connected_learner().and_then(|_| self.form_at(plan));
        [forming, broadcast, form_at, self.deadlines.next()].into_iter().flatten().min()
    }

    /// When a group of other members is formed.
    fn form_at(&self, plan: &RunPlan) -> Option<Timestamp> {
        let settled = self.changed_at.filter(|_| self.forming.is_none())? + plan.membership_delay();
        let due = if self.new_version { Timestamp(0) } else { settled };
        Some(self.form_after.map_or(due, |moment| moment.max(due)))
    }

    /// What brings the newest version to every actor that lacks it, in order.
    pub(super) fn advance(
        &mut self,
        now: Timestamp,
        plan: &RunPlan,
        members: &Members,
    ) -> Vec<WeightCommand> {
        let mut commands = Vec::new();
        let Some(learner) = members.connected_learner() else {
            return commands;
        };
        if let Some(group) = self.form_group(now, plan, members) {
            for actor in &group.members[1..] {
                let command = ActorCommand::JoinBroadcastGroup(group.clone());
                commands.push(WeightCommand::Actor(actor.clone(), command));
            }
            commands.push(WeightCommand::Learner(LearnerCommand::JoinBroadcastGroup(group)));
        }
        if let Some(BroadcastStart { group, manifest, actors }) = self.start_broadcast(now, plan, members) {
            let version = manifest.version();
            for actor in actors {
                let command = ActorCommand::ReceiveWeights { group, manifest: manifest.clone() };
                commands.push(WeightCommand::Actor(actor, command));
            }
            commands.push(WeightCommand::Learner(LearnerCommand::Publish { group, version }));
        }
        if let Some(PullStart { version, hash, actors }) = self.start_pulls(now, plan, members) {
            for actor in actors {
                let source = learner.weights.clone();
                let command = ActorCommand::PullWeights { source, version, hash };
                commands.push(WeightCommand::Actor(actor, command));
            }
        }
        commands
    }

    /// Forms a group when the actors that hold weights are not the ones in the active group.
    fn form_group(&mut self, now: Timestamp, plan: &RunPlan, members: &Members) -> Option<BroadcastGroup> {
        let learner = members.connected_learner()?;
        self.form_at(plan).filter(|moment| *moment <= now)?;
        (self.changed_at, self.new_version) = (None, false);
        let actors = self.broadcast_members(plan.broadcast_members);
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
        Some(BroadcastGroup { id: self.last, store: learner.store.clone(), members: ranks })
    }

    /// The actors of the next group: those of the active one that are still there, then others by name.
    fn broadcast_members(&self, limit: usize) -> BTreeSet<MemberId> {
        let staying = self.active.iter().flat_map(|active| active.actors.intersection(&self.holders));
        let mut actors: BTreeSet<MemberId> = staying.take(limit).cloned().collect();
        for holder in &self.holders {
            if actors.len() >= limit {
                break;
            }
            actors.insert(holder.clone());
        }
        actors
    }

    /// A member's end of a group is connected.
    pub(super) fn group_ready(&mut self, member: &MemberId, id: BroadcastGroupId) {
        if let Some(forming) = &mut self.forming
            && forming.group.id == id
        {
            forming.unready.remove(member);
            if forming.unready.is_empty() {
                let stands = self.forming.take().map(|forming| forming.group);
                if let Some(replaced) = std::mem::replace(&mut self.active, stands) {
                    self.unserved.extend(replaced.actors);
                }
            }
        }
    }

    /// A member's end of a group is dead; so is the group. The next one is formed after a pause.
    pub(super) fn group_failed(&mut self, now: Timestamp, id: BroadcastGroupId, retry_delay: Duration) {
        if self.end_groups(now, |group| group.id == id) {
            self.form_after = Some(now + retry_delay);
        }
    }

    /// Ends the groups that `condition` holds for; whether there were any.
    fn end_groups(&mut self, now: Timestamp, condition: impl Fn(&Group) -> bool) -> bool {
        let active = self.active.take_if(|group| condition(group));
        let forming = self.forming.take_if(|forming| condition(&forming.group));
        let ended = active.is_some() || forming.is_some();
        if ended {
            self.changed_at = Some(now);
        }
        // They pull what they lack.
        self.unserved.extend(active.into_iter().flat_map(|group| group.actors));
        ended
    }

    /// An actor is away, or another process has its name: every group that it is part of ends.
    pub(super) fn actor_left(&mut self, now: Timestamp, member: &MemberId) {
        self.deliveries.remove(member);
        self.deadlines.remove(member);
        self.unserved.remove(member);
        if self.holders.remove(member) {
            self.changed_at = Some(now);
        }
        if self.end_groups(now, |group| group.actors.contains(member)) {
            // The others need not wait: nothing is wrong with them.
            self.form_after = None;
        }
        self.broadcast_ended(member);
    }

    /// Starts a broadcast when a member of the active group lacks the newest version and all are free to
    /// receive it: nobody is in the middle of another, nobody would go back.
    fn start_broadcast(
        &mut self,
        now: Timestamp,
        plan: &RunPlan,
        members: &Members,
    ) -> Option<BroadcastStart> {
        let learner = members.connected_learner()?;
        let (Some(current), Some(active), None) = (&self.current, &self.active, &self.broadcast) else {
            return None;
        };
        let in_group = || active.actors.iter().filter_map(|name| members.actors().get(name));
        let is_wanted = in_group().any(|actor| lacks(actor, current));
        if !is_wanted
            || in_group().any(|actor| is_ahead(actor, current))
            || active.actors.iter().any(|name| self.is_under_way(name))
        {
            return None;
        }
        let deadline = now + plan.broadcast_timeout;
        let start =
            BroadcastStart { group: active.id, manifest: current.clone(), actors: active.actors.clone() };
        self.broadcast = Some(Broadcast {
            group: active.id,
            version: current.version(),
            unconfirmed: active.actors.iter().chain([&learner.member]).cloned().collect(),
            deadline,
        });
        for name in &start.actors {
            self.deliver(name, Delivery::UnderWay(deadline));
        }
        Some(start)
    }

    fn deliver(&mut self, actor: &MemberId, delivery: Delivery) {
        let (Delivery::UnderWay(moment) | Delivery::PullAfter(moment)) = delivery;
        self.deadlines.set(actor, moment);
        self.deliveries.insert(actor.clone(), delivery);
        self.unserved.remove(actor);
    }

    /// Lets every actor outside the active group pull the newest version that lacks it.
    fn start_pulls(&mut self, now: Timestamp, plan: &RunPlan, members: &Members) -> Option<PullStart> {
        let current = self.current.as_ref()?;
        let mut start = PullStart { version: current.version(), hash: current.hash(), actors: Vec::new() };
        let active = self.active.as_ref();
        for name in std::mem::take(&mut self.unserved) {
            let lacks = members.actors().get(&name).is_some_and(|actor| lacks(actor, current));
            if !lacks || self.deliveries.contains_key(&name) {
                continue;
            }
            if active.is_some_and(|active| active.actors.contains(&name)) {
                self.unserved.insert(name);
            } else {
                start.actors.push(name);
            }
        }
        for name in &start.actors {
            self.deliver(name, Delivery::UnderWay(now + plan.broadcast_timeout));
        }
        Some(start)
    }

    fn is_under_way(&self, actor: &MemberId) -> bool {
        matches!(self.deliveries.get(actor), Some(Delivery::UnderWay(_)))
    }

    /// An actor uses weights of this run now.
    pub(super) fn confirmed(&mut self, actor: &MemberId) {
        self.deliveries.remove(actor);
        self.deadlines.remove(actor);
        self.broadcast_ended(actor);
    }

    /// An actor did not get the weights it was to get: it pulls after a pause. A group in which it was to
    /// receive them is dead, and returned.
    pub(super) fn delivery_failed(
        &mut self,
        now: Timestamp,
        actor: &MemberId,
        retry_delay: Duration,
    ) -> Option<BroadcastGroupId> {
        self.deliver(actor, Delivery::PullAfter(now + retry_delay));
        let broadcast = self.broadcast.as_ref().filter(|broadcast| broadcast.unconfirmed.contains(actor));
        let group = broadcast.map(|broadcast| broadcast.group);
        if let Some(group) = group {
            self.group_failed(now, group, retry_delay);
        }
        self.broadcast_ended(actor);
        group
    }

    /// The broadcast under way has ended for a member, well or not.
    pub(super) fn broadcast_ended(&mut self, member: &MemberId) {
        if let Some(broadcast) = &mut self.broadcast {
            broadcast.unconfirmed.remove(member);
            if broadcast.unconfirmed.is_empty() {
                self.broadcast = None;
            }
        }
    }

    /// Gives up what is past its deadline.
    pub(super) fn expire(&mut self, now: Timestamp, retry_delay: Duration) -> ExpiredWeights {
        let mut expired = ExpiredWeights::default();
        if let Some(forming) = self.forming.take_if(|forming| forming.deadline <= now) {
            (self.form_after, self.changed_at) = (Some(now + retry_delay), Some(now));
            expired.unformed = Some((forming.group.id, forming.unready.into_iter().collect()));
        }
        if let Some(broadcast) = self.broadcast.take_if(|broadcast| broadcast.deadline <= now) {
            self.group_failed(now, broadcast.group, retry_delay);
            expired.unconfirmed = Some((broadcast.version, broadcast.unconfirmed.into_iter().collect()));
        }
        while let Some(actor) = self.deadlines.pop_due(now) {
            match self.deliveries.remove(&actor) {
                Some(Delivery::UnderWay(_)) => self.deliver(&actor, Delivery::PullAfter(now + retry_delay)),
                Some(Delivery::PullAfter(_)) => drop(self.unserved.insert(actor)),
                None => {}
            }
        }
        expired
    }
}

/// Whether an actor is to get the current version, also where its bytes are those of another: a version is
/// no content (`docs/decisions.md`, D25). A learner that resumed from an older checkpoint catches up soon:
/// nobody goes back with it.
fn lacks(actor: &Actor, current: &Manifest) -> bool {
    let newest = (current.version(), current.hash());
    let holds = actor.weights;
    actor.connected && holds.is_none_or(|held| held != newest) && !is_ahead(actor, current)
}

/// Whether an actor holds a later version than the learner, which resumed from an older checkpoint.
fn is_ahead(actor: &Actor, current: &Manifest) -> bool {
    actor.weights.is_some_and(|(version, _)| version > current.version())
}
