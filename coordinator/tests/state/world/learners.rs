//! Learners: usually one, sometimes a second one or one that was stopped and wakes, over one folder of
//! checkpoints.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ::coordinator::state::{BatchPlan, Event, LearnerEvent, Role};
use rand::RngExt;
use types::link::learner::{LearnerCommand, LearnerHello, LearnerReport, MeasuredStep, StepMetrics};
use types::{BatchId, Incarnation, LearnerTerm, Manifest, MemberId, PromptId, Vocabulary};

use super::streams::{Down, Up};
use super::{Process, World};
use crate::small_run::manifest;

/// What was trained, by batch.
type Consumed = BTreeMap<BatchId, BTreeSet<(PromptId, u16)>>;

pub(super) struct SimLearner {
    pub(super) member: MemberId,
    pub(super) process: Process,
    /// What the coordinator granted it.
    term: Option<LearnerTerm>,
    /// The weights it holds.
    pub(super) manifest: Manifest,
    consumed: Consumed,
    checkpointed: u64,
    /// Another process for each, whose bits differ.
    life: u64,
    queue: VecDeque<BatchPlan>,
}

/// A checkpoint.
#[derive(Debug, Clone)]
pub(super) struct SimCheckpoint {
    batch: u64,
    pub(super) consumed: Consumed,
    manifest: Manifest,
    /// The coordinator was told of it.
    is_reported: bool,
}

/// The folder of checkpoints that all learners write to.
#[derive(Debug, Default)]
pub(super) struct SimFolder {
    checkpoints: BTreeMap<u64, SimCheckpoint>,
    /// The newest term that a learner had.
    term: LearnerTerm,
    /// Lives so far.
    lives: u64,
}

impl SimFolder {
    pub(super) fn newest(&self) -> Option<&SimCheckpoint> {
        self.checkpoints.values().next_back()
    }

    fn newest_mut(&mut self) -> Option<&mut SimCheckpoint> {
        self.checkpoints.values_mut().next_back()
    }
}

impl SimLearner {
    /// A learner that starts from the model.
    pub(super) fn new(member: MemberId, incarnation: u64) -> Self {
        Self {
            member,
            process: Process { incarnation, ..Process::default() },
            term: None,
            manifest: manifest(0, 0),
            consumed: Consumed::new(),
            checkpointed: 0,
            life: 0,
            queue: VecDeque::new(),
        }
    }

    fn trained(&self) -> u64 {
        self.manifest.version().0
    }

    fn hello(&self) -> LearnerHello {
        let step = |batch| MeasuredStep { batch: BatchId(batch), metrics: StepMetrics::default() };
        LearnerHello {
            member: self.member.clone(),
            incarnation: Incarnation(self.process.incarnation),
            run: None,
            world_size: 1,
            trained: BatchId(self.trained()),
            checkpointed: BatchId(self.checkpointed),
            manifest: self.manifest.clone(),
            steps: (1..=self.trained()).map(step).collect(),
            store: "127.0.0.1:2".into(),
            weights: "127.0.0.1:3".into(),
            vocabulary: Some(Vocabulary::none()),
            gpu: None,
        }
    }
}

fn report(report: LearnerReport) -> Up {
    Up::Report(Event::Learner(LearnerEvent::Report(report)))
}

impl World {
    /// A learner's process starts under the usual name, from the newest checkpoint that it can read.
    pub(super) fn start_learner(&mut self) {
        self.start_learner_as("learner".parse().unwrap());
    }

    pub(super) fn start_learner_as(&mut self, member: MemberId) {
        if self.per_mille(self.faults.damaged_checkpoints)
            && self.folder.newest().is_some_and(|newest| !newest.is_reported)
        {
            self.folder.checkpoints.pop_last();
        }
        let process = self.new_process(2_000);
        let mut learner = SimLearner::new(member, process.incarnation);
        learner.process = process;
        if !self.state.plan().deterministic {
            self.folder.lives += 1;
            learner.life = self.folder.lives;
        }
        if let Some(newest) = self.folder.newest_mut() {
            // Its hello says so.
            newest.is_reported = true;
            learner.manifest = newest.manifest.clone();
            learner.consumed = newest.consumed.clone();
            learner.checkpointed = newest.batch;
        }
        self.learners.push(learner);
    }

    /// The process at `place` ends.
    pub(super) fn end_learner(&mut self, place: usize) {
        let learner = self.learners.remove(place);
        self.break_stream(learner.process.stream);
    }

    /// Its checkpoint is lost: it starts from the model, which the coordinator cannot accept.
    pub(crate) fn learner_rejoins_from_nothing(&mut self) -> Vec<::coordinator::state::Effect> {
        self.end_learner(0);
        let incarnation = self.machine_clock();
        let learner = SimLearner::new("learner".parse().unwrap(), incarnation);
        let hello = learner.hello();
        self.learners.push(learner);
        self.deliver(Event::Learner(LearnerEvent::Joined(hello)))
    }

    pub(super) fn learner_turn(&mut self, place: usize) {
        if self.learners[place].process.asleep_until > self.now {
            return;
        }
        while let Some(number) = self.learners[place].process.stream
            && let Some(command) = self.streams.take_down(number, self.now)
        {
            if !self.command_sim_learner(place, command) {
                return self.end_learner(place);
            }
        }
        if self.learners[place].process.stream.is_none() && self.percent(40) && self.coordinator.is_up() {
            let member = self.learners[place].member.clone();
            let number = self.streams.open(Role::Learner, member);
            self.learners[place].process.stream = Some(number);
            let hello = self.learners[place].hello();
            self.say(Some(number), Up::Hello(Event::Learner(LearnerEvent::Joined(hello))));
        }
        if self.percent(50) && self.learners[place].term.is_some() && !self.learner_works(place) {
            return self.end_learner(place);
        }
        self.learner_says(place, LearnerReport::Alive(types::link::learner::LearnerPhase::Waiting));
    }

    fn learner_says(&mut self, place: usize, said: LearnerReport) {
        let stream = self.learners[place].process.stream;
        self.say(stream, report(said));
    }

    /// Does what it is told; whether the process goes on.
    fn command_sim_learner(&mut self, place: usize, command: Down) -> bool {
        let command = match command {
            Down::Closed { refused } => {
                self.learners[place].process.stream = None;
                return !refused;
            }
            Down::Batch(plan) => {
                let learner = &mut self.learners[place];
                let has = learner.queue.back().map_or(learner.trained(), |last| last.id.0);
                if plan.id.0 > has {
                    assert_eq!(plan.id.0, has + 1, "invariant 2: in order");
                    learner.queue.push_back(plan);
                }
                return true;
            }
            Down::Learner(command) => command,
            Down::Actor(_) | Down::Lease(_) | Down::Reward(_) => unreachable!("not for a learner"),
        };
        match command {
            LearnerCommand::Welcome { term, .. } => {
                let known = self.learners[place].term.replace(term);
                assert!(known.is_none_or(|known| known <= term), "terms grow");
                self.folder.term = self.folder.term.max(term);
            }
            LearnerCommand::JoinBroadcastGroup(group) => {
                self.learner_says(place, LearnerReport::BroadcastGroupReady(group.id));
            }
            LearnerCommand::Publish { group, version } => {
                let published = LearnerReport::Published { group, version, seconds: 0.1 };
                self.learner_says(place, published);
            }
            LearnerCommand::LeaveBroadcastGroup(_) | LearnerCommand::KeepBest(_) => {}
            LearnerCommand::Checkpoint => return self.write_checkpoint(place),
            LearnerCommand::Finish => return false,
            LearnerCommand::Batch(_) => unreachable!("batches come as plans"),
        }
        true
    }

    fn weights_of(&self, version: u64, life: u64) -> Manifest {
        let trained = manifest(version, life);
        if self.learning_changes_weights {
            return trained;
        }
        let tensors = manifest(0, 0).tensors().to_vec();
        Manifest::new(trained.version(), tensors).unwrap()
    }

    /// Trains a batch, or makes up for a checkpoint that could not be written; whether the process goes on.
    fn learner_works(&mut self, place: usize) -> bool {
        let Some(plan) = self.learners[place].queue.pop_front() else {
            let learner = &self.learners[place];
            let is_last = BatchId(learner.trained()) == self.state.plan().last_batch();
            let lacks = is_last && learner.checkpointed < learner.trained();
            return !lacks || self.write_checkpoint(place);
        };
        let weights = self.weights_of(plan.id.0, self.learners[place].life);
        let trains = plan.samples.iter().filter(|sample| sample.weight > 0.0);
        let ids = trains.map(|sample| (sample.id.prompt, sample.id.sibling)).collect();
        let learner = &mut self.learners[place];
        learner.manifest = weights.clone();
        assert!(learner.consumed.insert(plan.id, ids).is_none(), "{} is trained once per history", plan.id);
        // A process that dies may not get to say what it did.
        if self.per_mille(self.faults.learner_dies_after_step) {
            let writes = self.percent(50);
            if writes {
                self.write_checkpoint(place);
            }
            return false;
        }
        self.learner_says(
            place,
            LearnerReport::Trained { batch: plan.id, manifest: weights, metrics: Box::default() },
        );
        let writes = self.percent(40) || plan.id == self.state.plan().last_batch();
        !writes || self.write_checkpoint(place)
    }

    /// Writes a checkpoint, unless a learner of a newer term writes here; whether the process goes on.
    fn write_checkpoint(&mut self, place: usize) -> bool {
        if self.learners[place].term.is_none_or(|term| term < self.folder.term) {
            return false;
        }
        let batch = self.learners[place].trained();
        if batch > 0 && self.learners[place].checkpointed == batch {
            // The newest one holds everything: it says so again.
            self.learner_says(place, LearnerReport::Checkpointed(BatchId(batch)));
            return true;
        }
        if batch == 0 || self.per_mille(self.faults.checkpoints) {
            // No room: it goes on without, and tries again.
            return true;
        }
        let dies = self.per_mille(self.faults.learner_dies_after_step);
        let learner = &self.learners[place];
        let checkpoint = SimCheckpoint {
            batch,
            consumed: learner.consumed.clone(),
            manifest: learner.manifest.clone(),
            is_reported: !dies,
        };
        self.folder.checkpoints.insert(batch, checkpoint);
        self.learners[place].checkpointed = batch;
        if !dies {
            self.learner_says(place, LearnerReport::Checkpointed(BatchId(batch)));
        }
        !dies
    }

    /// Every learner but the newest is ended.
    pub(super) fn keep_one_learner(&mut self) {
        while self.learners.len() > 1 {
            let oldest =
                (0..self.learners.len()).min_by_key(|place| self.learners[*place].process.incarnation);
            self.end_learner(oldest.unwrap());
        }
    }

    /// A learner at random is stopped, and whoever watches it starts another.
    pub(super) fn replace_stopped_learner(&mut self, most_millis: u64) {
        if self.learners.is_empty() {
            return;
        }
        let place = self.rng.random_range(0..self.learners.len());
        self.learners[place].process.asleep_until = self.soon(most_millis);
        self.start_learner();
    }
}
