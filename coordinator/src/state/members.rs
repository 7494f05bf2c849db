//! Who is there: actors, reward servers, the learner.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::link::actor::{ActorHello, ActorLoad, RewardServerAddress};
use types::link::learner::{LearnerHello, LearnerPhase};
use types::link::reward::RewardHello;
use types::{BatchId, Incarnation, MemberId, PolicyVersion, RolloutId, Timestamp, WeightHash};

use super::leases::Leases;

/// An actor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Actor {
    /// Tells its process from the ones before.
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
}

impl Actor {
    /// The version it would generate with, if it can be given work at all.
    pub(super) fn usable_version(&self) -> Option<PolicyVersion> {
        if self.connected && !self.draining { self.weights.map(|(version, _)| version) } else { None }
    }
}

/// A reward server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardServer {
    /// Tells its process from the ones before.
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
    /// Tells its processes from the ones before.
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

/// Everybody who ever took part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Members {
    actors: BTreeMap<MemberId, Actor>,
    reward_servers: BTreeMap<MemberId, RewardServer>,
    learner: Option<Learner>,
}

/// Members that were silent for too long.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Silent {
    pub(super) actors: Vec<MemberId>,
    pub(super) reward_servers: Vec<MemberId>,
    pub(super) learner: Option<MemberId>,
}

impl Members {
    /// The actors by name.
    pub fn actors(&self) -> &BTreeMap<MemberId, Actor> {
        &self.actors
    }

    /// The reward servers by name.
    pub fn reward_servers(&self) -> &BTreeMap<MemberId, RewardServer> {
        &self.reward_servers
    }

    /// The learner, once it has come.
    pub fn learner(&self) -> Option<&Learner> {
        self.learner.as_ref()
    }

    /// The actors with an open stream.
    pub(crate) fn connected_actors(&self) -> impl Iterator<Item = (&MemberId, &Actor)> {
        self.actors.iter().filter(|(_, actor)| actor.connected)
    }

    /// The reward servers with an open stream.
    pub(crate) fn connected_reward_servers(&self) -> impl Iterator<Item = (&MemberId, &RewardServer)> {
        self.reward_servers.iter().filter(|(_, server)| server.connected)
    }

    /// The learner, while its stream is open.
    pub(crate) fn connected_learner(&self) -> Option<&Learner> {
        self.learner.as_ref().filter(|learner| learner.connected)
    }

    /// The actors that hold weights and go on taking work, by name.
    pub(super) fn weight_holders(&self) -> impl Iterator<Item = &MemberId> {
        self.actors.iter().filter(|(_, actor)| actor.usable_version().is_some()).map(|(member, _)| member)
    }

    /// Where actors reach the reward servers that are connected.
    pub(super) fn reward_addresses(&self) -> Vec<RewardServerAddress> {
        let mut addresses = Vec::new();
        for (member, server) in self.connected_reward_servers() {
            addresses.push(RewardServerAddress { member: member.clone(), address: server.address.clone() });
        }
        addresses
    }

    /// Every stream is broken.
    pub(super) fn disconnect_all(&mut self) {
        self.actors.values_mut().for_each(|actor| actor.connected = false);
        self.reward_servers.values_mut().for_each(|server| server.connected = false);
        self.disconnect_learner();
    }

    /// An actor has come, with these of its weights recognised. Yields the attempts under earlier leases that
    /// it still works on: none when another process holds its name now.
    pub(super) fn join_actor(
        &mut self,
        now: Timestamp,
        hello: ActorHello,
        weights: Option<(PolicyVersion, WeightHash)>,
    ) -> Vec<RolloutId> {
        let ActorHello { member, incarnation, holding, .. } = hello;
        let same_process = self.actors.get(&member).filter(|actor| actor.incarnation == incarnation);
        let (load, holding) = same_process.map(|actor| (actor.load, holding)).unwrap_or_default();
        let actor = Actor { incarnation, connected: true, draining: false, weights, load, last_seen: now };
        self.actors.insert(member, actor);
        holding
    }

    /// An actor is heard of; none when it never introduced itself.
    pub(super) fn hear_actor(&mut self, now: Timestamp, member: &MemberId) -> Option<&mut Actor> {
        let actor = self.actors.get_mut(member)?;
        actor.last_seen = now;
        Some(actor)
    }

    /// An actor's stream is closed.
    pub(super) fn disconnect_actor(&mut self, member: &MemberId) {
        if let Some(actor) = self.actors.get_mut(member) {
            actor.connected = false;
        }
    }

    /// A reward server has come.
    pub(super) fn join_reward_server(&mut self, now: Timestamp, hello: RewardHello) {
        let RewardHello { member, incarnation, address, .. } = hello;
        let server = RewardServer { incarnation, connected: true, address, queued: 0, last_seen: now };
        self.reward_servers.insert(member, server);
    }

    /// A reward server says how much it has in work.
    pub(super) fn hear_reward_server(&mut self, now: Timestamp, member: &MemberId, queued: u32) {
        if let Some(server) = self.reward_servers.get_mut(member) {
            (server.queued, server.last_seen) = (queued, now);
        }
    }

    /// A reward server's stream is closed.
    pub(super) fn disconnect_reward_server(&mut self, member: &MemberId) {
        if let Some(server) = self.reward_servers.get_mut(member) {
            server.connected = false;
        }
    }

    /// A learner has come; it takes the place of the one before.
    pub(super) fn join_learner(&mut self, now: Timestamp, hello: LearnerHello) {
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
    }

    /// The learner is heard of; none when it never introduced itself.
    pub(super) fn hear_learner(&mut self, now: Timestamp) -> Option<&mut Learner> {
        let learner = self.learner.as_mut()?;
        learner.last_seen = now;
        Some(learner)
    }

    /// The learner's stream is closed.
    pub(super) fn disconnect_learner(&mut self) {
        if let Some(learner) = &mut self.learner {
            learner.connected = false;
        }
    }

    /// Members not heard of for `timeout`. An actor that has disconnected is given as long to come back to
    /// its leases.
    pub(super) fn silent(&self, now: Timestamp, timeout: Duration, leases: &Leases) -> Silent {
        let mut silent = Silent::default();
        for (member, actor) in self.expected_actors(leases) {
            if actor.last_seen + timeout <= now {
                silent.actors.push(member.clone());
            }
        }
        for (member, server) in self.connected_reward_servers() {
            if server.last_seen + timeout <= now {
                silent.reward_servers.push(member.clone());
            }
        }
        let learner = self.connected_learner().filter(|learner| learner.last_seen + timeout <= now);
        silent.learner = learner.map(|learner| learner.member.clone());
        silent
    }

    /// The next moment at which a member has been silent for `timeout`.
    pub(super) fn next_silence(&self, timeout: Duration, leases: &Leases) -> Option<Timestamp> {
        let actors = self.expected_actors(leases).map(|(_, actor)| actor.last_seen);
        let servers = self.connected_reward_servers().map(|(_, server)| server.last_seen);
        let learner = self.connected_learner().map(|learner| learner.last_seen);
        actors.chain(servers).chain(learner).min().map(|last_seen| last_seen + timeout)
    }

    /// Actors that are to be heard of.
    fn expected_actors(&self, leases: &Leases) -> impl Iterator<Item = (&MemberId, &Actor)> {
        self.actors.iter().filter(|(member, actor)| actor.connected || leases.has_any(member))
    }
}
