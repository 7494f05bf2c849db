//! The decision-maker: a pure state machine (`docs/decisions.md`, D3).
//!
//! [`State::apply`] takes the time and an event and returns what follows. It does no I/O, reads no clock and
//! draws no random number that is not keyed by the plan's seed; so a journal of events replays to the same
//! state. Someone else performs the effects, after the event is durable.
//!
//! Invariants, checked after every event of `tests/state.rs`:
//!
//! 1. Every issued attempt is in flight or has exactly one ending: `issued = endings + in flight`.
//! 2. No response is part of two batches, and batches are trained in order without gaps.
//! 3. A response older than `max_staleness` allows is never part of a batch.
//! 4. Only an actor whose confirmed weights are a known version holds a new lease.
//!
//! One file per idea, each the owner of its data: `work` (what is generated, over `prompt_queue`, `leases`
//! and `groups`), `filter` (which responses of a group train), `batches` (what the learner trains), `weights`
//! (who gets which version), `members` (who is there), `account` (the identity), `history` (what happened,
//! for people). They know nothing of effects and return what they decided; this file alone wires them.

mod account;
mod batches;
mod effect;
mod event;
mod filter;
mod groups;
mod history;
mod leases;
mod members;
mod notice;
mod phase;
mod plan;
mod prompt_queue;
mod weights;
mod work;

use serde::{Deserialize, Serialize};
use types::link::actor::{ActorCommand, ActorHello, ActorReport};
use types::link::learner::{LearnerCommand, LearnerHello, LearnerReport, StepMetrics};
use types::link::reward::{RewardCommand, RewardHello};
use types::{BatchId, DropReason, Ending, FailReason, MemberId, PolicyVersion, RolloutId, Timestamp};

pub use account::Account;
pub use batches::{BatchPlan, Batches};
pub use effect::{Applied, Effect, StoreChanges};
pub use event::{ActorEvent, Event, LearnerEvent, RewardEvent, ScoreSummary};
pub use filter::{GroupSums, PlannedSample};
pub use groups::LeasedGroup;
pub use history::{History, Reliability, StepRecord};
pub use leases::Grant;
pub use members::{Actor, Learner, Members, RewardServer};
pub use notice::Notice;
pub use phase::Phase;
pub use plan::RunPlan;

use filter::Filtered;
use groups::CompleteGroup;
use phase::Drain;
use weights::Weights;
use work::{AttemptEnd, FailedAttempts, Work};

/// All the coordinator knows about a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    plan: RunPlan,
    phase: Phase,
    /// While draining.
    drain: Option<Drain>,
    work: Work,
    batches: Batches,
    weights: Weights,
    members: Members,
    account: Account,
    history: History,
}

impl State {
    /// A run that has not begun.
    pub fn new(plan: RunPlan) -> Self {
        Self {
            plan,
            phase: Phase::Running,
            drain: None,
            work: Work::default(),
            batches: Batches::default(),
            weights: Weights::default(),
            members: Members::default(),
            account: Account::default(),
            history: History::default(),
        }
    }

    /// Takes an event and returns what follows from it.
    pub fn apply(&mut self, now: Timestamp, event: Event) -> Applied {
        let mut out = Applied::default();
        match event {
            Event::Restarted(plan) => self.restarted(*plan),
            Event::Actor { member, event } => match event {
                ActorEvent::Joined(hello) => self.actor_joined(now, hello, &mut out),
                ActorEvent::Disconnected => self.actor_disconnected(now, &member),
                ActorEvent::Report(report) => self.actor_report(now, member, report, &mut out),
            },
            Event::Reward { member, event } => self.reward_event(now, &member, event, &mut out),
            Event::Learner(event) => match event {
                LearnerEvent::Joined(hello) => self.learner_joined(now, hello, &mut out),
                LearnerEvent::Disconnected => self.learner_disconnected(),
                LearnerEvent::Report(report) => self.learner_report(now, report, &mut out),
            },
            Event::DrainRequested => self.start_drain(now, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        self.advance(now, &mut out);
        out
    }

    /// What any event may have made possible.
    fn advance(&mut self, now: Timestamp, out: &mut Applied) {
        self.form_batches(out);
        if let Some(learner) = self.members.connected_learner().filter(|_| self.phase == Phase::Running) {
            out.effects.extend(self.batches.take_unsent(learner.trained).into_iter().map(Effect::SendBatch));
        }
        out.tell_about_weights(self.weights.advance(now, &self.plan, &self.members));
        self.grant_leases(now, out);
        self.end_phase(out);
        debug_assert_eq!(self.unaccounted(), 0, "the accounting identity");
    }

    /// The coordinator's process has started again over its journal: every stream is broken, nothing else has
    /// changed.
    fn restarted(&mut self, plan: RunPlan) {
        self.plan = plan;
        // A run that is complete ends once more: `end_phase` says so to everybody who waits.
        self.phase = Phase::Running;
        self.drain = None;
        self.members.disconnect_all();
        self.weights.restart();
    }

    fn actor_joined(&mut self, now: Timestamp, hello: ActorHello, out: &mut Applied) {
        let member = hello.member.clone();
        if let Err(other_run) = self.plan.check_run(hello.run.as_ref()) {
            return out.refuse(member, other_run);
        }
        let weights = hello.weights.filter(|(version, hash)| self.weights.knows(*version, *hash));
        let holding = self.members.join_actor(now, hello, weights);
        self.weights.actor_left(&member);
        let failed = self.work.fail_leases_of(&self.plan, &member, &holding);
        self.attempts_failed(failed, FailReason::ActorLost, out);
        out.tell_actor(member.clone(), ActorCommand::Welcome(self.plan.actor_welcome()));
        out.tell_actor(member.clone(), ActorCommand::RewardServers(self.members.reward_addresses()));
        if self.phase != Phase::Running {
            out.tell_actor(member, ActorCommand::Drain);
        }
    }

    fn actor_disconnected(&mut self, now: Timestamp, member: &MemberId) {
        self.members.hear_actor(now, member);
        self.members.disconnect_actor(member);
        self.weights.actor_left(member);
    }

    fn actor_report(&mut self, now: Timestamp, member: MemberId, report: ActorReport, out: &mut Applied) {
        let retry_delay = self.plan.weights_retry_delay();
        let Some(actor) = self.members.hear_actor(now, &member) else {
            return out.disconnect(member, "introduce yourself first: this coordinator does not know you");
        };
        match report {
            ActorReport::Load(load) => actor.load = load,
            ActorReport::Draining => actor.draining = true,
            ActorReport::WeightsConfirmed { version, hash } => {
                match self.weights.confirm(&member, version, hash) {
                    Ok(()) => actor.weights = Some((version, hash)),
                    Err(unknown) => out.disconnect(member, unknown),
                }
            }
            ActorReport::WeightsFailed { version, detail } => {
                let ended = self.weights.delivery_failed(now, &member, retry_delay);
                out.notice(Notice::WeightsFailed { member: member.clone(), version, detail });
                if let Some(group) = ended {
                    out.notice(Notice::BroadcastGroupEnded { group, member });
                }
            }
            ActorReport::BroadcastGroupReady(group) => self.weights.group_ready(&member, group),
            ActorReport::BroadcastGroupFailed { group, detail } => {
                out.notice(Notice::BroadcastGroupFailed { group, member, detail });
                self.weights.group_failed(now, group, retry_delay);
            }
            ActorReport::Failed(failure) => self.attempt_failed(failure.id, failure.reason, out),
        }
    }

    fn reward_event(&mut self, now: Timestamp, member: &MemberId, event: RewardEvent, out: &mut Applied) {
        match event {
            RewardEvent::Joined(hello) => self.reward_server_joined(now, hello, out),
            RewardEvent::Disconnected => {
                self.members.disconnect_reward_server(member);
                self.tell_reward_servers(out);
            }
            RewardEvent::Load { queued } => self.members.hear_reward_server(now, member, queued),
            RewardEvent::Scored(summary) => self.response_scored(now, summary, out),
            RewardEvent::Failed(failure) => self.attempt_failed(failure.id, failure.reason, out),
        }
    }

    fn reward_server_joined(&mut self, now: Timestamp, hello: RewardHello, out: &mut Applied) {
        if let Err(other_run) = self.plan.check_run(hello.run.as_ref()) {
            return out.refuse(hello.member, other_run);
        }
        let command = RewardCommand::Welcome { run: self.plan.run.clone() };
        out.effects.push(Effect::Reward { member: hello.member.clone(), command });
        self.members.join_reward_server(now, hello);
        self.tell_reward_servers(out);
    }

    /// Tells every actor which reward servers there are.
    fn tell_reward_servers(&self, out: &mut Applied) {
        let servers = self.members.reward_addresses();
        for (member, _) in self.members.connected_actors() {
            out.tell_actor(member.clone(), ActorCommand::RewardServers(servers.clone()));
        }
    }

    fn learner_joined(&mut self, now: Timestamp, hello: LearnerHello, out: &mut Applied) {
        if let Err(other_run) = self.plan.check_run(hello.run.as_ref()) {
            return out.refuse(hello.member, other_run);
        }
        if let Err(unfit) = self.batches.check_learner(hello.trained) {
            return out.refuse(hello.member, unfit);
        }
        // What it trained and could not say at the time is recorded now.
        let known = self.batches.trained();
        self.count_trained(hello.trained);
        for step in hello.steps.iter().filter(|step| step.batch > known && step.batch <= hello.trained) {
            self.add_step(now, step.batch, step.metrics.clone(), out);
        }
        out.forget(self.batches.checkpoint(hello.checkpointed));
        self.batches.send_after(hello.trained);
        self.weights.learner_joined(hello.manifest.clone());
        self.members.join_learner(now, hello);
        out.tell_learner(self.plan.learner_welcome());
    }

    fn learner_disconnected(&mut self) {
        self.members.disconnect_learner();
        self.weights.forget_groups();
    }

    fn learner_report(&mut self, now: Timestamp, report: LearnerReport, out: &mut Applied) {
        let retry_delay = self.plan.weights_retry_delay();
        let Some(learner) = self.members.hear_learner(now) else {
            return;
        };
        let member = learner.member.clone();
        match report {
            LearnerReport::Alive(phase) => learner.phase = phase,
            LearnerReport::Trained { batch, manifest, metrics } => {
                if let Err(not_next) = self.batches.check_next(learner.trained, batch) {
                    return out.disconnect(member, not_next);
                }
                learner.trained = batch;
                if batch > self.batches.trained() {
                    self.count_trained(batch);
                    self.add_step(now, batch, *metrics, out);
                }
                self.weights.offer(manifest);
            }
            LearnerReport::Checkpointed(batch) => out.forget(self.batches.checkpoint(batch)),
            LearnerReport::Published { .. } => self.weights.broadcast_ended(&member),
            LearnerReport::PublishFailed { group, version, detail } => {
                out.notice(Notice::BroadcastFailed { version, detail });
                self.weights.group_failed(now, group, retry_delay);
                self.weights.broadcast_ended(&member);
            }
            LearnerReport::BroadcastGroupReady(group) => self.weights.group_ready(&member, group),
            LearnerReport::BroadcastGroupFailed { group, detail } => {
                out.notice(Notice::BroadcastGroupFailed { group, member, detail });
                self.weights.group_failed(now, group, retry_delay);
            }
        }
    }

    fn count_trained(&mut self, batch: BatchId) {
        let responses = self.batches.train(batch);
        self.account.end(Ending::Trained, responses);
    }

    fn add_step(&mut self, now: Timestamp, batch: BatchId, metrics: StepMetrics, out: &mut Applied) {
        if let Some(batch) = self.batches.find(batch) {
            let step = self.history.add_step(now, &self.plan.filtration, batch, metrics);
            out.effects.push(Effect::Step(Box::new(step)));
        }
    }

    fn response_scored(&mut self, now: Timestamp, summary: ScoreSummary, out: &mut Applied) {
        let id = summary.id;
        self.history.scored_tokens(now, u64::from(summary.tokens));
        match self.work.score(&self.plan, summary) {
            AttemptEnd::Late => self.account.late(),
            AttemptEnd::GroupOpen => out.keep(id),
            AttemptEnd::GroupComplete(group) => {
                out.keep(id);
                self.filter(&group, out);
            }
        }
    }

    fn attempt_failed(&mut self, id: RolloutId, reason: FailReason, out: &mut Applied) {
        let mut failed = FailedAttempts::default();
        match self.work.fail(&self.plan, id, reason) {
            AttemptEnd::Late => self.account.late(),
            end => failed.add(end),
        }
        self.attempts_failed(failed, reason, out);
    }

    fn attempts_failed(&mut self, failed: FailedAttempts, reason: FailReason, out: &mut Applied) {
        self.account.end(Ending::Failed(reason), failed.count);
        for group in &failed.complete {
            self.filter(group, out);
        }
    }

    fn filter(&mut self, group: &CompleteGroup, out: &mut Applied) {
        if group.has_enough(self.plan.min_group) {
            self.history.observe_group(&group.scored);
        }
        let Filtered { ready, ending, ended, forgotten } = Filtered::of(&self.plan, group);
        self.account.end(ending, ended);
        out.forget(forgotten);
        if let Some(ready) = ready {
            self.batches.add(ready);
        }
    }

    fn form_batches(&mut self, out: &mut Applied) {
        for stale in self.batches.form(&self.plan) {
            let (prompt, oldest) = (stale.group.prompt, stale.group.oldest);
            out.notice(Notice::GroupStale { prompt, oldest, batch: stale.batch });
            self.account.end(Ending::Dropped(DropReason::Stale), stale.group.in_flight());
            out.forget(stale.group.responses());
        }
    }

    /// Gives work to the actors that can take it, one lease at a time.
    fn grant_leases(&mut self, now: Timestamp, out: &mut Applied) {
        while self.phase == Phase::Running
            && let Some((member, grant)) = self.work.grant(now, &self.plan, &self.members, &self.batches)
        {
            self.account.issue(grant.attempts());
            out.effects.push(Effect::Lease { member, grant });
        }
    }

    fn start_drain(&mut self, now: Timestamp, out: &mut Applied) {
        if self.phase != Phase::Running {
            return;
        }
        self.phase = Phase::Draining;
        self.drain = Some(Drain::WaitsUntil(now + self.plan.drain_timeout));
        for (member, _) in self.members.connected_actors() {
            out.tell_actor(member.clone(), ActorCommand::Drain);
        }
        if self.members.connected_learner().is_some() {
            out.tell_learner(LearnerCommand::Checkpoint);
        }
    }

    /// Deadlines that have passed.
    fn tick(&mut self, now: Timestamp, out: &mut Applied) {
        self.lose_silent_members(now, out);
        if let Some(drain) = &mut self.drain {
            drain.expire(now);
        }
        for expired in self.work.expire_leases(now, &self.plan) {
            let attempts = expired.failed.count;
            out.notice(Notice::LeaseExpired { lease: expired.id, member: expired.actor, attempts });
            self.attempts_failed(expired.failed, FailReason::LeaseExpired, out);
        }
        let timeout = self.plan.broadcast_timeout;
        let expired = self.weights.expire(now, self.plan.weights_retry_delay());
        if let Some((group, absent)) = expired.unformed {
            out.notice(Notice::BroadcastGroupUnformed { group, absent, timeout });
        }
        if let Some((version, silent)) = expired.unconfirmed {
            out.notice(Notice::BroadcastUnconfirmed { version, silent, timeout });
        }
    }

    fn lose_silent_members(&mut self, now: Timestamp, out: &mut Applied) {
        let timeout = self.plan.heartbeat_timeout;
        let reason = format!("silent for {timeout:?}");
        let silent = self.members.silent(now, timeout, &self.work.leases);
        for member in silent.actors {
            out.notice(Notice::ActorLost { member: member.clone(), timeout });
            self.members.disconnect_actor(&member);
            self.weights.actor_left(&member);
            let failed = self.work.fail_leases_of(&self.plan, &member, &[]);
            out.disconnect(member, &reason);
            self.attempts_failed(failed, FailReason::ActorLost, out);
        }
        for member in &silent.reward_servers {
            self.members.disconnect_reward_server(member);
            out.disconnect(member.clone(), &reason);
        }
        if !silent.reward_servers.is_empty() {
            self.tell_reward_servers(out);
        }
        if let Some(member) = silent.learner {
            self.learner_disconnected();
            out.disconnect(member, &reason);
        }
    }

    /// The next moment at which a tick can change something; none while nothing is awaited.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let silence = self.members.next_silence(self.plan.heartbeat_timeout, &self.work.leases);
        let drain = self.drain.and_then(Drain::deadline);
        let deadlines = [self.work.leases.next_deadline(), self.weights.next_deadline(), silence, drain];
        deadlines.into_iter().flatten().min()
    }

    /// Moves to the phase that the state has reached.
    fn end_phase(&mut self, out: &mut Applied) {
        let ended = match self.phase {
            Phase::Running if self.batches.checkpointed() >= self.plan.last_batch() => Phase::Finished,
            Phase::Draining if self.is_drained() => Phase::Stopped,
            _ => return,
        };
        self.phase = ended;
        self.drain = None;
        if ended == Phase::Finished {
            let stopped = self.work.stop();
            self.account.end(Ending::Dropped(DropReason::RunFinished), stopped.len() as u64);
            out.forget(stopped);
            for group in self.batches.take_ready() {
                self.account.end(Ending::Dropped(DropReason::RunFinished), group.in_flight());
                out.forget(group.responses());
            }
        }
        out.effects.push(Effect::Finish(ended));
    }

    /// Nobody works on a lease any more, and the learner has written what it trained.
    fn is_drained(&self) -> bool {
        let written = self.members.connected_learner().is_none()
            || self.batches.checkpointed() >= self.batches.trained();
        let given_up = self.drain == Some(Drain::GivenUp);
        let working = !self.work.leases.is_empty() && self.members.connected_actors().next().is_some();
        written && (given_up || !working)
    }

    /// The plan in force.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// Where the run is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The accounting.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// What happened, for people.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Who is there.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// How far the batches are.
    pub fn batches(&self) -> &Batches {
        &self.batches
    }

    /// The newest policy version.
    pub fn version(&self) -> PolicyVersion {
        self.weights.version()
    }

    /// Prompts with a response awaited.
    pub(crate) fn open_prompts(&self) -> u64 {
        self.work.open_prompts()
    }

    /// Attempts issued, minus endings, minus what is counted in flight: 0 unless there is a bug.
    pub fn unaccounted(&self) -> i64 {
        self.account.unaccounted(self.in_flight())
    }

    /// Attempts in flight, counted where they lie: in groups and in batches not yet trained.
    pub fn in_flight(&self) -> u64 {
        self.work.in_flight() + self.batches.in_flight()
    }
}
