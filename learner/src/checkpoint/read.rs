//! Going back to the newest whole checkpoint.

use std::path::{Path, PathBuf};

use algo::{KlController, PositiveWeight};
use serde::{Deserialize, Serialize};
use tracing::warn;
use types::{BatchId, PolicyVersion};

use super::consumed::{self, Consumed};
use super::manifest::{self, Manifest};
use super::optimizer_shards::OptimizerShards;
use super::{Checkpoints, Error, Resumed, agreement, folders};
use crate::error::Result;
use crate::model_folder::StartModel;
use crate::ppo::Trainer;
use crate::ranks::Ranks;
use crate::trainable_model::TrainableModel;

/// A checkpoint that was found to be whole.
#[derive(Serialize, Deserialize)]
struct WholeCheckpoint {
    path: PathBuf,
    manifest: Manifest,
}

impl Checkpoints {
    /// The newest whole checkpoint and the last batch in its weights; `None` where there is none at all.
    ///
    /// # Errors
    /// A folder with checkpoints of which none is whole.
    pub fn newest(&self) -> std::result::Result<Option<(PathBuf, BatchId)>, Error> {
        Ok(newest_whole(&self.folder)?.map(|found| (found.path, found.manifest.batch)))
    }

    /// Takes a trainer back to the newest whole checkpoint; `None` where there is none, and then nothing
    /// changes. All ranks call it together; their number need not be that of the ranks that wrote it.
    ///
    /// # Errors
    /// A folder with checkpoints of which none is whole; one of another network or algorithm.
    pub fn restore_newest(&self, trainer: &mut Trainer) -> Result<Option<Resumed>> {
        let Some(found) = agreed_newest(&trainer.ranks, &self.folder)? else { return Ok(None) };
        let WholeCheckpoint { path, manifest } = found;
        if manifest.critic_steps.is_some() != trainer.critic.is_some() {
            let reason = "one of it and the configuration has a critic, the other has none".to_owned();
            return Err(Error::Mismatch { path, reason }.into());
        }
        let Trainer { ranks, policy, critic, .. } = trainer;
        let stored = StoredModel {
            checkpoint: &path,
            name: "policy",
            shards: manifest.shards,
            steps: manifest.policy_steps,
        };
        stored.restore(ranks, policy)?;
        if let (Some(critic), Some(steps)) = (critic, manifest.critic_steps) {
            StoredModel { name: "critic", steps, ..stored }.restore(ranks, critic)?;
        }
        if let KlController::Adaptive { coefficient, .. } = &mut trainer.controller {
            *coefficient = manifest.kl_coefficient;
        }
        if let (PositiveWeight::Adaptive { weight, largest, .. }, Some(stored)) =
            (&mut trainer.positive_weight, manifest.positive_weight)
        {
            *weight = stored.min(*largest);
        }
        trainer.version = PolicyVersion(manifest.batch.0);
        trainer.steps = manifest.steps;
        trainer.consumed = match manifest.files.get(consumed::FILE_NAME) {
            Some(_) => Consumed::read(&path.join(consumed::FILE_NAME))?,
            None => Consumed::default(),
        };
        let config_changed = manifest.config_hash != manifest::config_hash(&trainer.config);
        if config_changed && trainer.ranks.rank() == 0 {
            warn!(path = %path.display(), "the configuration has changed since the checkpoint was written");
        }
        Ok(Some(Resumed { path, run: manifest.run, batch: manifest.batch, config_changed }))
    }
}

/// The newest whole checkpoint of a folder; `None` where there is no checkpoint at all.
fn newest_whole(folder: &Path) -> std::result::Result<Option<WholeCheckpoint>, Error> {
    let mut reasons = Vec::new();
    for path in folders::newest_first(folder)? {
        match Manifest::verified(&path) {
            Ok(manifest) => return Ok(Some(WholeCheckpoint { path, manifest })),
            Err(error) => {
                warn!(path = %path.display(), %error, "checkpoint passed over");
                reasons.push(error.to_string());
            }
        }
    }
    if reasons.is_empty() { Ok(None) } else { Err(Error::NoneWhole { folder: folder.to_owned(), reasons }) }
}

/// Rank 0 chooses, because what a rank sees of a shared folder may be behind.
fn agreed_newest(ranks: &Ranks, folder: &Path) -> Result<Option<WholeCheckpoint>> {
    let found = if ranks.rank() == 0 { newest_whole(folder) } else { Ok(None) };
    agreement::of_first(ranks, found)
}

/// What a checkpoint holds of one model.
#[derive(Debug, Clone, Copy)]
struct StoredModel<'a> {
    checkpoint: &'a Path,
    /// The folder of its weights, and the stem of its optimizer shards' names.
    name: &'static str,
    /// Shards of its optimizer state.
    shards: usize,
    /// Optimizer steps done.
    steps: u64,
}

impl StoredModel<'_> {
    /// Gives the model the stored weights and optimizer state.
    fn restore(&self, ranks: &Ranks, target: &mut TrainableModel) -> Result<()> {
        let Self { checkpoint, name, .. } = *self;
        let folder = checkpoint.join(name);
        // Its files have the hashes of the checkpoint's manifest.
        let stored = StartModel::open_verified(&folder)?;
        if model::Layout::new(&stored.config) != model::Layout::new(target.config()) {
            let reason = format!("is a network of another shape than the {name} that is to be trained");
            return Err(Error::Mismatch { path: folder, reason }.into());
        }
        let mut shards = OptimizerShards::open(&checkpoint.join("optimizer"), name, self.shards)?;
        target.restore(ranks, &stored, self.steps, &mut |name, shard| {
            if shards.has(name) { Ok(Some(shards.read(name, shard)?)) } else { Ok(None) }
        })
    }
}
