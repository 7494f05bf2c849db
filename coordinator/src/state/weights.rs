//! Who has which weights, and how they get the next ones (design D6).
//!
//! A version is offered when the learner has it. Actors that are members of the active broadcast group receive it
//! together; everybody else pulls it point to point. Groups are numbered and have an explicit member list: a new
//! one is formed beside the active one whenever the members have changed, and takes its place when it stands. A failure
//! ends the group, never the run; whoever missed a version pulls it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use types::link::actor::{ActorCommand, BroadcastGroup};
use types::link::learner::LearnerCommand;
use types::{BroadcastGroupId, Manifest, MemberId, PolicyVersion, Timestamp, WeightHash};

use super::{Effect, State};

/// Versions whose hashes are remembered, so that an actor that comes back is recognised.
const KNOWN_VERSIONS: usize = 64;

/// The weight plane.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Weights {
    /// The newest version that the learner has.
    current: Option<Manifest>,
    /// Hashes of recent versions, oldest first.
    known: Vec<(PolicyVersion, WeightHash)>,
    /// The group that broadcasts now.
    active: Option<Group>,
    /// The group being formed, and until when it may take.
    forming: Option<(Group, Timestamp)>,
    /// The broadcast under way.
    broadcast: Option<Broadcast>,
    /// The number given out last.
    last: BroadcastGroupId,
    /// After a failure no group is formed before this.
    pause_until: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Group {
    id: BroadcastGroupId,
    /// The actors in it; the learner is rank 0.
    actors: BTreeSet<MemberId>,
    /// Members (the learner included) that are not yet connected.
    unready: BTreeSet<MemberId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Broadcast {
    group: BroadcastGroupId,
    version: PolicyVersion,
    /// Members whose end is not yet known.
    unconfirmed: BTreeSet<MemberId>,
    deadline: Timestamp,
}

/// An actor that fetches weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Transfer {
    pub(super) version: PolicyVersion,
    pub(super) deadline: Timestamp,
}

impl Weights {
    /// The learner has these weights.
    pub(super) fn offer(&mut self, manifest: Manifest) {
        self.known.retain(|(_, hash)| *hash != manifest.hash);
        self.known.push((manifest.version, manifest.hash));
        if self.known.len() > KNOWN_VERSIONS {
            self.known.remove(0);
        }
        self.current = Some(manifest);
    }

    /// Whether these weights are or were this run's.
    pub(super) fn knows(&self, version: PolicyVersion, hash: WeightHash) -> bool {
        self.known.contains(&(version, hash))
    }

    /// All groups are gone: the processes that formed them, or their streams, are.
    pub(super) fn forget_broadcast_groups(&mut self) {
        (self.active, self.forming, self.broadcast) = (None, None, None);
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        let forming = self.forming.as_ref().map(|(_, deadline)| *deadline);
        let broadcast = self.broadcast.as_ref().map(|broadcast| broadcast.deadline);
        [forming, broadcast, self.pause_until].into_iter().flatten().min()
    }

    pub(super) fn version(&self) -> PolicyVersion {
        self.current.as_ref().map_or(PolicyVersion(0), |manifest| manifest.version)
    }
}

impl State {
    /// The newest policy version.
    pub fn version(&self) -> PolicyVersion {
        self.weights.version()
    }

    /// Forms a broadcast group when the actors that hold weights are not the ones in the newest group.
    pub(super) fn form_broadcast_group(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(learner) = self.learner.as_ref().filter(|learner| learner.connected) else {
            return;
        };
        let actors: BTreeSet<MemberId> = self
            .actors
            .iter()
            .filter(|(_, actor)| actor.connected && !actor.draining && actor.weights.is_some())
            .map(|(member, _)| member.clone())
            .collect();
        let weights = &mut self.weights;
        let newest = weights.forming.as_ref().map(|(group, _)| group).or(weights.active.as_ref());
        let paused = weights.pause_until.is_some_and(|until| until > now);
        if paused || actors.is_empty() || newest.is_some_and(|group| group.actors == actors) {
            return;
        }
        let id = weights.last.next();
        weights.last = id;
        weights.pause_until = None;
        let mut members = vec![learner.member.clone()];
        members.extend(actors.iter().cloned());
        let group = BroadcastGroup { id, store: learner.store.clone(), members: members.clone() };
        for member in &actors {
            effects.push(Effect::actor(member.clone(), ActorCommand::JoinBroadcastGroup(group.clone())));
        }
        effects.push(Effect::Learner(LearnerCommand::JoinBroadcastGroup(group)));
        let group = Group { id, actors, unready: members.into_iter().collect() };
        weights.forming = Some((group, now + self.plan.broadcast_timeout));
    }

    /// A member's side of a group is connected.
    pub(super) fn broadcast_group_ready(&mut self, member: &MemberId, id: BroadcastGroupId) {
        let weights = &mut self.weights;
        if let Some((forming, _)) = &mut weights.forming
            && forming.id == id
        {
            forming.unready.remove(member);
            if forming.unready.is_empty() {
                weights.active = weights.forming.take().map(|(group, _)| group);
            }
        }
    }

    /// A member's side of a group is dead; so is the group.
    pub(super) fn broadcast_group_failed(&mut self, now: Timestamp, id: BroadcastGroupId) {
        let weights = &mut self.weights;
        let is_it = |group: &Group| group.id == id;
        if weights.active.as_ref().is_some_and(is_it) {
            weights.active = None;
        } else if weights.forming.as_ref().is_some_and(|(group, _)| is_it(group)) {
            weights.forming = None;
        } else {
            return;
        }
        weights.pause_until = Some(now + self.plan.weights_retry_delay());
    }

    /// Ends every group that `member` is part of.
    pub(super) fn leave_broadcast_groups(&mut self, now: Timestamp, member: &MemberId) {
        let is_in = |group: &Group| group.actors.contains(member);
        let ids = [
            self.weights.active.as_ref().filter(|group| is_in(group)).map(|g| g.id),
            self.weights.forming.as_ref().filter(|(group, _)| is_in(group)).map(|(g, _)| g.id),
        ];
        for id in ids.into_iter().flatten() {
            self.broadcast_group_failed(now, id);
            // The others need not wait for the pause: nothing is wrong with them.
            self.weights.pause_until = None;
        }
        self.settle_broadcast(member);
    }

    /// Brings the newest version to every actor that lacks it.
    pub(super) fn publish(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(learner) = self.learner.as_ref().filter(|learner| learner.connected) else {
            return;
        };
        let (Some(current), source) = (self.weights.current.clone(), learner.weights.clone()) else {
            return;
        };
        let timeout = self.plan.broadcast_timeout;
        // A learner that resumed from an older checkpoint catches up soon; nobody goes back with it.
        let newer = |(version, hash)| hash != current.hash && version <= current.version;
        let lacks = |actor: &super::Actor| actor.connected && actor.weights.is_none_or(newer);
        let idle = |actor: &super::Actor| actor.transfer.is_none();
        if let Some(active) = self.weights.active.clone()
            && self.weights.broadcast.is_none()
        {
            let member = |name: &MemberId| self.actors.get(name);
            let all_idle = active.actors.iter().all(|name| member(name).is_some_and(idle));
            if all_idle && active.actors.iter().filter_map(member).any(lacks) {
                self.broadcast(now, &active, current.clone(), effects);
            }
        }
        let in_group =
            |name: &MemberId| self.weights.active.as_ref().is_some_and(|active| active.actors.contains(name));
        let pulling: Vec<MemberId> = self
            .actors
            .iter()
            .filter(|(name, actor)| lacks(actor) && idle(actor) && !in_group(name) && actor.may_pull(now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in pulling {
            let (version, hash) = (current.version, current.hash);
            if let Some(actor) = self.actors.get_mut(&name) {
                actor.transfer = Some(Transfer { version, deadline: now + timeout });
            }
            let command = ActorCommand::PullWeights { source: source.clone(), version, hash };
            effects.push(Effect::actor(name, command));
        }
    }

    fn broadcast(&mut self, now: Timestamp, group: &Group, manifest: Manifest, effects: &mut Vec<Effect>) {
        let deadline = now + self.plan.broadcast_timeout;
        let version = manifest.version;
        for name in &group.actors {
            if let Some(actor) = self.actors.get_mut(name) {
                actor.transfer = Some(Transfer { version, deadline });
            }
            let command = ActorCommand::ReceiveWeights { group: group.id, manifest: manifest.clone() };
            effects.push(Effect::actor(name.clone(), command));
        }
        effects.push(Effect::Learner(LearnerCommand::Publish { group: group.id, version }));
        let mut unconfirmed = group.actors.clone();
        unconfirmed.extend(self.learner.as_ref().map(|learner| learner.member.clone()));
        self.weights.broadcast = Some(Broadcast { group: group.id, version, unconfirmed, deadline });
    }

    /// An actor uses these weights now. Yields why that cannot be, if it cannot.
    pub(super) fn weights_confirmed(
        &mut self,
        member: &MemberId,
        version: PolicyVersion,
        hash: WeightHash,
    ) -> Result<(), String> {
        if !self.weights.knows(version, hash) {
            return Err(format!("uses weights {hash} as {version}, which this run never had"));
        }
        if let Some(actor) = self.actors.get_mut(member) {
            actor.weights = Some((version, hash));
            actor.transfer = None;
            actor.pull_after = None;
        }
        self.settle_broadcast(member);
        Ok(())
    }

    /// An actor did not get the weights it was to get: its group is dead, and it pulls after a pause.
    pub(super) fn weights_failed(&mut self, now: Timestamp, member: &MemberId, effects: &mut Vec<Effect>) {
        let pause = self.plan.weights_retry_delay();
        if let Some(actor) = self.actors.get_mut(member) {
            actor.transfer = None;
            actor.pull_after = Some(now + pause);
        }
        let in_broadcast = self.weights.broadcast.as_ref().is_some_and(|b| b.unconfirmed.contains(member));
        if in_broadcast && let Some(broadcast) = &self.weights.broadcast {
            let id = broadcast.group;
            effects.push(Effect::Explain(format!("broadcast group {id} ends: {member} did not receive")));
            self.broadcast_group_failed(now, id);
        }
        self.settle_broadcast(member);
    }

    /// The learner's end of a broadcast is known.
    pub(super) fn publication_ended(&mut self, now: Timestamp, id: BroadcastGroupId, failed: bool) {
        if failed {
            self.broadcast_group_failed(now, id);
        }
        if let Some(learner) = self.learner.as_ref().map(|learner| learner.member.clone()) {
            self.settle_broadcast(&learner);
        }
    }

    /// A member's end of the broadcast under way is known.
    fn settle_broadcast(&mut self, member: &MemberId) {
        if let Some(broadcast) = &mut self.weights.broadcast {
            broadcast.unconfirmed.remove(member);
            if broadcast.unconfirmed.is_empty() {
                self.weights.broadcast = None;
            }
        }
    }

    /// Gives up groups and transfers past their deadline.
    pub(super) fn expire_weight_transfers(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.weights.pause_until.is_some_and(|until| until <= now) {
            self.weights.pause_until = None;
        }
        if let Some((forming, deadline)) = &self.weights.forming
            && *deadline <= now
        {
            let absent: Vec<&str> = forming.unready.iter().map(MemberId::as_str).collect();
            let (id, absent) = (forming.id, absent.join(", "));
            effects
                .push(Effect::Explain(format!("broadcast group {id} not formed in time: {absent} missing")));
            self.broadcast_group_failed(now, id);
        }
        if let Some(broadcast) = &self.weights.broadcast
            && broadcast.deadline <= now
        {
            let silent: Vec<&str> = broadcast.unconfirmed.iter().map(MemberId::as_str).collect();
            let (id, version) = (broadcast.group, broadcast.version);
            let silent = silent.join(", ");
            effects.push(Effect::Explain(format!("broadcast of {version} gave up: {silent} silent")));
            self.broadcast_group_failed(now, id);
            self.weights.broadcast = None;
        }
        let pause = self.plan.weights_retry_delay();
        for actor in self.actors.values_mut() {
            if actor.transfer.as_ref().is_some_and(|transfer| transfer.deadline <= now) {
                actor.transfer = None;
                actor.pull_after = Some(now + pause);
            }
        }
    }

    /// Deadlines of transfers, by actor.
    pub(super) fn transfer_deadlines(actors: &BTreeMap<MemberId, super::Actor>) -> Option<Timestamp> {
        let deadline = |actor: &super::Actor| {
            let transfer = actor.transfer.as_ref().map(|transfer| transfer.deadline);
            transfer.into_iter().chain(actor.pull_after).min()
        };
        actors.values().filter(|actor| actor.connected).filter_map(deadline).min()
    }
}
