//! A learner: it trains batch after batch, writes a checkpoint after each, and starts again from the newest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::pb::coordinator_client::CoordinatorClient;
use proto::{LearnerCommands, MAX_MESSAGE_BYTES, pb};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use service::LinkEvent;
use tokio::time::{interval, sleep};
use types::link::learner::{
    LearnerCommand, LearnerHello, LearnerPhase, LearnerReport, MeasuredStep, StepMetrics,
};
use types::{
    Batch, BatchId, DType, Incarnation, Manifest, MemberId, PolicyVersion, RolloutId, TensorEntry,
    TensorLayout, Vocabulary, WeightHash,
};

use super::{World, wire};

const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Longest step, in milliseconds.
const LONGEST_STEP: u64 = 800;

struct Learner {
    member: MemberId,
    incarnation: Incarnation,
    /// What its weights were trained on.
    consumed: BTreeMap<BatchId, BTreeSet<RolloutId>>,
    is_over: bool,
}

pub(super) async fn run(world: World, member: MemberId, incarnation: Incarnation, mut rng: ChaCha8Rng) {
    let mut link = wire::link::<pb::LearnerReport, pb::LearnerCommand>(|channel, request| {
        let client = CoordinatorClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Box::pin(async move { { client }.learn(request).await })
    });
    let consumed = world.with(|outside| outside.checkpoint.clone());
    let mut learner = Learner { member, incarnation, consumed, is_over: false };
    let mut parts = LearnerCommands::default();
    let mut beats = interval(HEARTBEAT_INTERVAL);
    while !learner.is_over {
        let command = tokio::select! {
            event = link.next() => match event {
                LinkEvent::Due => {
                    parts = LearnerCommands::default();
                    link.connect::<()>(learner.hello().into()).await;
                    None
                }
                LinkEvent::Command(message) => parts.push(message).unwrap(),
                LinkEvent::Lost(_) => {
                    world.with(|outside| outside.broken += 1);
                    None
                }
                LinkEvent::Refused(reason) | LinkEvent::GaveUp(reason) => panic!("{reason}"),
            },
            _ = beats.tick() => {
                link.report(LearnerReport::Alive(LearnerPhase::Waiting).into()).await;
                None
            }
        };
        let Some(command) = command else { continue };
        if let LearnerCommand::Batch(_) = &command {
            // Killed here, it trains the batch again.
            sleep(Duration::from_millis(rng.random_range(0..LONGEST_STEP))).await;
        }
        for report in learner.obey(&world, command) {
            link.report(report.into()).await;
        }
    }
}

impl Learner {
    fn trained(&self) -> BatchId {
        self.consumed.keys().next_back().copied().unwrap_or(BatchId(0))
    }

    fn hello(&self) -> LearnerHello {
        let step = |batch| MeasuredStep { batch: BatchId(batch), metrics: StepMetrics::default() };
        LearnerHello {
            member: self.member.clone(),
            incarnation: self.incarnation,
            run: None,
            world_size: 1,
            trained: self.trained(),
            checkpointed: self.trained(),
            manifest: manifest(self.trained().0),
            steps: (1..=self.trained().0).map(step).collect(),
            store: "learner:2".into(),
            weights: "learner:3".into(),
            vocabulary: Some(Vocabulary::none()),
            gpu: None,
        }
    }

    /// Does what it is told; what it answers.
    fn obey(&mut self, world: &World, command: LearnerCommand) -> Vec<LearnerReport> {
        match command {
            LearnerCommand::Batch(batch) => self.train(world, &batch),
            LearnerCommand::JoinBroadcastGroup(group) => vec![LearnerReport::BroadcastGroupReady(group.id)],
            LearnerCommand::Publish { group, version } => {
                vec![LearnerReport::Published { group, version, seconds: 0.1 }]
            }
            LearnerCommand::Checkpoint => vec![LearnerReport::Checkpointed(self.trained())],
            LearnerCommand::Finish => {
                self.is_over = true;
                Vec::new()
            }
            LearnerCommand::Welcome { .. }
            | LearnerCommand::LeaveBroadcastGroup(_)
            | LearnerCommand::KeepBest(_) => Vec::new(),
        }
    }

    fn train(&mut self, world: &World, batch: &Batch) -> Vec<LearnerReport> {
        let id = batch.id();
        let trains = batch.samples().iter().filter(|sample| sample.weight() > 0.0);
        let ids: BTreeSet<RolloutId> = trains.map(|sample| sample.scored().rollout().id()).collect();
        assert!(!ids.is_empty(), "batch {id} trains nothing");
        let first = world.with(|outside| outside.sent.entry(id).or_insert_with(|| ids.clone()).clone());
        assert_eq!(first, ids, "batch {id} is the same whenever it is sent");
        if id <= self.trained() {
            // It was on the way when the hello said so.
            return Vec::new();
        }
        assert_eq!(id.0, self.trained().0 + 1, "batches come in order");
        self.consumed.insert(id, ids);
        world.with(|outside| outside.checkpoint = self.consumed.clone());
        let trained = LearnerReport::Trained { batch: id, manifest: manifest(id.0), metrics: Box::default() };
        vec![trained, LearnerReport::Checkpointed(id)]
    }
}

/// The weights of a version.
fn manifest(version: u64) -> Manifest {
    let hash = WeightHash([u8::try_from(version).unwrap(); 32]);
    let layout = TensorLayout { name: "w".to_owned(), shape: vec![1], dtype: DType::F32 };
    Manifest::new(PolicyVersion(version), vec![TensorEntry::new(layout, hash).unwrap()]).unwrap()
}
