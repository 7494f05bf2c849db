//! A world for the state machine, in virtual time: a coordinator with its journal, actors, reward servers and
//! learners as processes that come, go and are stopped, and streams between them that are slow, broken or
//! cut off. All of it follows from a seed.
//!
//! One file per part: `coordinator` (what `server_loop` does around the state), `streams`, `actors`,
//! `reward_servers`, `environments`, `learners` with their folder of checkpoints, and `faults`.

#[path = "world/actors.rs"]
mod actors;
#[path = "world/coordinator.rs"]
mod coordinator;
#[path = "world/environments.rs"]
mod environments;
#[path = "world/faults.rs"]
mod faults;
#[path = "world/learners.rs"]
mod learners;
#[path = "world/reward_servers.rs"]
mod reward_servers;
#[path = "world/streams.rs"]
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::coordinator::state::{BatchPlan, Fact, Phase, RunPlan, State};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use types::{BatchId, LeaseId, MemberId, PolicyVersion, PromptId, RolloutId, Timestamp};

use actors::SimActor;
use coordinator::SimCoordinator;
pub(crate) use faults::Faults;
use learners::{SimFolder, SimLearner};
use reward_servers::SimRewardServer;
use streams::Streams;

/// What a process is to whoever started it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Process {
    /// When it was started, by the clock of its machine.
    incarnation: u64,
    /// It does nothing before: it is stopped, or only starting.
    asleep_until: Timestamp,
    /// Its stream to the coordinator.
    stream: Option<u64>,
}

/// The world.
pub(crate) struct World {
    /// The coordinator's state.
    pub(crate) state: State,
    /// What no process knows exactly.
    pub(crate) now: Timestamp,
    /// The facts that are durable.
    pub(crate) journal: Vec<(Timestamp, Fact)>,
    /// How often the state settles after an event; else it is part of the next lot.
    pub(crate) settles_in_percent: u32,
    pub(crate) learning_changes_weights: bool,
    pub(crate) equal_scores_in_percent: u32,
    /// What goes wrong.
    pub(crate) faults: Faults,
    pub(crate) max_staleness_trained: u64,
    /// Per batch, the samples that train.
    pub(crate) trained_samples: BTreeMap<BatchId, BTreeSet<(PromptId, u16)>>,
    rng: ChaCha8Rng,
    coordinator: SimCoordinator,
    /// Processes that were started.
    started: u64,
    streams: Streams,
    actors: BTreeMap<MemberId, SimActor>,
    reward_servers: BTreeMap<MemberId, SimRewardServer>,
    learners: Vec<SimLearner>,
    folder: SimFolder,
    /// Responses whose tokens are durable, with the oldest version that drew one.
    kept: BTreeMap<RolloutId, PolicyVersion>,
    leases: BTreeMap<LeaseId, Vec<PromptId>>,
    /// Batches as they were sent first.
    sent: BTreeMap<BatchId, BatchPlan>,
}

impl World {
    /// Three actors, two reward servers and a learner that have only just been started.
    pub(crate) fn new(plan: RunPlan, seed: u64) -> Self {
        let now = Timestamp(10_000_000);
        Self {
            coordinator: SimCoordinator::starting(now, plan.clone()),
            state: State::new(plan),
            now,
            journal: Vec::new(),
            settles_in_percent: 100,
            learning_changes_weights: true,
            equal_scores_in_percent: 0,
            faults: Faults::default(),
            max_staleness_trained: 0,
            trained_samples: BTreeMap::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            started: 0,
            streams: Streams::default(),
            actors: (0..3).map(|n| (named("actor", n), SimActor::default())).collect(),
            reward_servers: (0..2).map(|n| (named("reward", n), SimRewardServer::default())).collect(),
            learners: vec![SimLearner::new("learner".parse().unwrap(), 1)],
            folder: SimFolder::default(),
            kept: BTreeMap::new(),
            leases: BTreeMap::new(),
            sent: BTreeMap::new(),
        }
    }

    fn percent(&mut self, chance: u32) -> bool {
        self.per_mille(chance * 10)
    }

    fn per_mille(&mut self, chance: u32) -> bool {
        chance > 0 && self.rng.random_range(0..1000) < chance
    }

    /// A moment within the next `most` milliseconds.
    fn soon(&mut self, most: u64) -> Timestamp {
        self.now + Duration::from_millis(self.rng.random_range(0..=most))
    }

    /// What the clock of a machine says on which a process starts now.
    fn machine_clock(&mut self) -> u64 {
        let skew = self.faults.clock_skew;
        let millis = (self.now.0 + skew).saturating_sub(self.rng.random_range(0..=2 * skew));
        // Two starts are never at the same microsecond.
        self.started += 1;
        millis * 1000 + self.started % 1000
    }

    /// A process that starts after a moment.
    fn new_process(&mut self, most_millis: u64) -> Process {
        let incarnation = self.machine_clock();
        Process { incarnation, asleep_until: self.soon(most_millis), stream: None }
    }

    /// Which prompts were ever generated together.
    pub(crate) fn compositions(&self) -> BTreeSet<Vec<PromptId>> {
        self.leases.values().cloned().collect()
    }

    /// Something happens.
    pub(crate) fn step(&mut self) {
        self.now = self.soon(50);
        self.something_fails();
        self.coordinator_turn();
        let (actors, servers, learners) = (self.actors.len(), self.reward_servers.len(), self.learners.len());
        let turn = self.rng.random_range(0..actors + servers + learners.max(1));
        if turn < actors {
            let member = self.actors.keys().nth(turn).unwrap().clone();
            self.actor_turn(&member);
        } else if turn < actors + servers {
            let member = self.reward_servers.keys().nth(turn - actors).unwrap().clone();
            self.reward_server_turn(&member);
        } else if learners > 0 {
            self.learner_turn(turn - actors - servers);
        } else {
            self.start_learner();
        }
    }

    /// Until the run is finished.
    pub(crate) fn run_to_the_end(&mut self, max_steps: usize) {
        for _ in 0..max_steps {
            if self.is_finished() {
                return self.check_the_end();
            }
            self.step();
        }
        panic!(
            "not finished after {max_steps} steps: waits for {}; {:#?}",
            self.state.waiting_for(),
            self.state.account()
        );
    }

    fn is_finished(&self) -> bool {
        self.coordinator.is_up() && self.state.phase() == Phase::Finished
    }

    /// What has to hold of a run that is complete.
    fn check_the_end(&mut self) {
        self.check_environments();
        let recorded = self.state.history().steps().map(|step| step.batch);
        let batches = (1..=self.state.plan().last_batch().0).map(BatchId);
        assert!(recorded.eq(batches.clone()), "a step is recorded once");
        assert_eq!(self.state.account().issued(), self.state.account().ended(), "nothing is left in flight");
        assert!(self.trained_samples.keys().copied().eq(batches), "no batch is skipped");
        let written = self.folder.newest().expect("the run ends with a checkpoint");
        assert_eq!(written.consumed, self.trained_samples, "the checkpoint holds what the journal says");
        self.check_journal();
    }
}

fn named(role: &str, number: u32) -> MemberId {
    format!("{role}-{number}").parse().unwrap()
}
