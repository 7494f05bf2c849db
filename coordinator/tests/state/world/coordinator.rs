//! The coordinator's process: what `server_loop`, `sessions` and `journal` do around the state.

use std::collections::BTreeMap;
use std::time::Duration;

use ::coordinator::state::{
    ActorEvent, Applied, BatchPlan, Durable, Effect, Event, Fact, LearnerEvent, RewardEvent, Role, RunPlan,
    State,
};
use rand::RngExt;
use types::link::actor::ActorCommand;
use types::link::learner::LearnerCommand;
use types::link::reward::RewardCommand;
use types::{Incarnation, MemberId, PolicyVersion, RolloutId, Timestamp};

use super::World;
use super::streams::{Down, Up};

/// As `server_loop`'s.
const AWAY_LIMIT: Duration = Duration::from_secs(1);

/// What is not durable yet.
#[derive(Debug, Default)]
struct Lot {
    facts: Vec<(Timestamp, Fact)>,
    keep: Vec<(RolloutId, PolicyVersion)>,
    forget: Vec<RolloutId>,
    effects: Vec<Effect>,
    acknowledgements: Vec<(MemberId, RewardCommand)>,
}

/// The process.
#[derive(Debug, Default)]
pub(super) struct SimCoordinator {
    /// There is none before.
    down_until: Option<Timestamp>,
    /// It is stopped until then.
    asleep_until: Timestamp,
    /// The disk has no room until then.
    pub(super) full_until: Timestamp,
    /// The lot waits for room.
    waits: bool,
    turned_at: Timestamp,
    /// What its clock said when it started, and when that was.
    clock: Option<(Timestamp, Timestamp)>,
    lot: Lot,
    /// Which stream of a member counts.
    sessions: BTreeMap<(Role, MemberId), (u64, Incarnation)>,
    /// The run as its journal has it, and had it at first.
    durable: Option<Durable>,
    first: Option<RunPlan>,
}

impl SimCoordinator {
    /// One that starts at this moment over an empty journal.
    pub(super) fn starting(at: Timestamp, plan: RunPlan) -> Self {
        let durable = Some(Durable::new(plan.clone()));
        Self { down_until: Some(at), durable, first: Some(plan), ..Self::default() }
    }

    pub(super) fn is_up(&self) -> bool {
        self.down_until.is_none()
    }

    pub(super) fn stop_until(&mut self, moment: Timestamp) {
        self.asleep_until = moment;
    }

    /// It is to do its work from now on.
    pub(super) fn wake(&mut self, now: Timestamp) {
        self.asleep_until = now;
        self.full_until = now;
        self.down_until = self.down_until.map(|_| now);
    }
}

/// Where the loop would put a member's stream, and what it means that it is gone.
pub(super) fn left(role: Role, member: &MemberId) -> Event {
    match role {
        Role::Actor => Event::Actor { member: member.clone(), event: ActorEvent::Disconnected },
        Role::RewardServer => Event::Reward { member: member.clone(), event: RewardEvent::Disconnected },
        Role::Learner => Event::Learner(LearnerEvent::Disconnected),
    }
}

impl World {
    /// What the coordinator's clock says.
    pub(super) fn clock(&self) -> Timestamp {
        self.coordinator.clock.map_or(self.now, |(began, since)| began + self.now.since(since))
    }

    pub(super) fn coordinator_turn(&mut self) {
        if let Some(moment) = self.coordinator.down_until {
            if moment <= self.now {
                self.restart();
            }
            return;
        }
        if self.coordinator.asleep_until > self.now || self.percent(20) {
            return;
        }
        if self.coordinator.waits {
            if self.coordinator.full_until > self.now {
                return;
            }
            self.write_lot();
            if !self.coordinator.is_up() {
                return;
            }
        }
        let away = self.now.since(self.coordinator.turned_at);
        if away > AWAY_LIMIT {
            self.apply(Event::WasAway(away));
        }
        self.coordinator.turned_at = self.now;
        for _ in 0..self.rng.random_range(0..6) {
            let arrived = self.streams.arrived(self.now);
            if arrived.is_empty() || !self.coordinator.is_up() {
                break;
            }
            let number = arrived[self.rng.random_range(0..arrived.len())];
            self.take_in(number);
        }
        let is_due = self.state.next_deadline().is_some_and(|deadline| deadline <= self.clock());
        let settles = self.percent(self.settles_in_percent);
        if self.coordinator.is_up() && (is_due || settles) {
            self.settle();
        }
    }

    fn take_in(&mut self, number: u64) {
        let Some(stream) = self.streams.get(number) else { return };
        let (role, member) = (stream.role, stream.member.clone());
        let current = self.coordinator.sessions.get(&(role, member.clone()));
        let is_current = current.is_some_and(|(current, _)| *current == number);
        match self.streams.take_up(number) {
            Some(Up::Hello(event)) => self.join(number, role, member, event),
            Some(Up::Report(event)) if is_current => self.take_report(member, event),
            Some(Up::Closed(event)) if is_current => {
                self.coordinator.sessions.remove(&(role, member));
                self.apply(event);
            }
            Some(Up::Report(_) | Up::Closed(_)) | None => {}
        }
    }

    /// As `Sessions::open`: a stream that another process opens ends the one before for good, another stream
    /// of the same process does not.
    fn join(&mut self, number: u64, role: Role, member: MemberId, event: Event) {
        if self.state.check_joining(self.clock(), &event).is_err() {
            return self.close(number, true);
        }
        let incarnation = incarnation_of(&event);
        let is_replaced =
            |(of, name): &(Role, MemberId)| *of == role && (role == Role::Learner || *name == member);
        let others = self.coordinator.sessions.extract_if(.., |key, _| is_replaced(key));
        let others: Vec<(u64, Incarnation)> = others.map(|(_, session)| session).collect();
        for (other, known) in others {
            self.close(other, known != incarnation);
        }
        self.coordinator.sessions.insert((role, member), (number, incarnation));
        self.apply(event);
    }

    fn close(&mut self, number: u64, refused: bool) {
        let at = self.arrival();
        self.streams.send_down(number, at, Down::Closed { refused });
    }

    fn take_report(&mut self, member: MemberId, event: Event) {
        let (summary, failed) = match &event {
            Event::Reward { event: RewardEvent::Scored(summary), .. } => (Some(summary.clone()), None),
            Event::Reward { event: RewardEvent::Failed(failure), .. } => (None, Some(failure.id)),
            _ => (None, None),
        };
        let keep = self.apply(event);
        let result = summary.as_ref().map(|summary| summary.id).or(failed);
        let tokens = summary.map(|summary| (summary.id, summary.oldest));
        self.coordinator.lot.keep.extend(tokens.filter(|(id, _)| keep.contains(id)));
        let acknowledgement = result.map(|id| (member, RewardCommand::Recorded(vec![id])));
        self.coordinator.lot.acknowledgements.extend(acknowledgement);
    }

    /// Applies an event, checks the invariants, performs the effects.
    pub(crate) fn deliver(&mut self, event: Event) -> Vec<Effect> {
        self.apply(event);
        if self.percent(self.settles_in_percent) { self.settle() } else { Vec::new() }
    }

    fn apply(&mut self, event: Event) -> Vec<RolloutId> {
        let applied = self.state.apply(self.clock(), event);
        self.add(applied)
    }

    fn add(&mut self, applied: Applied) -> Vec<RolloutId> {
        assert_eq!(self.state.unaccounted(), 0, "invariant 1");
        let clock = self.clock();
        let Applied { facts, effects, store } = applied;
        let lot = &mut self.coordinator.lot;
        lot.facts.extend(facts.into_iter().map(|fact| (clock, fact)));
        lot.forget.extend(store.forget);
        lot.effects.extend(effects);
        store.keep
    }

    /// Lets the state settle, as the loop does after a lot of events, makes the lot durable and acts on it.
    pub(crate) fn settle(&mut self) -> Vec<Effect> {
        let clock = self.clock();
        let applied = self.state.settle(clock);
        self.add(applied);
        let deadline = self.state.next_deadline();
        assert!(deadline.is_none_or(|deadline| deadline > clock), "nothing is left due");
        self.coordinator.waits =
            self.coordinator.full_until > self.now && !self.coordinator.lot.facts.is_empty();
        if self.coordinator.waits { Vec::new() } else { self.write_lot() }
    }

    /// Makes a lot durable, then acts on it.
    fn write_lot(&mut self) -> Vec<Effect> {
        self.coordinator.waits = false;
        if self.crashes_here() {
            return Vec::new();
        }
        let lot = std::mem::take(&mut self.coordinator.lot);
        self.commit(lot.facts, lot.keep, lot.forget);
        for effect in lot.effects.clone() {
            if self.crashes_here() {
                return lot.effects;
            }
            self.perform(effect);
        }
        for (member, command) in lot.acknowledgements {
            self.command(Role::RewardServer, &member, Down::Reward(command));
        }
        lot.effects
    }

    /// The process may die between any two things that it does.
    fn crashes_here(&mut self) -> bool {
        let crashes = self.per_mille(self.faults.crash_in_commit);
        if crashes {
            self.crash_coordinator();
        }
        crashes
    }

    fn commit(
        &mut self,
        facts: Vec<(Timestamp, Fact)>,
        keep: Vec<(RolloutId, PolicyVersion)>,
        forget: Vec<RolloutId>,
    ) {
        self.journal.extend(facts);
        self.kept.extend(keep);
        for id in forget {
            self.kept.remove(&id);
        }
        let holds_tokens =
            |batch: &BatchPlan| batch.samples.iter().all(|sample| self.kept.contains_key(&sample.id));
        assert!(self.state.batches().untrained().all(holds_tokens), "a batch without its tokens");
        self.coordinator.durable = Some(self.state.durable().clone());
    }

    fn command(&mut self, role: Role, member: &MemberId, command: Down) {
        let at = self.arrival();
        if let Some((number, _)) = self.coordinator.sessions.get(&(role, member.clone())) {
            self.streams.send_down(*number, at, command);
        }
    }

    fn command_learner(&mut self, command: Down) {
        let learner = self.coordinator.sessions.keys().find(|(role, _)| *role == Role::Learner);
        if let Some((role, member)) = learner.cloned() {
            self.command(role, &member, command);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Actor { member, command } => self.command(Role::Actor, &member, Down::Actor(*command)),
            Effect::Lease { member, grant } => {
                self.leases.insert(grant.id, grant.groups.iter().map(|group| group.prompt).collect());
                self.command(Role::Actor, &member, Down::Lease(grant));
            }
            Effect::Reward { member, command } => {
                self.command(Role::RewardServer, &member, Down::Reward(command));
            }
            Effect::Learner(command) => self.command_learner(Down::Learner(command)),
            Effect::SendBatch(plan) => {
                self.check_batch(&plan);
                self.command_learner(Down::Batch(plan));
            }
            Effect::Refuse { role, member, .. } => self.end_session(role, member, true),
            Effect::Disconnect { role, member, .. } => self.end_session(role, member, false),
            Effect::Finish(_) => self.finish(),
            Effect::GroupEnded(_) | Effect::Step(_) | Effect::Evaluated(_) | Effect::Notice(_) => {}
        }
    }

    fn end_session(&mut self, role: Role, member: MemberId, refused: bool) {
        if let Some((number, _)) = self.coordinator.sessions.remove(&(role, member)) {
            self.close(number, refused);
        }
    }

    /// The run has ended: everybody is told to leave. Somebody starts it again if it was stopped.
    fn finish(&mut self) {
        for ((role, member), _) in self.coordinator.sessions.clone() {
            let command = match role {
                Role::Actor => Down::Actor(ActorCommand::Finish),
                Role::RewardServer => Down::Reward(RewardCommand::Finish),
                Role::Learner => Down::Learner(LearnerCommand::Finish),
            };
            self.command(role, &member, command);
        }
    }

    /// What is sent is what was sent before, of responses that are kept, fresh enough, and in no other
    /// batch.
    fn check_batch(&mut self, plan: &BatchPlan) {
        let known = self.sent.entry(plan.id).or_insert_with(|| plan.clone());
        assert_eq!(known, plan, "a batch never changes");
        for sample in plan.samples.iter().filter(|sample| sample.weight > 0.0) {
            let drawn = self.kept[&sample.id];
            let staleness = (plan.id.0 - 1).saturating_sub(drawn.0);
            assert!(staleness <= self.state.plan().max_staleness, "invariant 3: {staleness}");
            self.max_staleness_trained = self.max_staleness_trained.max(staleness);
            for (batch, samples) in &self.trained_samples {
                let id = (sample.id.prompt, sample.id.sibling);
                assert!(*batch == plan.id || !samples.contains(&id), "invariant 2: {} twice", sample.id);
            }
        }
        for sample in &plan.samples {
            assert_eq!(sample.id.prompt.held_out_place(), None, "a held-out prompt trains");
            let group = plan.groups.iter().find(|group| group.prompt == sample.id.prompt).unwrap();
            let is_there = group.scores.iter().any(|score| score.sibling == sample.id.sibling);
            let drawn = group.scores.len() >= usize::from(self.state.plan().min_group);
            assert!(is_there && drawn, "a sample without the scores of its group: {group:?}");
        }
        let trains = plan.samples.iter().filter(|sample| sample.weight > 0.0);
        let ids = trains.map(|sample| (sample.id.prompt, sample.id.sibling)).collect();
        self.trained_samples.insert(plan.id, ids);
    }

    /// The process dies: what is not durable is lost, and so is every stream.
    pub(super) fn crash_coordinator(&mut self) {
        (self.coordinator.lot, self.coordinator.waits) = (Lot::default(), false);
        self.coordinator.sessions.clear();
        self.streams.clear();
        self.coordinator.down_until = Some(self.soon(3_000));
    }

    /// The coordinator's process dies and comes back over its journal.
    pub(crate) fn restart(&mut self) {
        self.crash_coordinator();
        self.coordinator.down_until = None;
        self.coordinator.asleep_until = self.now;
        self.coordinator.turned_at = self.now;
        let plan = self.state.plan().clone();
        let durable = self.coordinator.durable.clone().unwrap();
        let last = self.journal.last().map_or(Timestamp(0), |(at, _)| *at);
        let wall = Timestamp(self.machine_clock() / 1000);
        self.coordinator.clock = Some((wall.max(last), self.now));
        self.state = State::over(durable);
        self.apply(Event::Started(Box::new(plan)));
        self.settle();
    }

    /// Facts lead to the same run whenever they are replayed, also from where a snapshot was made of them.
    pub(crate) fn check_journal(&self) {
        let Some(durable) = &self.coordinator.durable else { return };
        let mut replayed = Durable::new(self.coordinator.first.clone().unwrap());
        for (index, (at, fact)) in self.journal.iter().enumerate() {
            // Through JSON, as the journal stores it.
            let fact: Fact = serde_json::from_str(&serde_json::to_string(fact).unwrap()).unwrap();
            drop(replayed.replay(*at, fact));
            if index == self.journal.len() / 2 {
                let snapshot = serde_json::to_vec(&replayed).unwrap();
                replayed = serde_json::from_slice(&snapshot).unwrap();
            }
        }
        assert_eq!(&replayed, durable, "the journal leads elsewhere");
    }
}

/// The process that introduces itself.
fn incarnation_of(event: &Event) -> Incarnation {
    match event {
        Event::Actor { event: ActorEvent::Joined(hello), .. } => hello.incarnation,
        Event::Reward { event: RewardEvent::Joined(hello), .. } => hello.incarnation,
        Event::Learner(LearnerEvent::Joined(hello)) => hello.incarnation,
        _ => unreachable!("only a hello opens a stream"),
    }
}
