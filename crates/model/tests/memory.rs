//! Loading maps the files and copies them once: peak memory stays under 1.2 times the model. The only test of
//! its process, so that nothing else allocates meanwhile. Needs Linux's `/proc`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use std::fs;

use model::{Architecture, Dimensions, LoadOptions, ModelConfig, SaveOptions, Weights, folder};
use procfs::process::Process;
use tch::{Device, Kind};

/// Resident bytes of this process now and at its peak.
fn resident() -> (u64, u64) {
    let status = Process::myself().unwrap().status().unwrap();
    (status.vmrss.unwrap() * 1024, status.vmhwm.unwrap() * 1024)
}

#[test]
fn loading_peaks_under_one_and_a_fifth_of_the_model() {
    let dimensions = Dimensions {
        vocab_size: 24_000,
        hidden_size: 1024,
        intermediate_size: 2816,
        layers: 3,
        heads: 16,
        kv_heads: 4,
        max_positions: 128,
    };
    let config = ModelConfig::new(Architecture::Llama, dimensions).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let cases = [(Kind::Half, Kind::BFloat16), (Kind::Float, Kind::Float), (Kind::BFloat16, Kind::Float)];
    for (stored, loaded) in cases {
        let path = parent.path().join(format!("{stored:?}"));
        let options = SaveOptions { shard_bytes: 200_000_000, ..SaveOptions::default() };
        folder::save(&path, &config, &Weights::zeros(&config, stored, Device::Cpu), &options).unwrap();
        // What the allocator keeps of one round would hide part of the next.
        model::give_back_freed_memory();
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let (before, _) = resident();
        let options = LoadOptions { kind: Some(loaded), ..LoadOptions::default() };
        let model = folder::load(&path, &options).unwrap();
        let peak = resident().1 - before;
        let ratio = peak as f64 / model.weights.bytes() as f64;
        println!(
            "{stored:?} as {loaded:?}: {} MB, peak {} MB, {ratio:.3}",
            model.weights.bytes() >> 20,
            peak >> 20
        );
        assert!((0.8..1.2).contains(&ratio), "{stored:?} as {loaded:?}: {ratio}");
    }
}
