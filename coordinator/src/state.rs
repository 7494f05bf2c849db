//! The decision-maker: a pure state machine (design D3).
//!
//! [`State::apply`] takes the time and an event and returns the effects that follow. It does no I/O, reads no clock and
//! draws no random number that is not keyed by the plan's seed; so a journal of events replays to the same state.
//! Someone else performs the effects, after the event is durable.
//!
//! Invariants, checked after every event of `tests/state.rs`:
//!
//! 1. Every issued attempt is in flight or has exactly one ending: `issued = endings + in flight`.
//! 2. No response is part of two batches, and batches are trained in order without gaps.
//! 3. A response older than `max_staleness` allows is never part of a batch.
//! 4. Only an actor whose confirmed weights are a known version holds a new lease.
//!
//! One file per idea: `frontier` (what may be issued), `leases` (who works on it), `groups` (what came back, and its
//! filtration), `batches` (what the learner trains), `weights` (who has which version), `members` (who is there),
//! `account` (the identity), `record` (what happened, for people).

mod account;
mod batches;
mod effect;
mod event;
mod frontier;
mod groups;
mod leases;
mod members;
mod plan;
mod record;
mod weights;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use types::{BatchId, MemberId, Timestamp};

pub use account::Account;
pub use batches::{BatchPlan, PlannedSample};
pub use effect::{Effect, Grant, LeasedGroup};
pub use event::{ActorEvent, Event, LearnerEvent, RewardEvent, ScoreSummary};
pub use members::{Actor, Learner, RewardServer};
pub use plan::Plan;
pub use record::{Reliability, StepRecord};

use batches::Batches;
use frontier::Frontier;
use groups::Groups;
use leases::Leases;
use record::Record;
use weights::Weights;

/// Where the run is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Prompts are leased and batches trained.
    Running,
    /// Asked to stop: what is leased is finished or handed back, then a checkpoint is written.
    Draining,
    /// Stopped before the last batch; the journal and the checkpoint allow to go on.
    Stopped,
    /// The last batch is trained and part of a checkpoint.
    Finished,
}

/// All the coordinator knows about a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    plan: Plan,
    phase: Phase,
    /// When a drain is given up waiting for actors.
    drain_deadline: Option<Timestamp>,
    frontier: Frontier,
    groups: Groups,
    leases: Leases,
    batches: Batches,
    weights: Weights,
    actors: BTreeMap<MemberId, Actor>,
    reward_servers: BTreeMap<MemberId, RewardServer>,
    learner: Option<Learner>,
    account: Account,
    record: Record,
}

impl State {
    /// A run that has not begun.
    pub fn new(plan: Plan) -> Self {
        Self {
            record: Record::default(),
            plan,
            phase: Phase::Running,
            drain_deadline: None,
            frontier: Frontier::default(),
            groups: Groups::default(),
            leases: Leases::default(),
            batches: Batches::default(),
            weights: Weights::default(),
            actors: BTreeMap::new(),
            reward_servers: BTreeMap::new(),
            learner: None,
            account: Account::default(),
        }
    }

    /// Takes an event and returns what follows from it.
    pub fn apply(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Restarted(plan) => self.restarted(*plan),
            Event::Actor { member, event } => self.actor_event(now, &member, event, &mut effects),
            Event::Reward { member, event } => self.reward_event(now, &member, event, &mut effects),
            Event::Learner(event) => self.learner_event(now, event, &mut effects),
            Event::DrainRequested => self.drain(now, &mut effects),
            Event::Tick => self.tick(now, &mut effects),
        }
        self.settle(now, &mut effects);
        effects
    }

    /// What any event may have made possible.
    fn settle(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.form_batches(effects);
        self.send_batches(effects);
        self.form_broadcast_group(now, effects);
        self.publish(now, effects);
        self.grant_leases(now, effects);
        self.end_phase(effects);
        debug_assert_eq!(self.unaccounted(), 0, "the accounting identity");
    }

    /// The coordinator's process has started again over its journal: every stream is broken, nothing else has changed.
    fn restarted(&mut self, plan: Plan) {
        self.plan = plan;
        self.phase = Phase::Running;
        self.drain_deadline = None;
        for actor in self.actors.values_mut() {
            actor.connected = false;
        }
        for server in self.reward_servers.values_mut() {
            server.connected = false;
        }
        if let Some(learner) = &mut self.learner {
            learner.connected = false;
        }
        // A run that is complete ends once more: `end_phase` says so to everybody who waits.
        self.weights.forget_broadcast_groups();
    }

    fn drain(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Running {
            return;
        }
        self.phase = Phase::Draining;
        self.drain_deadline = Some(now + self.plan.drain_timeout);
        for member in self.connected_actors() {
            effects.push(Effect::actor(member, types::link::actor::ActorCommand::Drain));
        }
        if self.learner_connected() {
            effects.push(Effect::Learner(types::link::learner::LearnerCommand::Checkpoint));
        }
    }

    /// Deadlines that have passed.
    fn tick(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.lose_silent_members(now, effects);
        self.expire_leases(now, effects);
        self.expire_weight_transfers(now, effects);
    }

    /// The next moment at which a tick can change something; none while nothing is awaited.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let silence = self.silence_deadlines();
        let deadlines =
            [self.leases.next_deadline(), self.weights.next_deadline(), silence, self.drain_deadline];
        deadlines.into_iter().flatten().min()
    }

    /// Moves to the phase that the state has reached.
    fn end_phase(&mut self, effects: &mut Vec<Effect>) {
        let ended = match self.phase {
            Phase::Running if self.batches.checkpointed >= self.last_batch() => Phase::Finished,
            Phase::Draining if self.is_drained() => Phase::Stopped,
            _ => return,
        };
        self.phase = ended;
        self.drain_deadline = None;
        if ended == Phase::Finished {
            let forgotten = self.drop_everything_in_flight();
            effects.push(Effect::Forget(forgotten));
        }
        effects.push(Effect::Finish(ended));
    }

    /// Drained: nobody works on a lease any more, and the learner has written what it trained.
    fn is_drained(&self) -> bool {
        let written = !self.learner_connected() || self.batches.checkpointed >= self.batches.trained;
        written
            && (self.leases.is_empty() || self.connected_actors().is_empty() || self.drain_deadline.is_none())
    }

    /// The number of the run's last batch.
    pub fn last_batch(&self) -> BatchId {
        BatchId(self.plan.batches)
    }

    /// The plan in force.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Where the run is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The books.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// What happened, for people.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &StepRecord> {
        self.record.steps.iter()
    }

    /// Response tokens scored per second over the last seconds.
    pub fn tokens_per_second(&self, now: Timestamp) -> f64 {
        self.record.tokens_per_second(now)
    }

    /// How far the reward could be trusted lately, without and with the filtration.
    pub fn reliability(&self) -> Reliability {
        self.record.reliability(&self.plan.filtration)
    }

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

    /// The last batch trained.
    pub fn trained(&self) -> BatchId {
        self.batches.trained
    }

    /// The last batch that a checkpoint holds.
    pub fn checkpointed(&self) -> BatchId {
        self.batches.checkpointed
    }

    /// Prompts with a response awaited.
    pub fn open_prompts(&self) -> u64 {
        self.groups.open_count()
    }

    /// Groups that wait for their batch.
    pub fn ready_prompts(&self) -> u64 {
        self.groups.ready.len() as u64
    }

    /// Attempts issued, minus endings, minus what is counted in flight: 0 unless there is a bug.
    pub fn unaccounted(&self) -> i64 {
        let issued = i64::try_from(self.account.issued()).unwrap_or(i64::MAX);
        let ended = i64::try_from(self.account.ended()).unwrap_or(i64::MAX);
        issued - ended - i64::try_from(self.in_flight()).unwrap_or(i64::MAX)
    }

    /// Attempts in flight, counted where they lie: in groups and in batches not yet trained.
    pub fn in_flight(&self) -> u64 {
        self.groups.in_flight() + self.batches.in_flight()
    }

    /// Every response in a batch that is formed and not yet trained, for the checks of the tests.
    pub fn batched(&self) -> BTreeSet<types::RolloutId> {
        self.batches.untrained().flat_map(|plan| plan.samples.iter().map(|sample| sample.id)).collect()
    }
}
