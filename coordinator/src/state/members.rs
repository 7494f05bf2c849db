//! Who is there: actors, reward servers, the learner. Nothing here is journaled: after a restart everybody
//! introduces itself again.

use std::sync::Arc;
use std::time::Duration;

use types::link::actor::{ActorHello, ActorLoad, RewardServerAddress};
use types::link::learner::{LearnerHello, LearnerPhase};
use types::link::reward::RewardHello;
use types::{BatchId, Incarnation, MemberId, PolicyVersion, Timestamp, Vocabulary, WeightHash};

use super::deadlines::Deadlines;
use super::member_map::MemberMap;

/// Silences after which a member that has gone is forgotten.
const FORGET_SILENCES: u32 = 30;

/// An actor.
#[derive(Debug, Clone, PartialEq)]
pub struct Actor {
    /// Tells its process from the ones before.
    pub incarnation: Incarnation,
    /// Its stream is open.
    pub connected: bool,
    /// It takes no more leases.
    pub draining: bool,
    /// The weights it confirmed last.
    pub weights: Option<(PolicyVersion, WeightHash)>,
    /// Where others pull the weights that it uses, if it shares them.
    pub source: Option<String>,
    /// The GPU on which it receives weights, if it has one.
    pub gpu: Option<String>,
    /// That of its tokenizer, if it says so.
    pub vocabulary: Option<Arc<Vocabulary>>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewardServer {
    /// Tells its process from the ones before.
    pub incarnation: Incarnation,
    /// Its stream is open.
    pub connected: bool,
    /// Where actors reach it.
    pub address: String,
    /// That of its tokenizer, if it says so.
    pub vocabulary: Option<Arc<Vocabulary>>,
    /// Rollouts it has accepted and not yet reported.
    pub queued: u32,
    /// When it was last heard of.
    pub last_seen: Timestamp,
}

/// The learner.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// The last batch sent to it.
    pub(super) sent: BatchId,
    /// It was asked for the checkpoint that ends a run before its last planned batch.
    pub(super) is_asked_to_end: bool,
    /// What it is doing.
    pub phase: LearnerPhase,
    /// Its TCPStore.
    pub store: String,
    /// Its weight service.
    pub weights: String,
    /// The GPU from which it sends weights, if it has one.
    pub gpu: Option<String>,
    /// When it was last heard of.
    pub last_seen: Timestamp,
}

/// A member that is to be heard of now and then.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Watched {
    Actor(MemberId),
    Reward(MemberId),
    Learner,
}

/// Everybody who took part lately.
#[derive(Debug, Clone, Default)]
pub struct Members {
    actors: MemberMap<Actor>,
    reward_servers: MemberMap<RewardServer>,
    learner: Option<Learner>,
    connected_actors: u64,
    connected_reward_servers: u64,
    /// Members that have left for good and are forgotten.
    gone: u64,
    /// Since when everybody can be heard: silence before does not count.
    listening_since: Timestamp,
    watch: Deadlines<Watched>,
}

/// What the run knows of what an actor that has come says.
#[derive(Debug)]
pub(super) struct Recognised {
    /// Its weights, where they are the run's.
    pub(super) weights: Option<(PolicyVersion, WeightHash)>,
    /// That of its tokenizer.
    pub(super) vocabulary: Option<Arc<Vocabulary>>,
}

/// When somebody wants to join, and how long a member that is silent is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Joining {
    pub(super) now: Timestamp,
    pub(super) timeout: Duration,
}

/// Another process has the name or the role of the one that wants to join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Clash {
    #[error(
        "{role} {member} has joined with a newer process ({known}, this one is {theirs}): stop one of the two, or give \
         each a name of its own (key `member`)"
    )]
    Newer { role: &'static str, member: MemberId, known: Incarnation, theirs: Incarnation },
    #[error(
        "a run has one learner, and {known} is connected ({address}): {theirs} cannot join; stop one of the two"
    )]
    SecondLearner { known: MemberId, address: String, theirs: MemberId },
}

impl Members {
    /// The actors by name.
    pub fn actors(&self) -> &MemberMap<Actor> {
        &self.actors
    }

    /// The reward servers by name.
    pub fn reward_servers(&self) -> &MemberMap<RewardServer> {
        &self.reward_servers
    }

    /// The learner, once it has come.
    pub fn learner(&self) -> Option<&Learner> {
        self.learner.as_ref()
    }

    /// Members that have left and are forgotten.
    pub fn gone(&self) -> u64 {
        self.gone
    }

    /// The actors with an open stream.
    pub(crate) fn connected_actors(&self) -> impl Iterator<Item = (&MemberId, &Actor)> {
        self.actors.iter().filter(|(_, actor)| actor.connected)
    }

    /// How many actors have an open stream.
    pub(crate) fn connected_actor_count(&self) -> u64 {
        self.connected_actors
    }

    /// How many reward servers have an open stream.
    pub(crate) fn connected_reward_server_count(&self) -> u64 {
        self.connected_reward_servers
    }

    /// The learner, while its stream is open.
    pub(crate) fn connected_learner(&self) -> Option<&Learner> {
        self.learner.as_ref().filter(|learner| learner.connected)
    }

    /// The learner, while its stream is open.
    pub(super) fn connected_learner_mut(&mut self) -> Option<&mut Learner> {
        self.learner.as_mut().filter(|learner| learner.connected)
    }

    /// Where actors reach the reward servers that are connected.
    pub(super) fn reward_addresses(&self) -> Vec<RewardServerAddress> {
        let mut addresses = Vec::new();
        for (member, server) in self.reward_servers.iter().filter(|(_, server)| server.connected) {
            addresses.push(RewardServerAddress { member: member.clone(), address: server.address.clone() });
        }
        addresses
    }

    /// Nobody could be heard before: everybody is given the whole time to be heard of.
    pub(super) fn listen_from(&mut self, now: Timestamp) {
        self.listening_since = now;
    }

    /// Checks that no newer process has an actor's name.
    pub(super) fn check_actor(&self, at: Joining, hello: &ActorHello) -> Result<(), Clash> {
        let known = self.actors.get(&hello.member);
        let known = known.filter(|actor| actor.connected || self.was_heard(at, actor.last_seen));
        let known = known.map(|actor| actor.incarnation);
        check_incarnation("actor", &hello.member, known, hello.incarnation)
    }

    /// Checks that no newer process has a reward server's name.
    pub(super) fn check_reward_server(&self, at: Joining, hello: &RewardHello) -> Result<(), Clash> {
        let known = self.reward_servers.get(&hello.member);
        let known = known.filter(|server| server.connected || self.was_heard(at, server.last_seen));
        let known = known.map(|server| server.incarnation);
        check_incarnation("reward server", &hello.member, known, hello.incarnation)
    }

    /// Whether a member that was heard of last at this moment may still come back. The process that takes
    /// the place of one that is gone may be of a machine whose clock is behind, and then seem older.
    fn was_heard(&self, at: Joining, last_seen: Timestamp) -> bool {
        at.now.since(last_seen.max(self.listening_since)) < at.timeout
    }

    /// Checks that no other process is the learner.
    ///
    /// `admitted` is the learner that was admitted last, be it before a restart.
    pub(super) fn check_learner(
        &self,
        at: Joining,
        hello: &LearnerHello,
        admitted: Option<&(MemberId, Incarnation)>,
    ) -> Result<(), Clash> {
        let (member, theirs) = (hello.member.clone(), hello.incarnation);
        let last_seen = self.learner.as_ref().map_or(Timestamp(0), |learner| learner.last_seen);
        let is_expected = self.connected_learner().is_some() || self.was_heard(at, last_seen);
        match admitted {
            // Whatever its name: a learner that started before the one that was admitted is of the past.
            Some((_, known)) if *known > theirs && is_expected => {
                return Err(Clash::Newer { role: "learner", member, known: *known, theirs });
            }
            _ => {}
        }
        match self.connected_learner() {
            Some(known) if known.member != member => Err(Clash::SecondLearner {
                known: known.member.clone(),
                address: known.weights.clone(),
                theirs: member,
            }),
            _ => Ok(()),
        }
    }

    /// An actor holds leases from before a restart: it is given time to come back.
    pub(super) fn expect_actor(&mut self, now: Timestamp, timeout: Duration, member: &MemberId) {
        let away = Actor {
            incarnation: Incarnation(0),
            connected: false,
            draining: false,
            weights: None,
            source: None,
            gpu: None,
            vocabulary: None,
            load: ActorLoad::default(),
            last_seen: now,
        };
        self.actors.insert(member.clone(), away);
        self.watch.set_once(&Watched::Actor(member.clone()), now + timeout);
    }

    /// An actor has come.
    pub(super) fn join_actor(
        &mut self,
        now: Timestamp,
        timeout: Duration,
        hello: &ActorHello,
        recognised: Recognised,
    ) {
        let Recognised { weights, vocabulary } = recognised;
        let known = self.actors.get(&hello.member);
        self.connected_actors += u64::from(known.is_none_or(|actor| !actor.connected));
        let same_process = known.filter(|actor| actor.incarnation == hello.incarnation);
        let actor = Actor {
            incarnation: hello.incarnation,
            connected: true,
            draining: false,
            weights,
            source: hello.source.clone(),
            gpu: hello.gpu.clone(),
            vocabulary,
            load: same_process.map(|actor| actor.load).unwrap_or_default(),
            last_seen: now,
        };
        self.actors.insert(hello.member.clone(), actor);
        self.watch.set_once(&Watched::Actor(hello.member.clone()), now + timeout);
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
            self.connected_actors -= u64::from(std::mem::take(&mut actor.connected));
        }
    }

    /// A reward server has come.
    pub(super) fn join_reward_server(&mut self, now: Timestamp, timeout: Duration, hello: RewardHello) {
        let RewardHello { member, incarnation, address, vocabulary, .. } = hello;
        let vocabulary = vocabulary.map(Arc::new);
        let known = self.reward_servers.get(&member);
        self.connected_reward_servers += u64::from(known.is_none_or(|server| !server.connected));
        self.watch.set_once(&Watched::Reward(member.clone()), now + timeout);
        let server =
            RewardServer { incarnation, connected: true, address, vocabulary, queued: 0, last_seen: now };
        self.reward_servers.insert(member, server);
    }

    /// A reward server is heard of; none when it never introduced itself.
    pub(super) fn hear_reward_server(
        &mut self,
        now: Timestamp,
        member: &MemberId,
    ) -> Option<&mut RewardServer> {
        let server = self.reward_servers.get_mut(member)?;
        server.last_seen = now;
        Some(server)
    }

    /// A reward server's stream is closed.
    pub(super) fn disconnect_reward_server(&mut self, member: &MemberId) {
        if let Some(server) = self.reward_servers.get_mut(member) {
            self.connected_reward_servers -= u64::from(std::mem::take(&mut server.connected));
        }
    }

    /// A learner has come; it takes the place of the one before.
    pub(super) fn join_learner(&mut self, now: Timestamp, timeout: Duration, hello: LearnerHello) {
        self.learner = Some(Learner {
            member: hello.member,
            incarnation: hello.incarnation,
            connected: true,
            world_size: hello.world_size,
            trained: hello.trained,
            sent: hello.trained,
            is_asked_to_end: false,
            phase: LearnerPhase::Waiting,
            store: hello.store,
            weights: hello.weights,
            gpu: hello.gpu,
            last_seen: now,
        });
        self.watch.set_once(&Watched::Learner, now + timeout);
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

    /// The next member that was silent for `timeout` although it is awaited: it is connected, or `works` on
    /// a lease and has as long to come back. Who has left for good is forgotten.
    pub(super) fn next_silent(
        &mut self,
        now: Timestamp,
        timeout: Duration,
        works: impl Fn(&MemberId) -> bool,
    ) -> Option<Watched> {
        while let Some(watched) = self.watch.pop_due(now) {
            let (last_seen, awaited) = match &watched {
                Watched::Actor(member) => match self.actors.get(member) {
                    Some(actor) => (actor.last_seen, actor.connected || works(member)),
                    None => continue,
                },
                Watched::Reward(member) => match self.reward_servers.get(member) {
                    Some(server) => (server.last_seen, server.connected),
                    None => continue,
                },
                Watched::Learner => match self.connected_learner() {
                    Some(learner) => (learner.last_seen, true),
                    None => continue,
                },
            };
            let allowed = if awaited { timeout } else { timeout * FORGET_SILENCES };
            let deadline = last_seen.max(self.listening_since) + allowed;
            if deadline > now {
                self.watch.set(&watched, deadline);
            } else if awaited {
                let forgotten_at = last_seen + timeout * FORGET_SILENCES;
                self.watch.set(&watched, forgotten_at.max(now + timeout));
                return Some(watched);
            } else {
                self.forget(&watched);
            }
        }
        None
    }

    fn forget(&mut self, watched: &Watched) {
        self.gone += 1;
        match watched {
            Watched::Actor(member) => drop(self.actors.remove(member)),
            Watched::Reward(member) => drop(self.reward_servers.remove(member)),
            Watched::Learner => {}
        }
    }

    /// The next moment at which a member may have been silent for too long.
    pub(super) fn next_silence(&self) -> Option<Timestamp> {
        self.watch.next()
    }
}

fn check_incarnation(
    role: &'static str,
    member: &MemberId,
    known: Option<Incarnation>,
    theirs: Incarnation,
) -> Result<(), Clash> {
    match known {
        Some(known) if known > theirs => Err(Clash::Newer { role, member: member.clone(), known, theirs }),
        _ => Ok(()),
    }
}
