//! Loading a folder for an engine never holds the weights twice. The only test of its process, so that
//! nothing else allocates meanwhile. Needs Linux's `/proc`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use std::fs;

use engine::{EngineConfig, PolicyWeights};
use model::{Architecture, Dimensions, LoadOptions, ModelConfig, SaveOptions, Weights, folder};
use procfs::process::Process;
use tch::{Device, Kind};
use types::{DType, PolicyVersion};

/// Resident bytes of this process now and at its peak.
fn resident() -> (u64, u64) {
    let status = Process::myself().unwrap().status().unwrap();
    (status.vmrss.unwrap() * 1024, status.vmhwm.unwrap() * 1024)
}

#[test]
fn weights_are_prepared_within_one_and_a_fifth_of_the_model() {
    let dimensions = Dimensions {
        vocab_size: 24_000,
        hidden_size: 1024,
        intermediate_size: 2816,
        layers: 4,
        heads: 16,
        kv_heads: 4,
        max_positions: 128,
    };
    let parent = tempfile::tempdir().unwrap();
    let cases = [
        (false, Kind::BFloat16, (DType::F32, Kind::Float)),
        (true, Kind::BFloat16, (DType::Bf16, Kind::BFloat16)),
        (true, Kind::Float, (DType::F32, Kind::Float)),
    ];
    for (tied, stored, (dtype, kind)) in cases {
        let mut config = ModelConfig::new(Architecture::Llama, dimensions).unwrap();
        config.tie_word_embeddings = tied;
        let engine = EngineConfig { dtype: Some(dtype), ..EngineConfig::default() };
        let path = parent.path().join(format!("{tied}-{stored:?}-{dtype:?}"));
        let zeros = Weights::zeros(&config, stored, Device::Cpu);
        let bytes = zeros.numel().unsigned_abs() * dtype.size();
        folder::save(&path, &config, &zeros, &SaveOptions::default()).unwrap();
        drop(zeros);
        // What the allocator keeps of one round would hide part of the next.
        model::give_back_freed_memory();
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let (before, _) = resident();
        let options = LoadOptions { kind: Some(kind), ..LoadOptions::default() };
        let opened = folder::open(&path, &options).unwrap();
        let weights = PolicyWeights::prepare(&config, &opened, PolicyVersion(0), &engine).unwrap();
        let ratio = (resident().1 - before) as f64 / bytes as f64;
        println!("tied {tied}, {stored:?} as {dtype:?}: {} MB, peak {ratio:.3} of it", bytes >> 20);
        assert!((0.8..1.2).contains(&ratio), "tied {tied}, {stored:?} as {dtype:?}: {ratio}");
        drop(weights);
    }
}
