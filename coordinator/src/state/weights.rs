//! The weight plane: who gets the next weights, and how (`docs/decisions.md`, D6 and D16).
//!
//! A version is offered when the learner has it. Actors that are members of the active broadcast group
//! receive it together; everybody else pulls it point to point, from the learner or from an actor that has
//! it. A failure ends a group, never the run; whoever missed a version pulls it.
//!
//! Nothing here is journaled. Group numbers begin anew with each start, far from those before.

mod backend;
mod broadcasts;
mod deliveries;

use types::link::actor::ActorCommand;
use types::link::learner::LearnerCommand;
use types::{BroadcastGroupId, Manifest, MemberId, PolicyVersion, Timestamp};

use super::members::{Actor, Learner, Members};
use super::plan::RunPlan;
use broadcasts::{BroadcastStart, Broadcasts};
use deliveries::{Deliveries, Source};

/// Versions, groups and deliveries.
#[derive(Debug, Clone, Default)]
pub(super) struct WeightPlane {
    /// The newest version that the learner has.
    current: Option<Manifest>,
    broadcasts: Broadcasts,
    deliveries: Deliveries,
}

/// What a member is told about weights.
pub(super) enum WeightCommand {
    Actor(MemberId, ActorCommand),
    Learner(LearnerCommand),
    /// Nobody is told, but the log: a group goes through the hosts' memory, for this reason.
    ThroughHosts(BroadcastGroupId, String),
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
        Self { broadcasts: Broadcasts::of_term(term), ..Self::default() }
    }

    /// The learner has these weights.
    pub(super) fn offer(&mut self, manifest: Manifest, members: &Members) {
        self.current = Some(manifest);
        self.broadcasts.new_version();
        self.deliveries.new_version();
        self.deliveries.add_unserved(members.connected_actors().map(|(member, _)| member.clone()));
        for (member, actor) in members.connected_actors() {
            self.note_source(member, actor);
        }
    }

    /// The learner's processes, and with them every group, are gone.
    pub(super) fn forget_groups(&mut self, now: Timestamp) {
        self.broadcasts.forget(now);
    }

    /// A learner has come that has these weights: nothing of the one before is on its way any more.
    pub(super) fn learner_joined(&mut self, now: Timestamp, manifest: Manifest, members: &Members) {
        self.forget_groups(now);
        self.deliveries.learner_joined();
        self.offer(manifest, members);
    }

    /// What an actor holds, or whether it goes on taking work, may have changed.
    pub(super) fn actor_changed(&mut self, now: Timestamp, member: &MemberId, actor: &Actor) {
        self.broadcasts.set_holder(now, member, actor.usable_version().is_some());
        let lacks = self.current.as_ref().is_some_and(|current| lacks(actor, current));
        self.deliveries.set_unserved(member, lacks);
        self.note_source(member, actor);
    }

    /// An actor that has the newest version and shares it can be pulled from.
    fn note_source(&mut self, member: &MemberId, actor: &Actor) {
        let newest = self.current.as_ref().map(|current| (current.version(), current.hash()));
        if actor.connected && actor.source.is_some() && actor.weights.is_some() && actor.weights == newest {
            self.deliveries.add_source(Source::Actor(member.clone()));
        }
    }

    /// The next moment at which [`WeightPlane::expire`] or [`WeightPlane::advance`] can change something.
    pub(super) fn next_deadline(&self, plan: &RunPlan, members: &Members) -> Option<Timestamp> {
        let learner_is_there = members.connected_learner().is_some();
        let broadcasts = self.broadcasts.next_deadline(plan, learner_is_there);
        [broadcasts, self.deliveries.next_deadline()].into_iter().flatten().min()
    }

    /// What brings the newest version to every actor that lacks it, in order.
    pub(super) fn advance(
        &mut self,
        now: Timestamp,
        plan: &RunPlan,
        members: &Members,
    ) -> Vec<WeightCommand> {
        let mut commands = self.leave_groups(members);
        let Some(learner) = members.connected_learner() else {
            return commands;
        };
        if let Some((group, reason)) = self.broadcasts.form_group(now, plan, learner, members) {
            commands.extend(reason.map(|reason| WeightCommand::ThroughHosts(group.id, reason)));
            for actor in &group.members[1..] {
                let command = ActorCommand::JoinBroadcastGroup(group.clone());
                commands.push(WeightCommand::Actor(actor.clone(), command));
            }
            commands.push(WeightCommand::Learner(LearnerCommand::JoinBroadcastGroup(group)));
        }
        if let Some(start) = self.start_broadcast(now, plan, members) {
            let BroadcastStart { group, manifest, actors, .. } = start;
            let version = manifest.version();
            for actor in actors {
                let command = ActorCommand::ReceiveWeights { group, manifest: manifest.clone() };
                commands.push(WeightCommand::Actor(actor, command));
            }
            commands.push(WeightCommand::Learner(LearnerCommand::Publish { group, version }));
        }
        self.start_pulls(now + plan.broadcast_timeout, members, learner, &mut commands);
        commands
    }

    /// Tells everybody who is there to leave the groups that have ended.
    fn leave_groups(&mut self, members: &Members) -> Vec<WeightCommand> {
        let mut commands = Vec::new();
        for (group, actors) in self.broadcasts.take_ended() {
            for actor in actors {
                if members.actors().get(&actor).is_some_and(|actor| actor.connected) {
                    commands.push(WeightCommand::Actor(actor, ActorCommand::LeaveBroadcastGroup(group)));
                }
            }
            if members.connected_learner().is_some() {
                commands.push(WeightCommand::Learner(LearnerCommand::LeaveBroadcastGroup(group)));
            }
        }
        commands
    }

    /// A member's end of a group is connected.
    pub(super) fn group_ready(&mut self, member: &MemberId, id: BroadcastGroupId) {
        let replaced = self.broadcasts.group_ready(member, id);
        self.deliveries.add_unserved(replaced);
    }

    /// A member's end of a group is dead; so is the group. The next one is formed after a pause, which grows.
    pub(super) fn group_failed(&mut self, now: Timestamp, id: BroadcastGroupId, plan: &RunPlan) {
        // They pull what they lack.
        let served = self.broadcasts.group_failed(now, id, plan);
        self.deliveries.add_unserved(served);
    }

    /// An actor is away, or another process has its name: every group that it is part of ends.
    pub(super) fn actor_left(&mut self, now: Timestamp, member: &MemberId) {
        let served = self.broadcasts.actor_left(now, member);
        self.deliveries.add_unserved(served);
        self.deliveries.forget(member);
    }

    /// Starts a broadcast when a member of the active group lacks the newest weights and all are free to
    /// receive them: nobody is in the middle of another, nobody would go back.
    fn start_broadcast(
        &mut self,
        now: Timestamp,
        plan: &RunPlan,
        members: &Members,
    ) -> Option<BroadcastStart> {
        let learner = members.connected_learner()?;
        let current = self.current.as_ref().filter(|_| self.broadcasts.is_idle())?;
        let in_group = || self.broadcasts.active_actors().filter_map(|name| members.actors().get(name));
        let is_wanted = in_group().any(|actor| lacks(actor, current) && !holds_content(actor, current));
        if !is_wanted
            || in_group().any(|actor| is_ahead(actor, current))
            || self.broadcasts.active_actors().any(|name| self.deliveries.is_under_way(name))
        {
            return None;
        }
        let start = self.broadcasts.start(now, plan, &learner.member, current)?;
        for name in &start.actors {
            self.deliveries.broadcast(name, start.deadline);
        }
        Some(start)
    }

    /// Lets actors outside the active group pull the newest version that they lack, and those whose weights
    /// it has take its number.
    fn start_pulls(
        &mut self,
        deadline: Timestamp,
        members: &Members,
        learner: &Learner,
        commands: &mut Vec<WeightCommand>,
    ) {
        let Some(current) = &self.current else { return };
        let actors = members.actors();
        let (version, hash) = (current.version(), current.hash());
        let started = self.deliveries.start_pulls(
            deadline,
            |name| actors.get(name).is_some_and(|actor| lacks(actor, current)),
            |name| {
                let holds = actors.get(name).is_some_and(|actor| holds_content(actor, current));
                self.broadcasts.serves(name) && !holds
            },
        );
        for (actor, source) in started {
            let shared = match &source {
                Source::Learner => None,
                Source::Actor(name) => actors.get(name).and_then(|actor| actor.source.clone()),
            };
            let source = shared.unwrap_or_else(|| learner.weights.clone());
            commands.push(WeightCommand::Actor(actor, ActorCommand::PullWeights { source, version, hash }));
        }
    }

    /// An actor has received a part of the weights that it pulls.
    pub(super) fn came_further(&mut self, actor: &MemberId, until: Timestamp) {
        self.deliveries.came_further(actor, until);
    }

    /// An actor uses weights of this run now.
    pub(super) fn confirmed(&mut self, actor: &MemberId) {
        self.deliveries.arrived(actor);
        self.broadcasts.ended_for(actor);
    }

    /// An actor did not get the weights it was to get: it pulls after a pause. A group in which it was to
    /// receive them is dead, and returned.
    pub(super) fn delivery_failed(
        &mut self,
        now: Timestamp,
        actor: &MemberId,
        plan: &RunPlan,
    ) -> Option<BroadcastGroupId> {
        self.deliveries.failed(actor, now + plan.weights_retry_delay());
        let group = self.broadcasts.group_awaiting(actor);
        if let Some(group) = group {
            self.group_failed(now, group, plan);
        }
        self.broadcasts.ended_for(actor);
        group
    }

    /// The broadcast under way has ended for a member, well or not.
    pub(super) fn broadcast_ended(&mut self, member: &MemberId) {
        self.broadcasts.ended_for(member);
    }

    /// Gives up what is past its deadline.
    pub(super) fn expire(&mut self, now: Timestamp, plan: &RunPlan) -> ExpiredWeights {
        let unformed = self.broadcasts.expire_forming(now, plan);
        let mut unconfirmed = None;
        if let Some((group, version, silent)) = self.broadcasts.expire_broadcast(now) {
            self.group_failed(now, group, plan);
            unconfirmed = Some((version, silent));
        }
        self.deliveries.expire(now, now + plan.weights_retry_delay());
        ExpiredWeights { unformed, unconfirmed }
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

/// Whether an actor's weights are those of the current version, whatever number it has for them: told to pull
/// them, it takes the number and transfers nothing.
fn holds_content(actor: &Actor, current: &Manifest) -> bool {
    actor.weights.is_some_and(|(_, hash)| hash == current.hash())
}

/// Whether an actor holds a later version than the learner, which resumed from an older checkpoint.
fn is_ahead(actor: &Actor, current: &Manifest) -> bool {
    actor.weights.is_some_and(|(version, _)| version > current.version())
}
