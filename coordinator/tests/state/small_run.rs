//! A small run: its plan, and the weights of its versions.

use std::time::Duration;

use coordinator::state::{BestBy, EvaluationPlan, FiltrationPlan, RunPlan, Schedule};
use types::link::actor::ActorHello;
use types::link::learner::{LearnerHello, RecentSteps};
use types::{
    BatchId, DType, Incarnation, Manifest, MemberId, PolicyVersion, Sampling, TensorEntry, TensorLayout,
    Vocabulary, WeightHash,
};

/// A small plan: 6 batches of 5 prompts, 4 responses each.
pub(crate) fn plan() -> RunPlan {
    RunPlan {
        run: "world".parse().unwrap(),
        seed: 17,
        prompts: 13,
        sets: Vec::new(),
        data_hash: "0".into(),
        shuffle: true,
        schedule: Schedule::default(),
        group_size: 4,
        batch_prompts: 5,
        batches: 6,
        max_staleness: 0,
        max_prompts_in_flight: 64,
        lease_prompts: 2,
        deterministic: false,
        lease_timeout: Duration::from_secs(60),
        heartbeat_timeout: Duration::from_secs(10),
        broadcast_timeout: Duration::from_secs(5),
        broadcast_members: 2,
        drain_timeout: Duration::from_secs(20),
        hopeless_timeout: Duration::from_secs(30),
        hopeless_groups: 100,
        standstill_timeout: Duration::from_secs(600),
        straggler_timeout: Duration::from_secs(300),
        max_attempts: 3,
        min_group: 2,
        filtration: FiltrationPlan::default(),
        max_refill_batches: None,
        send_filtered: false,
        sampling: Sampling::default(),
        evaluation: None,
        episodes: false,
        told: std::collections::BTreeMap::new(),
    }
}

/// Three held-out prompts, every second version.
pub(crate) fn evaluation() -> EvaluationPlan {
    EvaluationPlan {
        prompts: 3,
        data_hash: "1".into(),
        every: 2,
        samples: 2,
        sampling: Sampling::default(),
        best_by: BestBy::Score,
        stop_after: 0,
    }
}

/// The weights of `version` as the learner's `life` made them: a learner that trains a batch again after a
/// crash gets other bits, unless the run is deterministic.
pub(crate) fn manifest(version: u64, life: u64) -> Manifest {
    let mut hash = WeightHash([u8::try_from(version).unwrap(); 32]);
    hash.0[..8].copy_from_slice(&life.to_le_bytes());
    let layout = TensorLayout { name: "w".to_owned(), shape: vec![1], dtype: DType::F32 };
    Manifest::new(PolicyVersion(version), vec![TensorEntry::new(layout, hash).unwrap()]).unwrap()
}

/// Where the learner serves its weights.
pub(crate) const LEARNER_WEIGHTS: &str = "127.0.0.1:3";

/// A learner that has trained nothing and has these weights.
pub(crate) fn learner_hello(incarnation: u64, manifest: Manifest) -> LearnerHello {
    LearnerHello {
        member: "learner".parse().unwrap(),
        incarnation: Incarnation(incarnation),
        run: None,
        world_size: 1,
        trained: BatchId(0),
        checkpointed: BatchId(0),
        manifest,
        steps: RecentSteps::default(),
        store: "127.0.0.1:2".into(),
        weights: LEARNER_WEIGHTS.into(),
        vocabulary: Some(Vocabulary::none()),
        gpu: None,
    }
}

/// An actor's first process, without weights.
pub(crate) fn actor_hello(member: MemberId) -> ActorHello {
    ActorHello {
        member,
        incarnation: Incarnation(1),
        run: None,
        holding: Vec::new(),
        weights: None,
        source: None,
        vocabulary: None,
        gpu: None,
    }
}
