//! The step on recorded samples (`sluice replay`): what the learner would do with them, written to a folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use model::{Device, SaveOptions, Weights};
use serde::Deserialize;
use tch::Tensor;
use types::link::learner::StepMetrics;
use types::{
    Batch, BatchId, FinishReason, PolicyVersion, PromptId, Rollout, RolloutId, Sample, Sampling,
    ScoredRollout, Span,
};

use crate::config::PpoConfig;
use crate::error::{Error, Result};
use crate::lines;
use crate::ppo::{CriticSource, Trainer, TrainerConfig};
use crate::threads::{on_ranks, share_processors};

/// What is replayed.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// The policy's folder.
    pub policy: PathBuf,
    /// The critic's folder; absent, the policy's trunk with a head of zeros.
    pub critic: Option<PathBuf>,
    /// The samples, one JSON object a line: see [`read_batch`].
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
}

/// One recorded sample.
#[derive(Debug, Deserialize)]
struct Record {
    prompt_id: serde_json::Value,
    prompt_tokens: Vec<u32>,
    response_tokens: Vec<u32>,
    rollout_logprobs: Vec<f32>,
    #[serde(default)]
    ref_logprobs: Vec<f32>,
    score: f32,
    #[serde(default = "one")]
    weight: f32,
    surviving_mass: Option<Vec<f32>>,
    finish_reason: Option<FinishReason>,
}

fn one() -> f32 {
    1.0
}

/// Reads recorded samples in the order of the file, as batch 1: `prompt_id` (any JSON value; equal ones are one group),
/// `prompt_tokens`, `response_tokens`, `rollout_logprobs`, `ref_logprobs` (may be absent), `score`, `weight` (1 where absent),
/// and where they are known `surviving_mass` and `finish_reason`. Other fields are ignored.
///
/// # Errors
/// The file and the line of what is missing, of another length or no number.
pub fn read_batch(path: &Path) -> Result<Batch> {
    let mut prompts: HashMap<String, (u64, u16)> = HashMap::new();
    let mut samples = Vec::new();
    lines::read(path, |record: Record| {
        let next = prompts.len() as u64;
        let (ordinal, siblings) = prompts.entry(record.prompt_id.to_string()).or_insert((next, 0));
        let id =
            RolloutId { prompt: PromptId { epoch: 0, ordinal: *ordinal }, sibling: *siblings, attempt: 0 };
        *siblings = siblings.checked_add(1).ok_or("is more than the 65535th sample of its prompt")?;
        samples.push(sample(record, id)?);
        Ok(())
    })?;
    if samples.is_empty() {
        return Err(Error::Line {
            path: path.to_owned(),
            line: 1,
            problem: "the file has no samples".to_owned(),
        });
    }
    // Not `Batch::new`, which would put the samples into the order of their ids.
    Ok(Batch { id: BatchId(1), samples })
}

fn sample(record: Record, id: RolloutId) -> std::result::Result<Sample, String> {
    if !(record.weight.is_finite() && record.weight >= 0.0) {
        return Err(format!("weight is {}, must be at least 0", record.weight));
    }
    let tokens = u32::try_from(record.response_tokens.len()).map_err(|error| error.to_string())?;
    let rollout = Rollout {
        id,
        prompt_tokens: record.prompt_tokens.into(),
        spans: vec![Span { version: PolicyVersion(0), tokens }],
        response_tokens: record.response_tokens,
        rollout_logprobs: record.rollout_logprobs,
        surviving_mass: record.surviving_mass,
        finish_reason: record.finish_reason.unwrap_or(FinishReason::Stop),
        fields: "{}".into(),
    };
    let scored =
        ScoredRollout { rollout, score: record.score, ref_logprobs: record.ref_logprobs, outcome: None };
    let scored = scored.validated().map_err(|invalid| invalid.problem)?;
    Ok(Sample { scored, weight: record.weight })
}

/// Trains one batch of recorded samples and writes what comes of it.
///
/// # Errors
/// Bad input, with its place; training that diverged; an output folder that cannot be written.
pub fn replay(options: &ReplayOptions) -> Result<StepMetrics> {
    for name in ["policy", "critic", "metrics.json"] {
        let path = options.output.join(name);
        if path.exists() {
            return Err(model::folder::Error::Exists(path).into());
        }
    }
    let batch = read_batch(&options.batch)?;
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
        let longest = batch.samples.iter().map(|sample| sample.scored.rollout.response_tokens.len()).max();
        let sampling = Sampling {
            temperature: options.temperature,
            max_new_tokens: u32::try_from(longest.unwrap_or(1)).unwrap_or(u32::MAX),
            ..Sampling::default()
        };
        trainer.set_run(&sampling, batch.id)?;
        let metrics = trainer.step(&batch)?;
        write(&trainer, &options.output)?;
        Ok(metrics)
    })?;
    let metrics = metrics.into_iter().next().unwrap_or_default();
    let path = options.output.join("metrics.json");
    let text = serde_json::to_string_pretty(&metrics).expect("metrics are JSON");
    std::fs::write(&path, text + "\n").map_err(Error::io("write", &path))?;
    Ok(metrics)
}

/// Writes the models; rank 0 alone, but all ranks gather.
fn write(trainer: &Trainer, output: &Path) -> Result<()> {
    let policy = trainer.policy_flats()?;
    let critic = trainer.critic_flats()?;
    if trainer.ranks().rank() > 0 {
        return Ok(());
    }
    let copy = |flats: Vec<Tensor>| flats.iter().map(Tensor::copy).collect();
    let weights = Weights::from_flats(trainer.policy_config(), copy(policy))?;
    let options =
        SaveOptions { companions: Some(trainer.policy_folder().to_owned()), ..SaveOptions::default() };
    model::folder::save(&output.join("policy"), trainer.policy_config(), &weights, &options)?;
    if let (Some(config), Some(flats)) = (trainer.critic_config(), critic) {
        let weights = Weights::from_flats(config, copy(flats))?;
        model::folder::save(&output.join("critic"), config, &weights, &options)?;
    }
    Ok(())
}
