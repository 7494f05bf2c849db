//! A world for the state machine: it performs effects the way real members would, in random order and with
//! failures.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use coordinator::state::{
    ActorEvent, Applied, BatchPlan, Effect, Event, Fact, LearnerEvent, Phase, RewardEvent, RunPlan,
    ScoreSummary, State,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use types::link::actor::{ActorCommand, ActorHello, ActorLoad, ActorReport};
use types::link::learner::{LearnerCommand, LearnerHello, LearnerReport, MeasuredStep, StepMetrics};
use types::link::reward::RewardHello;
use types::{
    BatchId, FailReason, Incarnation, LeaseId, Manifest, MemberId, PolicyVersion, PromptId, RolloutFailure,
    RolloutId, Timestamp, WeightHash,
};

use crate::small_run::manifest;

struct SimActor {
    incarnation: u64,
    connected: bool,
    version: Option<PolicyVersion>,
    hash: WeightHash,
    /// Attempts it works on, with the version that draws them.
    work: Vec<(RolloutId, PolicyVersion)>,
    last_lease: LeaseId,
    draining: bool,
}

struct SimLearner {
    connected: bool,
    /// Crashes so far, where they change the bits.
    life: u64,
    /// The weights it holds.
    manifest: Manifest,
    trained: u64,
    checkpointed: u64,
    queue: VecDeque<BatchPlan>,
}

/// The world.
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    pub(crate) journal: Vec<(Timestamp, Fact)>,
    /// How often the state settles after an event; else it is part of the next lot.
    pub(crate) settles_in_percent: u32,
    pub(crate) learning_changes_weights: bool,
    /// Failures and repetitions happen.
    pub(crate) chaos: bool,
    pub(crate) equal_scores_in_percent: u32,
    pub(crate) crash_actors_in_percent: u32,
    pub(crate) max_staleness_trained: u64,
    /// Per batch, the samples that trained.
    pub(crate) trained_samples: BTreeMap<BatchId, BTreeSet<(PromptId, u16)>>,
    rng: ChaCha8Rng,
    actors: BTreeMap<MemberId, SimActor>,
    learner: SimLearner,
    kept: BTreeMap<RolloutId, PolicyVersion>,
    leases: BTreeMap<LeaseId, Vec<PromptId>>,
    pending: VecDeque<Event>,
    delivered: Vec<ScoreSummary>,
}

fn actor_event(member: &MemberId, event: ActorEvent) -> Event {
    Event::Actor { member: member.clone(), event }
}

fn learner_report(report: LearnerReport) -> Event {
    Event::Learner(LearnerEvent::Report(report))
}

impl World {
    pub(crate) fn new(plan: RunPlan, seed: u64) -> Self {
        let actor = |n: u32| {
            let actor = SimActor {
                incarnation: 0,
                connected: false,
                version: None,
                hash: WeightHash([0; 32]),
                work: Vec::new(),
                last_lease: LeaseId(0),
                draining: false,
            };
            (format!("actor-{n}").parse().unwrap(), actor)
        };
        Self {
            state: State::new(plan),
            now: Timestamp(1_000_000),
            journal: Vec::new(),
            settles_in_percent: 100,
            learning_changes_weights: true,
            chaos: false,
            equal_scores_in_percent: 0,
            crash_actors_in_percent: 0,
            max_staleness_trained: 0,
            trained_samples: BTreeMap::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            actors: (0..3).map(actor).collect(),
            learner: SimLearner {
                connected: false,
                life: 0,
                manifest: manifest(0, 0),
                trained: 0,
                checkpointed: 0,
                queue: VecDeque::new(),
            },
            kept: BTreeMap::new(),
            leases: BTreeMap::new(),
            pending: VecDeque::new(),
            delivered: Vec::new(),
        }
    }

    fn percent(&mut self, chance: u32) -> bool {
        self.rng.random_range(0..100) < chance
    }

    /// Which prompts were ever generated together.
    pub(crate) fn compositions(&self) -> BTreeSet<Vec<PromptId>> {
        self.leases.values().cloned().collect()
    }

    pub(crate) fn run_to_the_end(&mut self, max_steps: usize) {
        for _ in 0..max_steps {
            if self.state.phase() == Phase::Finished {
                let recorded = self.state.history().steps().map(|step| step.batch);
                assert!(
                    recorded.eq((1..=self.state.plan().last_batch().0).map(BatchId)),
                    "a step is recorded once"
                );
                return;
            }
            self.step();
        }
        panic!("not finished after {max_steps} steps: {:#?}", self.state.account());
    }

    /// Something happens.
    pub(crate) fn step(&mut self) {
        let passes = self.rng.random_range(0..50);
        self.now = self.now + Duration::from_millis(passes);
        if self.state.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.settle();
        }
        if self.chaos && self.percent(2) {
            self.restart();
        }
        if self.chaos && self.percent(2) {
            self.crash_learner();
        }
        self.reconnect();
        match self.rng.random_range(0..4) {
            0 => {
                if let Some(event) = self.pending.pop_front() {
                    self.deliver(event);
                }
            }
            1 => self.learner_works(),
            _ => self.actor_works(),
        }
    }

    /// Applies an event, checks the invariants, performs the effects.
    pub(crate) fn deliver(&mut self, event: Event) -> Vec<Effect> {
        let applied = self.state.apply(self.now, event);
        let mut effects = self.take(applied);
        if self.percent(self.settles_in_percent) {
            effects.extend(self.settle());
        }
        effects
    }

    /// Lets the state settle, as the loop does after a lot of events.
    pub(crate) fn settle(&mut self) -> Vec<Effect> {
        let applied = self.state.settle(self.now);
        let effects = self.take(applied);
        let deadline = self.state.next_deadline();
        assert!(deadline.is_none_or(|deadline| deadline > self.now), "nothing is left due");
        effects
    }

    fn take(&mut self, applied: Applied) -> Vec<Effect> {
        let Applied { facts, effects, store } = applied;
        self.journal.extend(facts.into_iter().map(|fact| (self.now, fact)));
        assert_eq!(self.state.unaccounted(), 0, "invariant 1");
        for id in store.keep {
            let summary = self.delivered.iter().find(|summary| summary.id == id).unwrap();
            self.kept.insert(id, summary.oldest);
        }
        for effect in effects.clone() {
            self.perform(effect);
        }
        for id in store.forget {
            self.kept.remove(&id);
        }
        assert!(
            self.state.batches().untrained().all(|batch| self.holds_tokens(batch)),
            "a batch without its tokens"
        );
        effects
    }

    fn holds_tokens(&self, batch: &BatchPlan) -> bool {
        batch.samples.iter().all(|sample| self.kept.contains_key(&sample.id))
    }
    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Actor { member, command } => self.command_actor(&member, *command),
            Effect::Lease { member, grant } => {
                self.leases.insert(grant.id, grant.groups.iter().map(|group| group.prompt).collect());
                let actor = self.actors.get_mut(&member).unwrap();
                let version = actor.version.expect("invariant 4: no lease without weights");
                actor.last_lease = grant.id;
                actor.work.extend(grant.groups.iter().flat_map(|g| g.wanted.iter().map(|id| (*id, version))));
            }
            Effect::Learner(LearnerCommand::JoinBroadcastGroup(group)) => {
                self.pending.push_back(learner_report(LearnerReport::BroadcastGroupReady(group.id)));
            }
            Effect::Learner(LearnerCommand::Publish { group, version }) => {
                let published = LearnerReport::Published { group, version, seconds: 0.1 };
                self.pending.push_back(learner_report(published));
            }
            Effect::Learner(LearnerCommand::Checkpoint) => self.checkpoint(),
            Effect::SendBatch(plan) => self.receive_batch(plan),
            Effect::Refuse { member, .. } | Effect::Disconnect { member, .. } => {
                if let Some(actor) = self.actors.get_mut(&member) {
                    actor.connected = false;
                } else if member.as_str() == "learner" {
                    self.learner.connected = false;
                }
            }
            Effect::Reward { .. }
            | Effect::Learner(_)
            | Effect::GroupEnded(_)
            | Effect::Step(_)
            | Effect::Notice(_)
            | Effect::Finish(_) => {}
        }
    }
    fn receive_batch(&mut self, plan: BatchPlan) {
        assert_eq!(
            plan.id.0,
            self.learner.trained + self.learner.queue.len() as u64 + 1,
            "invariant 2: in order"
        );
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
        let ids = plan.samples.iter().filter(|s| s.weight > 0.0).map(|s| (s.id.prompt, s.id.sibling));
        self.trained_samples.insert(plan.id, ids.collect());
        self.learner.queue.push_back(plan);
    }
    fn command_actor(&mut self, member: &MemberId, command: ActorCommand) {
        let fails = self.chaos && self.percent(5);
        let actor = self.actors.get_mut(member).unwrap();
        if !actor.connected {
            return;
        }
        let mut answer = |report| self.pending.push_back(actor_event(member, ActorEvent::Report(report)));
        match command {
            ActorCommand::PullWeights { version, hash, .. } => {
                if fails {
                    answer(ActorReport::WeightsFailed { version, detail: "torn".into() });
                } else {
                    (actor.version, actor.hash) = (Some(version), hash);
                    answer(ActorReport::WeightsConfirmed { version, hash });
                }
            }
            ActorCommand::JoinBroadcastGroup(group) => {
                if fails {
                    let failed =
                        ActorReport::BroadcastGroupFailed { group: group.id, detail: "no route".into() };
                    answer(failed);
                } else {
                    answer(ActorReport::BroadcastGroupReady(group.id));
                }
            }
            ActorCommand::ReceiveWeights { manifest, .. } => {
                let (version, hash) = (manifest.version(), manifest.hash());
                let held = actor.version;
                assert!(
                    held.is_none_or(|held| held <= version),
                    "versions never go back: {held:?} to {version}"
                );
                if fails {
                    answer(ActorReport::WeightsFailed { version, detail: "hash".into() });
                } else {
                    (actor.version, actor.hash) = (Some(version), hash);
                    answer(ActorReport::WeightsConfirmed { version, hash });
                }
            }
            ActorCommand::Drain => {
                actor.draining = true;
                answer(ActorReport::Draining);
            }
            ActorCommand::Welcome(_)
            | ActorCommand::RewardServers(_)
            | ActorCommand::Lease(_)
            | ActorCommand::Finish => {}
        }
    }
    /// Everybody who is away comes back, one at a time.
    fn reconnect(&mut self) {
        if self.state.members().learner().is_none_or(|learner| !learner.connected) || !self.learner.connected
        {
            self.join_learner();
            return;
        }
        if self.state.members().reward_servers().values().all(|server| !server.connected) {
            let hello = RewardHello {
                member: "reward-0".parse().unwrap(),
                incarnation: Incarnation(1),
                run: None,
                address: "127.0.0.1:1".into(),
            };
            self.deliver(Event::Reward { member: hello.member.clone(), event: RewardEvent::Joined(hello) });
        }
        let away = self.actors.iter().find(|(name, actor)| {
            !actor.connected || self.state.members().actors().get(name).is_none_or(|known| !known.connected)
        });
        let Some(member) = away.map(|(member, _)| member.clone()) else {
            return;
        };
        let actor = self.actors.get_mut(&member).unwrap();
        actor.connected = true;
        actor.draining = false;
        let hello = ActorHello {
            member: member.clone(),
            incarnation: Incarnation(actor.incarnation),
            run: None,
            holding: actor.work.iter().map(|(id, _)| *id).collect(),
            weights: actor.version.map(|version| (version, actor.hash)),
        };
        self.deliver(actor_event(&member, ActorEvent::Joined(hello)));
    }
    fn join_learner(&mut self) -> Vec<Effect> {
        self.learner.connected = true;
        self.learner.queue.clear();
        let step = |batch| MeasuredStep { batch: BatchId(batch), metrics: StepMetrics::default() };
        let hello = LearnerHello {
            member: "learner".parse().unwrap(),
            incarnation: Incarnation(self.now.0),
            run: None,
            world_size: 1,
            trained: BatchId(self.learner.trained),
            checkpointed: BatchId(self.learner.checkpointed),
            manifest: self.learner.manifest.clone(),
            steps: (1..=self.learner.trained).map(step).collect(),
            store: "127.0.0.1:2".into(),
            weights: "127.0.0.1:3".into(),
        };
        self.deliver(Event::Learner(LearnerEvent::Joined(hello)))
    }
    pub(crate) fn learner_rejoins_from_nothing(&mut self) -> Vec<Effect> {
        (self.learner.trained, self.learner.checkpointed) = (0, 0);
        self.learner.life += 1;
        self.join_learner()
    }
    fn weights_of(&self, version: u64) -> Manifest {
        let trained = manifest(version, self.learner.life);
        if self.learning_changes_weights {
            return trained;
        }
        let tensors = manifest(0, 0).tensors().to_vec();
        Manifest::new(trained.version(), tensors).unwrap()
    }

    fn crash_learner(&mut self) {
        self.learner.trained = self.learner.checkpointed;
        self.learner.life += u64::from(!self.state.plan().deterministic);
        self.learner.manifest = self.weights_of(self.learner.trained);
        self.learner.queue.clear();
        self.learner.connected = false;
        self.pending.retain(|event| !matches!(event, Event::Learner(_)));
        self.deliver(Event::Learner(LearnerEvent::Disconnected));
    }
    fn learner_works(&mut self) {
        if !self.learner.connected {
            return;
        }
        let Some(plan) = self.learner.queue.pop_front() else {
            return;
        };
        self.learner.trained = plan.id.0;
        self.learner.manifest = self.weights_of(plan.id.0);
        let trained = LearnerReport::Trained {
            batch: plan.id,
            manifest: self.learner.manifest.clone(),
            metrics: Box::default(),
        };
        // A crashing learner may not get to say what it did.
        if self.chaos && self.percent(5) {
            if self.percent(50) {
                self.learner.checkpointed = self.learner.trained;
            }
            self.crash_learner();
            return;
        }
        self.deliver(learner_report(trained));
        if self.percent(40) || plan.id == self.state.plan().last_batch() {
            self.checkpoint();
        }
    }
    fn checkpoint(&mut self) {
        self.learner.checkpointed = self.learner.trained;
        let batch = BatchId(self.learner.checkpointed);
        self.pending.push_back(learner_report(LearnerReport::Checkpointed(batch)));
    }
    fn actor_works(&mut self) {
        let names: Vec<MemberId> = self.actors.keys().cloned().collect();
        let member = names[self.rng.random_range(0..names.len())].clone();
        if self.percent(self.crash_actors_in_percent) {
            let actor = self.actors.get_mut(&member).unwrap();
            actor.incarnation += 1;
            actor.connected = false;
            actor.work.clear();
            (actor.version, actor.last_lease) = (None, LeaseId(0));
            // What its stream still carried is lost with it.
            self.pending.retain(|event| !matches!(event, Event::Actor { member: m, .. } if *m == member));
            self.deliver(actor_event(&member, ActorEvent::Disconnected));
            return;
        }
        self.finish_response(&member);
        let actor = &self.actors[&member];
        let load = ActorLoad {
            free_slots: 24u32.saturating_sub(u32::try_from(actor.work.len()).unwrap()),
            last_lease: actor.last_lease,
            ..ActorLoad::default()
        };
        if actor.connected {
            self.deliver(actor_event(&member, ActorEvent::Report(ActorReport::Load(load))));
        }
    }
    fn finish_response(&mut self, member: &MemberId) {
        let actor = self.actors.get_mut(member).unwrap();
        if actor.work.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..actor.work.len());
        let (id, version) = actor.work.swap_remove(at);
        let reward: MemberId = "reward-0".parse().unwrap();
        if self.chaos && self.percent(5) {
            let failure = RolloutFailure {
                id,
                reason: FailReason::RewardTimeout,
                detail: "slow".into(),
                response_tokens: 9,
            };
            self.deliver(Event::Reward { member: reward, event: RewardEvent::Failed(failure) });
            return;
        }
        // The score depends on the response alone, as a deterministic scorer's does.
        let spread = (id.prompt.ordinal * 31 + u64::from(id.prompt.epoch) * 17) % 100;
        let equal = spread < u64::from(self.equal_scores_in_percent);
        let score = if equal { 0.25 } else { (id.seed(5) % 1000) as f32 / 1000.0 };
        let summary = ScoreSummary {
            id,
            score,
            outcome: Some(f32::from(u8::from(score > 0.5))),
            tokens: 12,
            oldest: version,
            truncated: false,
            numbers: [("regex".to_owned(), f64::from(score))].into(),
        };
        self.delivered.push(summary.clone());
        let repeats = if self.chaos && self.percent(10) { 2 } else { 1 };
        for _ in 0..repeats {
            let event = RewardEvent::Scored(summary.clone());
            self.deliver(Event::Reward { member: reward.clone(), event });
        }
    }
    /// The coordinator's process dies and comes back over its journal.
    pub(crate) fn restart(&mut self) {
        let plan = self.state.plan().clone();
        self.pending.clear();
        self.learner.connected = false;
        for actor in self.actors.values_mut() {
            actor.connected = false;
        }
        self.deliver(Event::Started(Box::new(plan)));
    }
}
