//! What a rank writes of a checkpoint: a copy in memory of its own, which another thread writes beside
//! further steps.

use std::path::{Path, PathBuf};

use model::{ModelConfig, SaveOptions, Weights};
use tch::Tensor;

use super::consumed::{self, Consumed};
use super::manifest::{self, FileEntry, Files};
use super::{Error, optimizer_shards};
use crate::config::LoraConfig;
use crate::disk;
use crate::error::Result;
use crate::host;
use crate::ppo::Trainer;

/// Tensors with their names.
type NamedTensors = Vec<(String, Tensor)>;

/// Copies of everything that a rank writes.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    models: Vec<ModelCopy>,
    /// With LoRA.
    adapter: Option<AdapterCopy>,
    states: Vec<StateCopy>,
    /// What was trained; only rank 0 writes it.
    consumed: Option<Consumed>,
}

/// A model's weights; only rank 0 writes them.
#[derive(Debug)]
struct ModelCopy {
    /// The folder's name.
    name: &'static str,
    config: ModelConfig,
    weights: Weights,
    /// Where the files are that belong to it, such as the tokenizer's.
    companions: Option<PathBuf>,
}

/// The policy's adapters; only rank 0 writes them.
#[derive(Debug)]
struct AdapterCopy {
    config: LoraConfig,
    factors: NamedTensors,
    /// The folder of the weights that they are added to.
    base: PathBuf,
}

/// This rank's shard of a model's optimizer state.
#[derive(Debug)]
struct StateCopy {
    file_name: String,
    tensors: NamedTensors,
}

impl Snapshot {
    /// Copies what this rank writes. All ranks call it together.
    ///
    /// # Errors
    /// A rank that is lost while weights are gathered.
    pub(super) fn of(trainer: &Trainer) -> Result<Self> {
        let ranks = &trainer.ranks;
        let is_first = ranks.rank() == 0;
        let consumed = is_first.then(|| trainer.consumed.clone());
        let mut snapshot = Self { consumed, ..Self::default() };
        for (name, trained) in [("policy", Some(&trainer.policy)), ("critic", trainer.critic.as_ref())] {
            let Some(trained) = trained else { continue };
            if let Some(weights) = trained.copy_on_first(ranks)? {
                let config = trained.config().clone();
                let companions = (name == "policy").then(|| trainer.policy_folder.clone());
                snapshot.models.push(ModelCopy { name, config, weights, companions });
            }
            let shard = trained.state_shard(ranks);
            if is_first || shard.count > 1 {
                let file_name = optimizer_shards::file_name(name, shard.index, shard.count);
                snapshot.states.push(StateCopy { file_name, tensors: trained.snapshot()? });
            }
        }
        let adapters = trainer.policy.adapters(ranks)?;
        if let (Some(adapters), Some(config), true) = (adapters, &trainer.config.lora, is_first) {
            let factors = adapters.into_iter().map(|(name, tensor)| Ok((name, host::copy(&tensor)?)));
            let factors = factors.collect::<Result<_>>()?;
            let base = trainer.policy_folder.clone();
            snapshot.adapter = Some(AdapterCopy { config: config.clone(), factors, base });
        }
        Ok(snapshot)
    }

    /// Writes and flushes everything into the checkpoint's folder `root`, and returns what was written.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub(super) fn write(self, root: &Path) -> std::result::Result<Files, Error> {
        let mut files = Files::new();
        for ModelCopy { name, config, weights, companions } in self.models {
            let folder = root.join(name);
            let options = SaveOptions { companions, ..SaveOptions::default() };
            model::folder::save(&folder, &config, &weights, &options)?;
            files.extend(manifest::files_below(root, &folder)?);
        }
        if let Some(AdapterCopy { config, factors, base }) = &self.adapter {
            let folder = root.join("adapter");
            crate::adapter::write(&folder, config, factors, base)?;
            files.extend(manifest::files_below(root, &folder)?);
        }
        let folder = root.join("optimizer");
        for StateCopy { file_name, tensors } in &self.states {
            let path = folder.join(file_name);
            disk::write_tensors(&path, tensors)?;
            files.insert(format!("optimizer/{file_name}"), FileEntry::of(&path)?);
        }
        disk::sync_folder(&folder)?;
        if let Some(consumed) = &self.consumed {
            let path = root.join(consumed::FILE_NAME);
            consumed.write(&path)?;
            files.insert(consumed::FILE_NAME.to_owned(), FileEntry::of(&path)?);
        }
        Ok(files)
    }
}
