//! Reward servers: each holds what it was given until the coordinator has made its fate durable.

use std::collections::{BTreeMap, VecDeque};

use ::coordinator::state::{Event, RewardEvent, Role, ScoreSummary};
use rand::RngExt;
use types::link::reward::{RewardCommand, RewardHello};
use types::{FailReason, Incarnation, MemberId, RolloutFailure, RolloutId, Timestamp, Vocabulary};

use super::environments::SimEnvironments;
use super::streams::{Down, Up};
use super::{Process, World};

#[derive(Debug, Default)]
pub(super) struct SimRewardServer {
    pub(super) process: Process,
    pub(super) environments: SimEnvironments,
    /// What actors have sent and has not arrived.
    offered: VecDeque<(Timestamp, ScoreSummary, MemberId)>,
    /// What it works on.
    work: Vec<ScoreSummary>,
    /// Who wants to know what became of a rollout.
    senders: BTreeMap<RolloutId, Vec<MemberId>>,
    /// Results that nobody has acknowledged.
    results: BTreeMap<RolloutId, RewardEvent>,
}

impl World {
    fn reward_server(&mut self, member: &MemberId) -> &mut SimRewardServer {
        self.reward_servers.get_mut(member).unwrap()
    }

    /// A new process under the name, with nothing of the one before.
    pub(super) fn crash_reward_server(&mut self, member: &MemberId) {
        self.break_stream_of(Role::RewardServer, member);
        let process = self.new_process(2_000);
        *self.reward_server(member) = SimRewardServer { process, ..SimRewardServer::default() };
    }

    /// An actor sends a rollout.
    pub(super) fn offer(&mut self, server: &MemberId, actor: &MemberId, summary: ScoreSummary) {
        let at = self.arrival();
        if let Some(server) = self.reward_servers.get_mut(server) {
            server.offered.push_back((at, summary, actor.clone()));
        }
    }

    pub(super) fn reward_server_turn(&mut self, member: &MemberId) {
        let now = self.now;
        if self.reward_server(member).process.asleep_until > now {
            return;
        }
        if self.reward_server(member).process.incarnation == 0 {
            let incarnation = self.machine_clock();
            self.reward_server(member).process.incarnation = incarnation;
        }
        let process = self.reward_server(member).process.clone();
        while let Some(number) = self.reward_server(member).process.stream
            && let Some(command) = self.streams.take_down(number, now)
        {
            self.command_reward_server(member, command);
            if self.reward_server(member).process.incarnation != process.incarnation {
                return;
            }
        }
        let server = self.reward_server(member);
        while let Some((_, summary, actor)) = server.offered.pop_front_if(|(at, _, _)| *at <= now) {
            let senders = server.senders.entry(summary.id).or_default();
            let is_new = senders.is_empty();
            if !senders.contains(&actor) {
                senders.push(actor);
            }
            if is_new {
                server.work.push(summary);
            }
        }
        if server.process.stream.is_none() && self.percent(40) {
            self.introduce_reward_server(member);
        }
        self.environments_turn(member);
        for _ in 0..4 {
            self.score_one(member);
        }
        let server = self.reward_server(member);
        let (stream, queued) = (server.process.stream, u32::try_from(server.work.len()).unwrap());
        self.tell(member, stream, RewardEvent::Load { queued });
    }

    fn tell(&mut self, member: &MemberId, stream: Option<u64>, event: RewardEvent) {
        self.say(stream, Up::Report(Event::Reward { member: member.clone(), event }));
    }

    fn introduce_reward_server(&mut self, member: &MemberId) {
        if !self.coordinator.is_up() {
            return;
        }
        let number = self.streams.open(Role::RewardServer, member.clone());
        let server = self.reward_server(member);
        server.process.stream = Some(number);
        let hello = RewardHello {
            member: member.clone(),
            incarnation: Incarnation(server.process.incarnation),
            run: None,
            address: "127.0.0.1:1".into(),
            vocabulary: Some(Vocabulary::none()),
        };
        let results: Vec<RewardEvent> = server.results.values().cloned().collect();
        let event = Event::Reward { member: member.clone(), event: RewardEvent::Joined(hello) };
        self.say(Some(number), Up::Hello(event));
        for result in results {
            self.tell(member, Some(number), result);
        }
    }

    fn forget_result(&mut self, member: &MemberId, id: RolloutId) {
        let server = self.reward_server(member);
        server.results.remove(&id);
        for actor in server.senders.remove(&id).unwrap_or_default() {
            let at = self.arrival();
            if let Some(actor) = self.actors.get_mut(&actor) {
                actor.recorded.push_back((at, id));
            }
        }
    }

    fn command_reward_server(&mut self, member: &MemberId, command: Down) {
        match command {
            Down::Closed { refused: true } => {
                assert!(self.faults.clock_skew > 0, "nobody else has the name of {member}");
                self.crash_reward_server(member);
            }
            Down::Reward(RewardCommand::Finish) => self.crash_reward_server(member),
            Down::Closed { refused: false } => self.reward_server(member).process.stream = None,
            Down::Reward(RewardCommand::Recorded(ids)) => {
                ids.into_iter().for_each(|id| self.forget_result(member, id));
            }
            Down::Reward(RewardCommand::Rejected { id, .. }) => self.forget_result(member, id),
            Down::Reward(RewardCommand::Welcome { .. }) => {}
            Down::Actor(_) | Down::Lease(_) | Down::Learner(_) | Down::Batch(_) => {
                unreachable!("not for a reward server")
            }
        }
    }

    fn score_one(&mut self, member: &MemberId) {
        let (work, stream) =
            (self.reward_server(member).work.len(), self.reward_server(member).process.stream);
        if work == 0 {
            return;
        }
        let place = self.rng.random_range(0..work);
        let summary = self.reward_server(member).work.swap_remove(place);
        let id = summary.id;
        let result = if self.per_mille(self.faults.attempts) {
            let reason = FailReason::RewardTimeout;
            RewardEvent::Failed(RolloutFailure { id, reason, detail: "slow".into(), response_tokens: 9 })
        } else {
            RewardEvent::Scored(summary)
        };
        self.reward_server(member).results.insert(id, result.clone());
        let repeats = if self.per_mille(self.faults.duplicates) { 2 } else { 1 };
        for _ in 0..repeats {
            self.tell(member, stream, result.clone());
        }
    }
}
