//! The step on recorded samples (`sluice replay`): what the learner would do with them, written to a folder.

use std::path::{Path, PathBuf};

use algo::Aggregation;
use model::{Device, SaveOptions};
use service::jsonl::WrongLines;
use tracing::warn;
use types::link::learner::StepMetrics;
use types::{Sampling, SamplingParams};

use crate::config::PpoConfig;
use crate::disk::FileError;
use crate::error::{Error, Result};
use crate::ppo::{CriticSource, Trainer, TrainerConfig};
use crate::recorded_batch::read_batch;
use crate::threads::{on_ranks, share_processors};

/// What is replayed.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// The policy's folder.
    pub policy: PathBuf,
    /// The critic's folder; absent, the policy's trunk with a head of zeros.
    pub critic: Option<PathBuf>,
    /// The samples, one JSON object a line: see [`read_batch`](crate::read_batch).
    pub batch: PathBuf,
    /// The step.
    pub config: PpoConfig,
    /// Where `policy/`, `critic/` and `metrics.json` go; neither may be there.
    pub output: PathBuf,
    /// Ranks, as threads of this process.
    pub ranks: usize,
    /// Where to compute.
    pub device: Device,
    /// Temperature the samples were drawn at.
    pub temperature: f32,
    /// The longest response that the run allowed, in tokens; that of the file where it is not said.
    pub max_new_tokens: Option<u32>,
}

/// Trains one batch of recorded samples and writes what comes of it.
///
/// # Errors
/// Bad input, with its place, unless lines that are wrong are passed over; training that diverged; an output
/// folder that cannot be written.
pub fn replay(options: &ReplayOptions, wrong: &WrongLines) -> Result<StepMetrics> {
    for name in ["policy", "critic", "metrics.json"] {
        let path = options.output.join(name);
        if path.exists() {
            return Err(model::folder::Error::Exists(path).into());
        }
    }
    let batch = read_batch(&options.batch, wrong)?;
    let longest = batch.samples().iter().map(|sample| sample.rollout().response_tokens().len()).max();
    let longest = u32::try_from(longest.unwrap_or(1)).unwrap_or(u32::MAX);
    if options.max_new_tokens.is_none() && divides_by_the_longest(&options.config) {
        let algorithm = options.config.algorithm;
        warn!(
            ?algorithm,
            longest,
            "the loss is divided by the longest response of the file, where a run divides by its sampling.max_new_tokens: \
             give it (--max-new-tokens), or norm_tokens"
        );
    }
    share_processors(options.ranks, None);
    let metrics = on_ranks(options.ranks, options.device, |group| {
        let rank = group.as_ref().map_or(0, collective::ProcessGroup::rank);
        let critic = options.critic.clone().map_or(CriticSource::Policy, CriticSource::Folder);
        let config = TrainerConfig {
            ppo: options.config.clone(),
            policy: options.policy.clone(),
            critic,
            device: options.device.of_rank(rank),
        };
        let mut trainer = Trainer::new(config, group)?;
        let max_new_tokens = options.max_new_tokens.unwrap_or(longest);
        let sampling = Sampling::new(SamplingParams {
            temperature: options.temperature,
            max_new_tokens,
            ..SamplingParams::default()
        });
        let sampling = sampling.map_err(|invalid| Error::Config { problems: vec![invalid.to_string()] })?;
        trainer.set_run(&sampling, batch.id())?;
        let metrics = trainer.step(&batch)?;
        write(&trainer, &options.output)?;
        Ok(metrics)
    })?;
    let metrics = metrics.into_iter().next().unwrap_or_default();
    let path = options.output.join("metrics.json");
    let text = serde_json::to_string_pretty(&metrics).expect("metrics are JSON");
    std::fs::write(&path, text + "\n").map_err(FileError::on("write", &path))?;
    Ok(metrics)
}

/// Whether the loss depends on how long a response may be.
fn divides_by_the_longest(config: &PpoConfig) -> bool {
    let aggregation = config.loss_aggregation.unwrap_or(config.algorithm.defaults().aggregation);
    aggregation == Aggregation::SeqMeanTokenSumNorm && config.norm_tokens.is_none()
}

/// Writes the models; rank 0 alone, but all ranks gather.
fn write(trainer: &Trainer, output: &Path) -> Result<()> {
    let companions = Some(trainer.policy_folder().to_owned());
    let options = SaveOptions { companions, ..SaveOptions::default() };
    for (name, trained) in [("policy", Some(&trainer.policy)), ("critic", trainer.critic.as_ref())] {
        let Some(trained) = trained else { continue };
        if let Some(weights) = trained.copy_on_first(trainer.ranks())? {
            model::folder::save(&output.join(name), trained.config(), &weights, &options)?;
        }
    }
    Ok(())
}
