//! Policy, critic and what a step does with them.

use std::path::{Path, PathBuf};

use algo::{KlController, PositiveWeight};
use collective::ProcessGroup;
use model::{ModelConfig, ScalarInit};
use tch::{Device, Kind, Tensor};
use types::link::learner::RecentSteps;
use types::{BatchId, PolicyVersion, Sampling};

use crate::checkpoint::Consumed;
use crate::config::{LoraConfig, PpoConfig, Settings};
use crate::error::{Error, Result};
use crate::model_folder::StartModel;
use crate::ranks::Ranks;
use crate::trainable_model::{LoraInit, TrainableModel, TrainableModelOptions};

/// Where the critic comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CriticSource {
    /// A folder: a critic or a reward model keeps its head, a policy gets one of zeros.
    Folder(PathBuf),
    /// The policy's trunk with a head of zeros.
    Policy,
}

/// What a trainer is made from.
#[derive(Debug, Clone)]
pub struct TrainerConfig {
    /// The step.
    pub ppo: PpoConfig,
    /// The policy's folder.
    pub policy: PathBuf,
    /// The critic; not read for algorithms without one.
    pub critic: CriticSource,
    /// Where this rank computes.
    pub device: Device,
}

/// Trains a policy, and with it a critic where the algorithm has one. Lives on one thread, the only one of
/// the process that touches torch.
#[derive(Debug)]
pub struct Trainer {
    pub(crate) config: PpoConfig,
    pub(crate) settings: Settings,
    pub(crate) ranks: Ranks,
    pub(crate) policy: TrainableModel,
    pub(crate) critic: Option<TrainableModel>,
    /// Whose tokenizer files go with the policy.
    pub(crate) policy_folder: PathBuf,
    pub(crate) controller: KlController,
    /// What tokens with a positive advantage weigh.
    pub(crate) positive_weight: PositiveWeight,
    pub(crate) version: PolicyVersion,
    pub(crate) steps: RecentSteps,
    pub(crate) consumed: Consumed,
    pub(crate) last_batch: Option<BatchId>,
    pub(crate) temperature: f64,
    pub(crate) max_new_tokens: usize,
}

impl Trainer {
    /// Loads policy and critic. With a group, all its ranks do so together, from the same folders and
    /// configuration.
    ///
    /// # Errors
    /// The configuration's problems, a folder that cannot be used, ranks that differ, no memory.
    pub fn new(config: TrainerConfig, group: Option<ProcessGroup>) -> Result<Self> {
        let TrainerConfig { mut ppo, policy: folder, critic, device } = config;
        ppo.dtype = Some(ppo.dtype_on(device.into()));
        let problems = ppo.problems();
        let settings = match Settings::of(&ppo) {
            Ok(settings) if problems.is_empty() => settings,
            _ => return Err(Error::Config { problems }),
        };
        let ranks = Ranks::of(group);
        ranks.agree("configuration", format!("{ppo:?}").as_bytes())?;
        let mut options = TrainableModelOptions {
            kind: ppo.dtype_on(device.into()).kind(),
            device,
            zero_stage: ppo.zero_stage,
            recompute: ppo.recompute,
            offload_optimizer: ppo.offload_optimizer,
            lora: lora_init(ppo.critic_lora.as_ref(), ppo.seed),
        };
        let start = StartModel::open_policy(&folder)?;
        let critic = match (ppo.needs_critic(), critic) {
            (false, _) => None,
            (true, CriticSource::Policy) => Some(start.clone()),
            (true, CriticSource::Folder(path)) => Some(StartModel::open(&path)?),
        };
        let critic = match critic.map(|start| start.with_scalar_head(ScalarInit::Zero)) {
            None => None,
            Some(start) => Some(TrainableModel::new("critic", &start, &ranks, &options)?),
        };
        options.lora = lora_init(ppo.lora.as_ref(), ppo.seed);
        let policy = TrainableModel::new("policy", &start, &ranks, &options)?;
        Ok(Self {
            controller: settings.controller(),
            positive_weight: settings.positive_weight,
            config: ppo,
            settings,
            ranks,
            policy,
            critic,
            policy_folder: folder,
            version: PolicyVersion(0),
            steps: RecentSteps::default(),
            consumed: Consumed::default(),
            last_batch: None,
            temperature: 1.0,
            max_new_tokens: usize::try_from(Sampling::default().max_new_tokens()).unwrap_or(usize::MAX),
        })
    }

    /// Tells how the run draws tokens and when it ends: log-probs are taken at the sampling temperature, and
    /// schedules count up to the last batch. Before that a temperature of 1 and a constant schedule apply.
    ///
    /// # Errors
    /// Sampling that training cannot follow: greedy.
    pub fn set_run(&mut self, sampling: &Sampling, last_batch: BatchId) -> Result<()> {
        if sampling.temperature() == 0.0 {
            let problem = "sampling.temperature is 0: greedy rollouts have no log-probs to train on";
            return Err(Error::Config { problems: vec![problem.to_owned()] });
        }
        self.temperature = f64::from(sampling.temperature());
        self.max_new_tokens = usize::try_from(sampling.max_new_tokens()).unwrap_or(usize::MAX);
        self.last_batch = Some(last_batch);
        Ok(())
    }

    /// The number of batches that are part of the weights.
    pub fn version(&self) -> PolicyVersion {
        self.version
    }

    /// What the last steps measured, also those before a checkpoint that was restored.
    pub fn steps(&self) -> &RecentSteps {
        &self.steps
    }

    /// Which responses are part of the weights, also from before a checkpoint that was restored.
    pub fn consumed(&self) -> &Consumed {
        &self.consumed
    }

    /// The ranks that train together.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// The policy's shape.
    pub fn policy_config(&self) -> &ModelConfig {
        self.policy.config()
    }

    /// The folder whose tokenizer and generation files belong to the policy.
    pub(crate) fn policy_folder(&self) -> &Path {
        &self.policy_folder
    }

    /// The policy's weights as a buffer of bytes with elements of `kind`: what is published. Rank 0 alone
    /// has it, the others nothing. All ranks call it together.
    ///
    /// # Errors
    /// A rank that is lost while weights are gathered.
    pub fn published(&self, kind: Kind) -> Result<Vec<u8>> {
        self.policy.packed_on_first(&self.ranks, kind)
    }

    /// The policy's weights by group, `[numel]` each, in the element type it trains in, whole on every rank.
    /// They are views of the buffers that the next step writes, unless they had to be gathered (ZeRO stage 3)
    /// or merged (LoRA); copy them before that step. All ranks call it together.
    ///
    /// # Errors
    /// A rank that is lost while weights are gathered.
    pub fn policy_flats(&self) -> Result<Vec<Tensor>> {
        self.policy.flats(&self.ranks)
    }

    /// The critic's weights by group, as [`policy_flats`](Self::policy_flats); `None` for algorithms without
    /// a critic.
    ///
    /// # Errors
    /// As for the policy.
    pub fn critic_flats(&self) -> Result<Option<Vec<Tensor>>> {
        self.critic.as_ref().map(|critic| critic.flats(&self.ranks)).transpose()
    }
}

fn lora_init(config: Option<&LoraConfig>, seed: u64) -> Option<LoraInit> {
    config.cloned().map(|config| LoraInit { config, seed })
}
