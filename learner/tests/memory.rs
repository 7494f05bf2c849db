//! With ZeRO stage 3 no rank ever holds a whole model that it does not need: not when it starts, publishes,
//! writes a checkpoint or goes back to one. The only test of its process, so that nothing else allocates
//! meanwhile; its ranks are threads, so that what is measured is the sum over them. Needs Linux's `/proc`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use std::fs;
use std::sync::{Barrier, Mutex};

use algo::Algorithm;
use learner::{Checkpoints, CriticSource, Device, PpoConfig, Trainer, TrainerConfig, ZeroStage, on_ranks};
use model::{Architecture, Dimensions, ModelConfig, SaveOptions, Weights, folder};
use procfs::process::Process;
use tch::Kind;
use types::BatchId;

const RANKS: usize = 4;

/// Resident bytes of this process now and at its peak.
fn resident() -> (u64, u64) {
    let status = Process::myself().unwrap().status().unwrap();
    (status.vmrss.unwrap() * 1024, status.vmhwm.unwrap() * 1024)
}

/// Measures what all ranks do together.
struct Meter {
    barrier: Barrier,
    before: Mutex<u64>,
    /// Bytes above those before, at the peak and afterwards.
    measured: Mutex<Vec<(f64, f64)>>,
    /// What is counted in.
    unit: f64,
}

impl Meter {
    fn over<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.barrier.wait().is_leader() {
            model::give_back_freed_memory();
            fs::write("/proc/self/clear_refs", "5").unwrap();
            *self.before.lock().unwrap() = resident().0;
        }
        self.barrier.wait();
        let done = work();
        if self.barrier.wait().is_leader() {
            let (now, peak) = resident();
            let before = *self.before.lock().unwrap() as f64;
            let [peak, now] = [peak, now].map(|bytes| (bytes as f64 - before) / self.unit);
            self.measured.lock().unwrap().push((peak, now));
        }
        self.barrier.wait();
        done
    }
}

#[test]
fn no_rank_holds_a_model_that_it_does_not_need() {
    tch::set_num_threads(1);
    let dimensions = Dimensions {
        vocab_size: 3000,
        hidden_size: 512,
        intermediate_size: 1408,
        layers: 12,
        heads: 8,
        kv_heads: 8,
        max_positions: 64,
    };
    let config = ModelConfig::new(Architecture::Llama, dimensions).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy");
    let bytes = {
        let weights = Weights::random(&config, 1, Kind::Float, tch::Device::Cpu);
        folder::save(&policy, &config, &weights, &SaveOptions::default()).unwrap();
        weights.bytes()
    };
    let ppo =
        PpoConfig { algorithm: Algorithm::Grpo, zero_stage: ZeroStage::Weights, ..PpoConfig::default() };
    let meter = Meter {
        barrier: Barrier::new(RANKS),
        before: Mutex::default(),
        measured: Mutex::default(),
        unit: bytes as f64,
    };
    let published = on_ranks(RANKS, Device::Cpu, |group| {
        let trainer = TrainerConfig {
            ppo: ppo.clone(),
            policy: policy.clone(),
            critic: CriticSource::Policy,
            device: tch::Device::Cpu,
        };
        let mut trainer = meter.over(|| Trainer::new(trainer, group))?;
        let published = meter.over(|| trainer.published(Kind::Float))?.len() as u64;
        let checkpoints = Checkpoints::new(&dir.path().join("checkpoints"), 2);
        meter.over(|| checkpoints.save(&trainer, &"run-1".parse().unwrap(), BatchId(1)))?;
        meter.over(|| checkpoints.restore_newest(&mut trainer))?;
        Ok(published)
    });
    assert_eq!(published.unwrap(), [bytes, 0, 0, 0]);
    let measured = meter.measured.into_inner().unwrap();
    println!("{} MB; peak and held, in models, of loading, publishing, saving, restoring", bytes >> 20);
    println!("{measured:.2?}");
    let [loading, publishing, saving, restoring] = measured[..] else { panic!("four were measured") };
    // Weights, gradients and two moments are divided among the ranks: four models in all. Beside them each
    // rank reads a group.
    assert!(loading.0 < 1.3 * 4.0, "loading: {loading:?}");
    // Rank 0's buffer, and on each rank two gathered groups of fourteen, or three until one is freed.
    assert!(publishing.0 < 2.2, "publishing: {publishing:?}");
    // Rank 0's copy, all ranks' moments, and the groups.
    assert!(saving.0 < 3.9, "saving: {saving:?}");
    assert!(restoring.0 < 1.1, "restoring: {restoring:?}");
}
