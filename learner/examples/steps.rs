//! Trains the same recorded batch again and again and prints each step's seconds, for `bench/step`:
//!
//!     steps POLICY CRITIC BATCH.jsonl CONFIG.json COUNT [RANKS [DEVICE]]
//!
//! Prints one JSON object a step, by rank 0: its number, its seconds, and the process's memory now and at its
//! peak, in bytes.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use learner::{CriticSource, Device, Trainer, TrainerConfig, on_ranks, read_batch};
use procfs::process::Process;
use service::jsonl::WrongLines;
use types::{Batch, BatchId, SamplingParams};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [policy, critic, batch, config, count, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: steps POLICY CRITIC BATCH.jsonl CONFIG.json COUNT [RANKS [DEVICE]]");
    };
    let ranks = rest.first().map_or(Ok(1), |ranks| ranks.parse())?;
    let device: Device = rest.get(1).map_or(Ok(Device::Cpu), |device| device.parse())?;
    let count: u64 = count.parse()?;
    let ppo: learner::PpoConfig =
        serde_json::from_slice(&std::fs::read(config)?).with_context(|| format!("read {config}"))?;
    let batch = read_batch(Path::new(batch), &WrongLines::default())?;
    let trainer = TrainerConfig {
        ppo,
        policy: PathBuf::from(policy),
        critic: CriticSource::Folder(PathBuf::from(critic)),
        device: device.to_torch(),
    };
    let processors = std::thread::available_parallelism()?.get();
    tch::set_num_threads(i32::try_from((processors / ranks).max(1))?);
    on_ranks(ranks, Device::Cpu, |group| {
        let mut trainer = Trainer::new(trainer.clone(), group)?;
        let sampling = SamplingParams { max_new_tokens: 512, ..SamplingParams::default() };
        trainer.set_run(&sampling.try_into().expect("512 tokens are in range"), BatchId(count))?;
        for step in 1..=count {
            let samples = batch.samples().to_vec();
            let batch = Batch::in_recorded_order(BatchId(step), samples).expect("it was a batch before");
            let metrics = trainer.step(&batch)?;
            if trainer.ranks().rank() == 0 {
                let [now, peak] = memory();
                println!(
                    "{{\"step\": {step}, \"seconds\": {:.6}, \"memory\": {now}, \"peak\": {peak}}}",
                    metrics.step_seconds
                );
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Resident memory of this process, now and at its peak, in bytes; 0 where the system does not say.
fn memory() -> [u64; 2] {
    let status = Process::myself().and_then(|process| process.status());
    status
        .map_or([0, 0], |status| [status.vmrss, status.vmhwm].map(|kilobytes| 1024 * kilobytes.unwrap_or(0)))
}
