//! The weight plane: who gets the next weights, and how (`docs/decisions.md`, D6).
//!
//! A version is offered when the learner has it. Actors that are members of the active broadcast group
//! receive it together; everybody else pulls it point to point. Groups are numbered and have an explicit
//! member list: a new one is formed beside the active one whenever the members have changed, and takes its
//! place when it stands. A failure ends the group, never the run; whoever missed a version pulls it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::link::actor::{ActorCommand, BroadcastGroup};
use types::link::learner::LearnerCommand;
use types::{BroadcastGroupId, Manifest, MemberId, PolicyVersion, Timestamp, WeightHash};

use super::members::{Actor, Members};
use super::plan::RunPlan;

/// Versions whose hashes are remembered, so that an actor that comes back is recognised.
const KNOWN_VERSIONS_LIMIT: usize = 64;

/// Versions, groups and broadcasts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Weights {
    /// The newest version that the learner has.
    current: Option<Manifest>,
    /// Hashes of recent versions, oldest first.
    known: VecDeque<(PolicyVersion, WeightHash)>,
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
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Group {
    id: BroadcastGroupId,
    /// The actors in it; the learner is rank 0.
    actors: BTreeSet<MemberId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct FormingGroup {
    group: Group,
    /// Members (the learner included) that are not yet connected.
    unready: BTreeSet<MemberId>,
    deadline: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Broadcast {
    group: BroadcastGroupId,
    version: PolicyVersion,
    /// Members that have not said how it ended for them.
    unconfirmed: BTreeSet<MemberId>,
    deadline: Timestamp,
}

/// How weights get to one actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Delivery {
    /// They are on their way, and have to be there by then.
    UnderWay(Timestamp),
    /// They did not arrive; the actor pulls no sooner than this.
    PullAfter(Timestamp),
}

/// These weights are not and were not this run's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("uses weights {hash} as {version}, which this run never had")]
pub(super) struct UnknownWeights {
    version: PolicyVersion,
    hash: WeightHash,
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

impl Weights {
    /// The newest policy version.
    pub(super) fn version(&self) -> PolicyVersion {
        self.current.as_ref().map_or(PolicyVersion(0), |manifest| manifest.version())
    }

    /// Whether these weights are or were this run's.
    pub(super) fn knows(&self, version: PolicyVersion, hash: WeightHash) -> bool {
        self.known.contains(&(version, hash))
    }

    /// The learner has these weights.
    pub(super) fn offer(&mut self, manifest: Manifest) {
        self.known.retain(|(_, hash)| *hash != manifest.hash());
        self.known.push_back((manifest.version(), manifest.hash()));
        if self.known.len() > KNOWN_VERSIONS_LIMIT {
            self.known.pop_front();
        }
        self.current = Some(manifest);
    }

    /// Every stream is broken.
    pub(super) fn restart(&mut self) {
        self.forget_groups();
        self.deliveries.clear();
    }

    /// The learner's processes, and with them every group, are gone.
    pub(super) fn forget_groups(&mut self) {
        (self.active, self.forming, self.broadcast) = (None, None, None);
    }

    /// A learner has come that has these weights: nothing of the one before is on its way any more.
    pub(super) fn learner_joined(&mut self, manifest: Manifest) {
        self.forget_groups();
        self.offer(manifest);
        self.deliveries.retain(|_, delivery| matches!(delivery, Delivery::PullAfter(_)));
    }

    /// The next moment at which [`Weights::expire`] can change something.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        let forming = self.forming.as_ref().map(|forming| forming.deadline);
        let broadcast = self.broadcast.as_ref().map(|broadcast| broadcast.deadline);
        let deliveries = self.deliveries.values().map(|delivery| match delivery {
            Delivery::UnderWay(deadline) | Delivery::PullAfter(deadline) => *deadline,
        });
        [forming, broadcast, self.form_after].into_iter().flatten().chain(deliveries).min()
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

    /// Forms a group when the actors that hold weights are not the ones in the newest group.
    fn form_group(&mut self, now: Timestamp, plan: &RunPlan, members: &Members) -> Option<BroadcastGroup> {
        let learner = members.connected_learner()?;
        let newest = self.forming.as_ref().map(|forming| &forming.group).or(self.active.as_ref());
        let unchanged = newest.is_some_and(|group| group.actors.iter().eq(members.weight_holders()));
        let must_wait = self.form_after.is_some_and(|moment| moment > now);
        if must_wait || unchanged || members.weight_holders().next().is_none() {
            return None;
        }
        self.last = self.last.next();
        self.form_after = None;
        let actors: BTreeSet<MemberId> = members.weight_holders().cloned().collect();
        let mut ranks = vec![learner.member.clone()];
        ranks.extend(actors.iter().cloned());
        self.forming = Some(FormingGroup {
            group: Group { id: self.last, actors },
            unready: ranks.iter().cloned().collect(),
            deadline: now + plan.broadcast_timeout,
        });
        Some(BroadcastGroup { id: self.last, store: learner.store.clone(), members: ranks })
    }

    /// A member's end of a group is connected.
    pub(super) fn group_ready(&mut self, member: &MemberId, id: BroadcastGroupId) {
        if let Some(forming) = &mut self.forming
            && forming.group.id == id
        {
            forming.unready.remove(member);
            if forming.unready.is_empty() {
                self.active = self.forming.take().map(|forming| forming.group);
            }
        }
    }

    /// A member's end of a group is dead; so is the group. The next one is formed after a pause.
    pub(super) fn group_failed(&mut self, now: Timestamp, id: BroadcastGroupId, retry_delay: Duration) {
        if self.end_groups(|group| group.id == id) {
            self.form_after = Some(now + retry_delay);
        }
    }

    /// Ends the groups that `condition` holds for; whether there were any.
    fn end_groups(&mut self, condition: impl Fn(&Group) -> bool) -> bool {
        let active = self.active.take_if(|group| condition(group));
        let forming = self.forming.take_if(|forming| condition(&forming.group));
        active.is_some() || forming.is_some()
    }

    /// An actor is away, or another process has its name: every group that it is part of ends.
    pub(super) fn actor_left(&mut self, member: &MemberId) {
        self.deliveries.remove(member);
        if self.end_groups(|group| group.actors.contains(member)) {
            // The others need not wait: nothing is wrong with them.
            self.form_after = None;
        }
        self.broadcast_ended(member);
    }

    /// Starts a broadcast when a member of the active group lacks the newest version and all are free to
    /// receive it.
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
        let mut lacking = false;
        for name in &active.actors {
            let actor = members.actors().get(name)?;
            if self.is_under_way(name) {
                return None;
            }
            lacking |= lacks(actor, current);
        }
        if !lacking {
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
            self.deliveries.insert(name.clone(), Delivery::UnderWay(deadline));
        }
        Some(start)
    }

    /// Lets every actor outside the active group pull the newest version that lacks it.
    fn start_pulls(&mut self, now: Timestamp, plan: &RunPlan, members: &Members) -> Option<PullStart> {
        let current = self.current.as_ref()?;
        let mut start = PullStart { version: current.version(), hash: current.hash(), actors: Vec::new() };
        for (name, actor) in members.actors() {
            let in_group = self.active.as_ref().is_some_and(|active| active.actors.contains(name));
            if lacks(actor, current) && !in_group && self.may_pull(now, name) {
                start.actors.push(name.clone());
            }
        }
        for name in &start.actors {
            self.deliveries.insert(name.clone(), Delivery::UnderWay(now + plan.broadcast_timeout));
        }
        Some(start)
    }

    fn is_under_way(&self, actor: &MemberId) -> bool {
        matches!(self.deliveries.get(actor), Some(Delivery::UnderWay(_)))
    }

    fn may_pull(&self, now: Timestamp, actor: &MemberId) -> bool {
        match self.deliveries.get(actor) {
            None => true,
            Some(Delivery::UnderWay(_)) => false,
            Some(Delivery::PullAfter(moment)) => *moment <= now,
        }
    }

    /// An actor uses these weights now.
    pub(super) fn confirm(
        &mut self,
        actor: &MemberId,
        version: PolicyVersion,
        hash: WeightHash,
    ) -> Result<(), UnknownWeights> {
        if !self.knows(version, hash) {
            return Err(UnknownWeights { version, hash });
        }
        self.deliveries.remove(actor);
        self.broadcast_ended(actor);
        Ok(())
    }

    /// An actor did not get the weights it was to get: it pulls after a pause. A group in which it was to
    /// receive them is dead, and returned.
    pub(super) fn delivery_failed(
        &mut self,
        now: Timestamp,
        actor: &MemberId,
        retry_delay: Duration,
    ) -> Option<BroadcastGroupId> {
        self.deliveries.insert(actor.clone(), Delivery::PullAfter(now + retry_delay));
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
        self.form_after.take_if(|moment| *moment <= now);
        let mut expired = ExpiredWeights::default();
        if let Some(forming) = self.forming.take_if(|forming| forming.deadline <= now) {
            self.form_after = Some(now + retry_delay);
            expired.unformed = Some((forming.group.id, forming.unready.into_iter().collect()));
        }
        if let Some(broadcast) = self.broadcast.take_if(|broadcast| broadcast.deadline <= now) {
            self.group_failed(now, broadcast.group, retry_delay);
            expired.unconfirmed = Some((broadcast.version, broadcast.unconfirmed.into_iter().collect()));
        }
        self.deliveries.retain(|_, delivery| match delivery {
            Delivery::UnderWay(deadline) if *deadline <= now => {
                *delivery = Delivery::PullAfter(now + retry_delay);
                true
            }
            Delivery::UnderWay(_) => true,
            Delivery::PullAfter(moment) => *moment > now,
        });
        expired
    }
}

/// Whether an actor is to get the current version. A learner that resumed from an older checkpoint catches up
/// soon: nobody goes back with it.
fn lacks(actor: &Actor, current: &Manifest) -> bool {
    let holds = actor.weights;
    actor.connected
        && holds.is_none_or(|(version, hash)| hash != current.hash() && version <= current.version())
}
