//! A small run: its plan, and the weights of its versions.

use std::time::Duration;

use algo::filtration::Filtration;
use coordinator::state::{RunPlan, Schedule};
use types::{DType, Manifest, PolicyVersion, Sampling, TensorEntry, TensorLayout, WeightHash};

/// A small plan: 6 batches of 5 prompts, 4 responses each.
pub(crate) fn plan() -> RunPlan {
    RunPlan {
        run: "world".parse().unwrap(),
        seed: 17,
        prompts: 13,
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
        max_attempts: 3,
        min_group: 2,
        filtration: Filtration::default(),
        send_filtered: false,
        sampling: Sampling::default(),
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
