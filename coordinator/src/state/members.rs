//! Who is there: actors, reward servers, the learner.

use serde::{Deserialize, Serialize};
use types::link::actor::{
    ActorCommand, ActorHello, ActorLoad, ActorReport, ActorWelcome, RewardServerAddress,
};
use types::link::learner::{LearnerCommand, LearnerHello, LearnerPhase, LearnerReport};
use types::link::reward::{RewardCommand, RewardHello};
use types::{BatchId, Incarnation, MemberId, PolicyVersion, RunId, Timestamp, WeightHash};

use super::event::{ActorEvent, LearnerEvent, RewardEvent};
use super::weights::Transfer;
use super::{Effect, Phase, State};

/// An actor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Actor {
    /// This life of its process.
    pub incarnation: Incarnation,
    /// Its stream is open.
    pub connected: bool,
    /// It takes no more leases.
    pub draining: bool,
    /// The weights it confirmed last.
    pub weights: Option<(PolicyVersion, WeightHash)>,
    /// Its last reported load.
    pub load: ActorLoad,
    /// When it was last heard of.
    pub last_seen: Timestamp,
    /// Weights on their way to it.
    pub(super) transfer: Option<Transfer>,
    /// After a failed transfer it pulls no sooner than this.
    pub(super) pull_after: Option<Timestamp>,
}

impl Actor {
    /// The version it would generate with, if it can be given work at all.
    pub(super) fn usable_version(&self) -> Option<PolicyVersion> {
        if self.connected && !self.draining { self.weights.map(|(version, _)| version) } else { None }
    }

    pub(super) fn may_pull(&self, now: Timestamp) -> bool {
        self.pull_after.is_none_or(|after| after <= now)
    }
}

/// A reward server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardServer {
    /// This life of its process.
    pub incarnation: Incarnation,
    /// Its stream is open.
    pub connected: bool,
    /// Where actors reach it.
    pub address: String,
    /// Rollouts it has accepted and not yet reported.
    pub queued: u32,
    /// When it was last heard of.
    pub last_seen: Timestamp,
}

/// The learner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learner {
    /// Its name.
    pub member: MemberId,
    /// This life of its processes.
    pub incarnation: Incarnation,
    /// Its stream is open.
    pub connected: bool,
    /// Number of ranks.
    pub world_size: u32,
    /// The last batch in the weights it holds.
    pub trained: BatchId,
    /// What it is doing.
    pub phase: LearnerPhase,
    /// Its TCPStore.
    pub store: String,
    /// Its weight service.
    pub weights: String,
    /// When it was last heard of.
    pub last_seen: Timestamp,
}

impl State {
    pub(super) fn connected_actors(&self) -> Vec<MemberId> {
        self.actors.iter().filter(|(_, actor)| actor.connected).map(|(member, _)| member.clone()).collect()
    }

    pub(super) fn learner_connected(&self) -> bool {
        self.learner.as_ref().is_some_and(|learner| learner.connected)
    }

    pub(super) fn actor_event(
        &mut self,
        now: Timestamp,
        member: &MemberId,
        event: ActorEvent,
        effects: &mut Vec<Effect>,
    ) {
        let report = match event {
            ActorEvent::Joined(hello) => return self.actor_joined(now, hello, effects),
            ActorEvent::Disconnected => return self.actor_disconnected(now, member),
            ActorEvent::Report(report) => report,
        };
        let Some(actor) = self.actors.get_mut(member) else {
            let reason = "introduce yourself first: this coordinator does not know you".to_owned();
            effects.push(Effect::Disconnect { member: member.clone(), reason });
            return;
        };
        actor.last_seen = now;
        match report {
            ActorReport::Load(load) => actor.load = load,
            ActorReport::WeightsConfirmed { version, hash } => {
                if let Err(reason) = self.weights_confirmed(member, version, hash) {
                    effects.push(Effect::Disconnect { member: member.clone(), reason });
                }
            }
            ActorReport::WeightsFailed { version, detail } => {
                effects.push(Effect::Explain(format!("actor {member} did not get {version}: {detail}")));
                self.weights_failed(now, member, effects);
            }
            ActorReport::BroadcastGroupReady(id) => self.broadcast_group_ready(member, id),
            ActorReport::BroadcastGroupFailed { group, detail } => {
                effects.push(Effect::Explain(format!("broadcast group {group} at {member}: {detail}")));
                self.broadcast_group_failed(now, group);
            }
            ActorReport::Failed(failure) => self.attempt_failed(failure.id, failure.reason, effects),
            ActorReport::Draining => actor.draining = true,
        }
    }

    fn actor_joined(&mut self, now: Timestamp, hello: ActorHello, effects: &mut Vec<Effect>) {
        let ActorHello { member, incarnation, run, holding, weights } = hello;
        if let Some(reason) = self.refusal(run.as_ref()) {
            effects.push(Effect::Refuse { member, reason });
            return;
        }
        let before = self.actors.get(&member);
        let same_life = before.is_some_and(|actor| actor.incarnation == incarnation);
        let load = before.filter(|_| same_life).map(|actor| actor.load).unwrap_or_default();
        let actor = Actor {
            incarnation,
            connected: true,
            draining: false,
            weights: weights.filter(|(version, hash)| self.weights.knows(*version, *hash)),
            load,
            last_seen: now,
            transfer: None,
            pull_after: None,
        };
        self.actors.insert(member.clone(), actor);
        self.leave_broadcast_groups(now, &member);
        self.fail_leases_of(&member, if same_life { &holding } else { &[] }, effects);
        let welcome = ActorWelcome {
            run: self.plan.run.clone(),
            seed: self.plan.seed,
            sampling: self.plan.sampling.clone(),
            deterministic: self.plan.deterministic,
            heartbeat_timeout: self.plan.heartbeat_timeout,
        };
        effects.push(Effect::actor(member.clone(), ActorCommand::Welcome(welcome)));
        effects.push(Effect::actor(member.clone(), ActorCommand::RewardServers(self.reward_addresses())));
        if self.phase != Phase::Running {
            effects.push(Effect::actor(member, ActorCommand::Drain));
        }
    }

    fn actor_disconnected(&mut self, now: Timestamp, member: &MemberId) {
        if let Some(actor) = self.actors.get_mut(member) {
            actor.connected = false;
            actor.transfer = None;
        }
        self.leave_broadcast_groups(now, member);
    }

    pub(super) fn reward_event(
        &mut self,
        now: Timestamp,
        member: &MemberId,
        event: RewardEvent,
        effects: &mut Vec<Effect>,
    ) {
        match event {
            RewardEvent::Joined(hello) => self.reward_joined(now, hello, effects),
            RewardEvent::Disconnected => {
                if let Some(server) = self.reward_servers.get_mut(member) {
                    server.connected = false;
                }
                self.tell_reward_servers(effects);
            }
            RewardEvent::Load { queued } => {
                if let Some(server) = self.reward_servers.get_mut(member) {
                    (server.queued, server.last_seen) = (queued, now);
                }
            }
            RewardEvent::Scored(summary) => {
                self.record.tokens(now, u64::from(summary.tokens));
                self.scored(summary, effects);
            }
            RewardEvent::Failed(failure) => self.attempt_failed(failure.id, failure.reason, effects),
        }
    }

    fn reward_joined(&mut self, now: Timestamp, hello: RewardHello, effects: &mut Vec<Effect>) {
        let RewardHello { member, incarnation, run, address } = hello;
        if let Some(reason) = self.refusal(run.as_ref()) {
            effects.push(Effect::Refuse { member, reason });
            return;
        }
        let server = RewardServer { incarnation, connected: true, address, queued: 0, last_seen: now };
        let welcome = RewardCommand::Welcome { run: self.plan.run.clone() };
        effects.push(Effect::Reward { member: member.clone(), command: welcome });
        self.reward_servers.insert(member, server);
        self.tell_reward_servers(effects);
    }

    fn reward_addresses(&self) -> Vec<RewardServerAddress> {
        let connected = self.reward_servers.iter().filter(|(_, server)| server.connected);
        let address = |(member, server): (&MemberId, &RewardServer)| RewardServerAddress {
            member: member.clone(),
            address: server.address.clone(),
        };
        connected.map(address).collect()
    }

    /// Tells every actor which reward servers there are.
    fn tell_reward_servers(&self, effects: &mut Vec<Effect>) {
        let servers = self.reward_addresses();
        for member in self.connected_actors() {
            effects.push(Effect::actor(member, ActorCommand::RewardServers(servers.clone())));
        }
    }

    pub(super) fn learner_event(&mut self, now: Timestamp, event: LearnerEvent, effects: &mut Vec<Effect>) {
        let report = match event {
            LearnerEvent::Joined(hello) => return self.learner_joined(now, hello, effects),
            LearnerEvent::Disconnected => return self.learner_disconnected(),
            LearnerEvent::Report(report) => report,
        };
        let Some(learner) = &mut self.learner else {
            return;
        };
        learner.last_seen = now;
        let member = learner.member.clone();
        match report {
            LearnerReport::Alive(phase) => learner.phase = phase,
            LearnerReport::Trained { batch, manifest, metrics } => {
                if let Err(reason) = self.batch_trained(now, (batch, manifest), *metrics, effects) {
                    effects.push(Effect::Disconnect { member, reason });
                }
            }
            LearnerReport::Checkpointed(batch) => self.batch_checkpointed(batch, effects),
            LearnerReport::Published { group, .. } => self.publication_ended(now, group, false),
            LearnerReport::PublishFailed { group, version, detail } => {
                effects.push(Effect::Explain(format!("broadcast of {version} failed: {detail}")));
                self.publication_ended(now, group, true);
            }
            LearnerReport::BroadcastGroupReady(id) => self.broadcast_group_ready(&member, id),
            LearnerReport::BroadcastGroupFailed { group, detail } => {
                effects.push(Effect::Explain(format!("broadcast group {group} at the learner: {detail}")));
                self.broadcast_group_failed(now, group);
            }
        }
    }

    fn learner_disconnected(&mut self) {
        if let Some(learner) = &mut self.learner {
            learner.connected = false;
            self.weights.forget_broadcast_groups();
        }
    }

    fn learner_joined(&mut self, now: Timestamp, hello: LearnerHello, effects: &mut Vec<Effect>) {
        if let Some(reason) = self.refusal(hello.run.as_ref()).or_else(|| self.checkpoint_refusal(&hello)) {
            effects.push(Effect::Refuse { member: hello.member, reason });
            return;
        }
        self.catch_up_trained(now, hello.trained, hello.steps, effects);
        self.batch_checkpointed(hello.checkpointed, effects);
        self.send_after(hello.trained);
        self.weights.forget_broadcast_groups();
        self.weights.offer(hello.manifest);
        for actor in self.actors.values_mut() {
            actor.transfer = None;
        }
        self.learner = Some(Learner {
            member: hello.member,
            incarnation: hello.incarnation,
            connected: true,
            world_size: hello.world_size,
            trained: hello.trained,
            phase: LearnerPhase::Waiting,
            store: hello.store,
            weights: hello.weights,
            last_seen: now,
        });
        let welcome = LearnerCommand::Welcome {
            run: self.plan.run.clone(),
            last_batch: self.last_batch(),
            sampling: self.plan.sampling.clone(),
        };
        effects.push(Effect::Learner(welcome));
    }

    /// Why a member of another run cannot take part.
    fn refusal(&self, run: Option<&RunId>) -> Option<String> {
        let theirs = run.filter(|run| **run != self.plan.run)?;
        Some(format!(
            "belongs to run {theirs}, this is run {}; point it at its own coordinator",
            self.plan.run
        ))
    }

    /// Why a learner's checkpoint does not fit this run's journal.
    fn checkpoint_refusal(&self, hello: &LearnerHello) -> Option<String> {
        let (needed, formed) = (self.batches.checkpointed, self.formed());
        if hello.trained < needed {
            return Some(format!(
                "its newest checkpoint holds batches up to {}, but the samples up to {needed} are forgotten because \
                 a checkpoint held them: restore that checkpoint, or start a new run",
                hello.trained
            ));
        }
        if hello.trained > formed {
            return Some(format!(
                "its checkpoint holds batches up to {}, but this journal only knows batches up to {formed}: it \
                 belongs to another journal",
                hello.trained
            ));
        }
        None
    }

    /// Takes members that have been silent for too long for lost.
    pub(super) fn lose_silent_members(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let timeout = self.plan.heartbeat_timeout;
        let silent = |last_seen: Timestamp| last_seen + timeout <= now;
        let lost: Vec<MemberId> = self
            .actors
            .iter()
            .filter(|(member, actor)| {
                silent(actor.last_seen) && (actor.connected || self.holds_lease(member))
            })
            .map(|(member, _)| member.clone())
            .collect();
        for member in lost {
            effects
                .push(Effect::Explain(format!("actor {member} was silent for {timeout:?}: taken for lost")));
            let reason = format!("silent for {timeout:?}");
            effects.push(Effect::Disconnect { member: member.clone(), reason });
            self.actor_disconnected(now, &member);
            self.fail_leases_of(&member, &[], effects);
        }
        let servers = self.reward_servers.iter_mut().filter(|(_, server)| server.connected);
        let mut gone = false;
        for (member, server) in servers {
            if silent(server.last_seen) {
                server.connected = false;
                gone = true;
                let reason = format!("silent for {timeout:?}");
                effects.push(Effect::Disconnect { member: member.clone(), reason });
            }
        }
        if gone {
            self.tell_reward_servers(effects);
        }
        if let Some(learner) = &mut self.learner
            && learner.connected
            && silent(learner.last_seen)
        {
            let reason = format!("silent for {timeout:?}");
            effects.push(Effect::Disconnect { member: learner.member.clone(), reason });
            self.learner_disconnected();
        }
        if self.drain_deadline.is_some_and(|deadline| deadline <= now) {
            self.drain_deadline = None;
        }
    }

    /// The next moment at which a silent member is taken for lost.
    pub(super) fn silence_deadlines(&self) -> Option<Timestamp> {
        let timeout = self.plan.heartbeat_timeout;
        let actors = self
            .actors
            .iter()
            .filter(|(member, actor)| actor.connected || self.holds_lease(member))
            .map(|(_, actor)| actor.last_seen);
        let servers = self.reward_servers.values().filter(|server| server.connected).map(|s| s.last_seen);
        let learner = self.learner.iter().filter(|learner| learner.connected).map(|l| l.last_seen);
        let silence = actors.chain(servers).chain(learner).min().map(|last_seen| last_seen + timeout);
        [silence, Self::transfer_deadlines(&self.actors)].into_iter().flatten().min()
    }
}
