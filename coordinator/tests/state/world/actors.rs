//! Actors: they generate what they are leased, whether or not the coordinator can be reached, and keep each
//! response until its fate is durable.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ::coordinator::state::{ActorEvent, Event, Role, ScoreSummary};
use rand::RngExt;
use types::link::actor::{ActorCommand, ActorHello, ActorLoad, ActorReport};
use types::{
    FailReason, Incarnation, LeaseId, Manifest, MemberId, PolicyVersion, RolloutFailure, RolloutId,
    Timestamp, Vocabulary, WeightHash,
};

use super::environments::{Answers, SimEpisode};
use super::streams::{Down, Up};
use super::{Process, World};

/// Responses that an actor works on at a time.
const SLOTS: u32 = 24;
/// What is not acknowledged by then is sent again.
const RESEND_DELAY: Duration = Duration::from_secs(4);

#[derive(Debug, Default)]
pub(super) struct SimActor {
    pub(super) process: Process,
    weights: Option<(PolicyVersion, WeightHash)>,
    pub(super) work: Vec<Work>,
    /// What environments have said to it.
    pub(super) answers: Answers,
    finished: BTreeMap<RolloutId, Finished>,
    last_lease: LeaseId,
    draining: bool,
    pub(super) reward_servers: Vec<MemberId>,
    /// What reward servers said to have been recorded.
    pub(super) recorded: VecDeque<(Timestamp, RolloutId)>,
}

/// An attempt that it works on.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) id: RolloutId,
    /// What draws it.
    version: PolicyVersion,
    wanted_until: Timestamp,
    /// Where responses have several turns, and an environment was asked.
    pub(super) episode: Option<SimEpisode>,
}

/// A response that nobody has acknowledged.
#[derive(Debug)]
struct Finished {
    oldest: PolicyVersion,
    wanted_until: Timestamp,
    sent: Option<(MemberId, Timestamp)>,
}

impl SimActor {
    fn holding(&self) -> Vec<RolloutId> {
        let working = self.work.iter().map(|work| work.id);
        working.chain(self.finished.keys().copied()).collect()
    }

    fn load(&self) -> ActorLoad {
        let running = u32::try_from(self.work.len()).unwrap();
        ActorLoad {
            free_slots: SLOTS.saturating_sub(running),
            last_lease: self.last_lease,
            running,
            unacknowledged: u32::try_from(self.finished.len()).unwrap(),
            ..ActorLoad::default()
        }
    }

    /// Returns the episodes that nobody wants any more.
    fn forget_late(&mut self, now: Timestamp) -> Vec<(RolloutId, Option<SimEpisode>)> {
        self.finished.retain(|_, finished| finished.wanted_until > now);
        let late = self.work.extract_if(.., |work| work.wanted_until <= now);
        late.map(|work| (work.id, work.episode)).collect()
    }
}

pub(super) fn report(member: &MemberId, report: ActorReport) -> Up {
    Up::Report(Event::Actor { member: member.clone(), event: ActorEvent::Report(report) })
}

impl World {
    pub(super) fn actor(&mut self, member: &MemberId) -> &mut SimActor {
        self.actors.get_mut(member).unwrap()
    }

    /// A new process under the name, with nothing of the one before.
    pub(super) fn crash_actor(&mut self, member: &MemberId) {
        self.break_stream_of(Role::Actor, member);
        let process = self.new_process(1_000);
        *self.actor(member) = SimActor { process, ..SimActor::default() };
    }

    pub(super) fn actor_turn(&mut self, member: &MemberId) {
        let now = self.now;
        if self.actor(member).process.asleep_until > now {
            return;
        }
        if self.actor(member).process.incarnation == 0 {
            let incarnation = self.machine_clock();
            self.actor(member).process.incarnation = incarnation;
        }
        let process = self.actor(member).process.clone();
        while let Some(number) = self.actor(member).process.stream
            && let Some(command) = self.streams.take_down(number, now)
        {
            self.command_actor(member, command);
            if self.actor(member).process.incarnation != process.incarnation {
                return;
            }
        }
        let actor = self.actor(member);
        let late = actor.forget_late(now);
        while let Some((_, id)) = actor.recorded.pop_front_if(|(at, _)| *at <= now) {
            actor.finished.remove(&id);
        }
        if actor.draining && actor.work.is_empty() && actor.finished.is_empty() {
            return self.crash_actor(member);
        }
        self.close_environments(member, late);
        let actor = self.actor(member);
        if actor.process.stream.is_none() && self.percent(40) {
            self.introduce_actor(member);
        }
        if self.state.plan().episodes {
            self.play_episodes(member);
        } else {
            self.finish_response(member);
        }
        self.send_finished(member);
        let (stream, load) = (self.actor(member).process.stream, self.actor(member).load());
        self.say(stream, report(member, ActorReport::Load(load)));
    }

    fn introduce_actor(&mut self, member: &MemberId) {
        if !self.coordinator.is_up() {
            return;
        }
        let number = self.streams.open(Role::Actor, member.clone());
        let actor = self.actor(member);
        actor.process.stream = Some(number);
        // A coordinator that was away counts its leases from where it was.
        let hello = ActorHello {
            member: member.clone(),
            incarnation: Incarnation(actor.process.incarnation),
            run: None,
            holding: actor.holding(),
            weights: actor.weights,
            source: Some(format!("{member}.example:1")),
            vocabulary: actor.weights.map(|_| Vocabulary::none()),
            gpu: None,
        };
        let event = Event::Actor { member: member.clone(), event: ActorEvent::Joined(hello) };
        self.say(Some(number), Up::Hello(event));
    }

    fn command_actor(&mut self, member: &MemberId, command: Down) {
        match command {
            Down::Closed { refused: true } => {
                assert!(self.faults.clock_skew > 0, "nobody else has the name of {member}");
                self.crash_actor(member);
            }
            Down::Actor(ActorCommand::Finish) => self.crash_actor(member),
            Down::Closed { refused: false } => self.actor(member).process.stream = None,
            Down::Lease(grant) => {
                let wanted_until = self.now + grant.timeout;
                let actor = self.actor(member);
                let (version, _) = actor.weights.expect("invariant 4: no lease without weights");
                actor.last_lease = grant.id;
                let wanted = grant.groups.iter().flat_map(|group| &group.wanted);
                let wanted = wanted.map(|id| Work { id: *id, version, wanted_until, episode: None });
                actor.work.extend(wanted);
            }
            Down::Actor(command) => self.instruct_actor(member, command),
            Down::Reward(_) | Down::Learner(_) | Down::Batch(_) => unreachable!("not for an actor"),
        }
    }

    fn instruct_actor(&mut self, member: &MemberId, command: ActorCommand) {
        let stream = self.actor(member).process.stream;
        let answer = match command {
            ActorCommand::PullWeights { version, hash, .. } => self.receive(member, version, hash),
            ActorCommand::ReceiveWeights { manifest, .. } => {
                self.receive(member, manifest.version(), manifest.hash())
            }
            ActorCommand::JoinBroadcastGroup(group) if self.per_mille(self.faults.transfers) => {
                ActorReport::BroadcastGroupFailed { group: group.id, detail: "no route".into() }
            }
            ActorCommand::JoinBroadcastGroup(group) => ActorReport::BroadcastGroupReady(group.id),
            ActorCommand::RewardServers(servers) => {
                self.actor(member).reward_servers = servers.into_iter().map(|server| server.member).collect();
                return;
            }
            ActorCommand::Drain => {
                self.actor(member).draining = true;
                ActorReport::Draining
            }
            ActorCommand::LeaveBroadcastGroup(_)
            | ActorCommand::Welcome(_)
            | ActorCommand::Lease(_)
            | ActorCommand::Finish => return,
        };
        self.say(stream, report(member, answer));
    }

    /// Weights come, if a learner that runs has them. An actor that holds newer ones keeps those.
    fn receive(&mut self, member: &MemberId, version: PolicyVersion, hash: WeightHash) -> ActorReport {
        let offers = |manifest: &Manifest| (manifest.version(), manifest.hash()) == (version, hash);
        let is_there = self.learners.iter().any(|learner| offers(&learner.manifest));
        if !is_there || self.per_mille(self.faults.transfers) {
            return ActorReport::WeightsFailed { version, detail: "torn".into() };
        }
        if self.actor(member).weights.is_some_and(|(held, _)| held > version) {
            return ActorReport::WeightsFailed { version, detail: "holds newer ones".into() };
        }
        self.actor(member).weights = Some((version, hash));
        ActorReport::WeightsConfirmed { version, hash }
    }

    fn finish_response(&mut self, member: &MemberId) {
        let work = self.actor(member).work.len();
        if work == 0 {
            return;
        }
        let place = self.rng.random_range(0..work);
        self.end_response(member, place);
    }

    /// A response is over.
    pub(super) fn end_response(&mut self, member: &MemberId, place: usize) {
        let fails = self.per_mille(self.faults.attempts);
        let actor = self.actor(member);
        let Work { id, version: oldest, wanted_until, .. } = actor.work.swap_remove(place);
        if fails && actor.process.stream.is_some() {
            let failure = RolloutFailure {
                id,
                reason: FailReason::Generation,
                detail: "out of blocks".into(),
                response_tokens: 0,
            };
            let stream = actor.process.stream;
            self.say(stream, report(member, ActorReport::Failed(failure)));
        } else {
            actor.finished.insert(id, Finished { oldest, wanted_until, sent: None });
        }
    }

    /// Sends what was not sent, or long ago, or to a reward server that is not there any more.
    fn send_finished(&mut self, member: &MemberId) {
        let now = self.now;
        let actor = &self.actors[member];
        if actor.reward_servers.is_empty() {
            return;
        }
        let servers = actor.reward_servers.clone();
        let is_due = |finished: &Finished| match &finished.sent {
            Some((server, at)) => now.since(*at) > RESEND_DELAY || !servers.contains(server),
            None => true,
        };
        let due = actor.finished.iter().filter(|(_, finished)| is_due(finished));
        let due: Vec<(RolloutId, PolicyVersion)> = due.map(|(id, finished)| (*id, finished.oldest)).collect();
        for (id, oldest) in due {
            let server = servers[self.rng.random_range(0..servers.len())].clone();
            let summary = self.score_of(id, oldest);
            self.offer(&server, member, summary);
            if let Some(finished) = self.actor(member).finished.get_mut(&id) {
                finished.sent = Some((server, now));
            }
        }
    }

    /// The score depends on the response alone, as a deterministic scorer's does.
    pub(crate) fn score_of(&self, id: RolloutId, oldest: PolicyVersion) -> ScoreSummary {
        let spread = (id.prompt.ordinal * 31 + u64::from(id.prompt.epoch) * 17) % 100;
        let equal = spread < u64::from(self.equal_scores_in_percent);
        let score = if equal { 0.25 } else { (id.seed(5) % 1000) as f32 / 1000.0 };
        let outcome = Some(f32::from(u8::from(score > 0.5)));
        ScoreSummary {
            id,
            score,
            outcome,
            tokens: 12,
            oldest,
            truncated: false,
            turns: 1,
            numbers: BTreeMap::new(),
            contributions: BTreeMap::new(),
            digest: Some(id.seed(7)),
        }
    }
}
