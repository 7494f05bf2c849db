//! Reading the newest whole checkpoint.

use std::path::{Path, PathBuf};

use algo::KlController;
use model::LoadOptions;
use tracing::warn;
use types::{BatchId, PolicyVersion};

use super::manifest::{self, Manifest};
use super::parts::Parts;
use super::write::PREFIX;
use super::{Checkpoints, Error, Resumed};
use crate::error::Result;
use crate::ppo::Trainer;
use crate::ranks::Ranks;
use crate::trainee::Trainee;

/// The checkpoints of a folder by name, the newest first; none where there is no folder.
pub(super) fn newest_first(folder: &Path) -> std::result::Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", folder)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", folder))?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|step| step.parse::<u64>().ok());
        if let Some(number) = number {
            found.push((number, entry.path()));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The newest whole checkpoint of a folder and its manifest; `None` where there is no checkpoint at all.
fn newest_whole(folder: &Path) -> std::result::Result<Option<(PathBuf, Manifest)>, Error> {
    let mut reasons = Vec::new();
    for path in newest_first(folder)? {
        match Manifest::verified(&path) {
            Ok(manifest) => return Ok(Some((path, manifest))),
            Err(error) => {
                warn!(path = %path.display(), %error, "checkpoint passed over");
                reasons.push(error.to_string());
            }
        }
    }
    if reasons.is_empty() { Ok(None) } else { Err(Error::NoneWhole { folder: folder.to_owned(), reasons }) }
}

impl Checkpoints {
    /// The newest whole checkpoint and the last batch in its weights; `None` where there is none at all.
    ///
    /// # Errors
    /// A folder with checkpoints of which none is whole.
    pub fn newest(&self) -> std::result::Result<Option<(PathBuf, BatchId)>, Error> {
        Ok(newest_whole(&self.folder)?.map(|(path, manifest)| (path, manifest.batch)))
    }

    /// Takes a trainer back to the newest whole checkpoint; `None` where there is none, and then nothing changes. All ranks
    /// call it together; their number need not be that of the ranks that wrote it.
    ///
    /// # Errors
    /// A folder with checkpoints of which none is whole; one of another network or algorithm.
    pub fn restore_newest(&self, trainer: &mut Trainer) -> Result<Option<Resumed>> {
        let Some((path, manifest)) = chosen(&trainer.ranks, &self.folder)? else { return Ok(None) };
        if manifest.critic_steps.is_some() != trainer.critic.is_some() {
            let reason = "one of it and the configuration has a critic, the other has none".to_owned();
            return Err(Error::Mismatch { path, reason }.into());
        }
        let Trainer { ranks, policy, critic, .. } = trainer;
        restore(ranks, policy, (&path, "policy"), (manifest.parts, manifest.policy_steps))?;
        if let (Some(critic), Some(steps)) = (critic, manifest.critic_steps) {
            restore(ranks, critic, (&path, "critic"), (manifest.parts, steps))?;
        }
        if let KlController::Adaptive { coefficient, .. } = &mut trainer.controller {
            *coefficient = manifest.kl_coefficient;
        }
        trainer.version = PolicyVersion(manifest.batch.0);
        trainer.steps = manifest.steps;
        let config_changed = manifest.config_hash != manifest::config_hash(&trainer.config);
        if config_changed && trainer.ranks.rank() == 0 {
            warn!(path = %path.display(), "the configuration has changed since the checkpoint was written");
        }
        Ok(Some(Resumed { path, run: manifest.run, batch: manifest.batch, config_changed }))
    }
}

/// Rank 0 chooses, because what a rank sees of a shared folder may be behind; the others wait for its word.
fn chosen(ranks: &Ranks, folder: &Path) -> Result<Option<(PathBuf, Manifest)>> {
    let found = if ranks.rank() == 0 { newest_whole(folder) } else { Ok(None) };
    let word: std::result::Result<Option<(&PathBuf, &Manifest)>, String> = match &found {
        Ok(found) => Ok(found.as_ref().map(|(path, manifest)| (path, manifest))),
        Err(error) => Err(error.to_string()),
    };
    let bytes = ranks.of_first(serde_json::to_vec(&word).expect("a manifest is JSON"))?;
    let found = found?;
    if ranks.rank() == 0 {
        return Ok(found);
    }
    let word: std::result::Result<Option<(PathBuf, Manifest)>, String> =
        serde_json::from_slice(&bytes).map_err(|error| Error::Rank { rank: 0, reason: error.to_string() })?;
    Ok(word.map_err(|reason| Error::Rank { rank: 0, reason })?)
}

fn restore(
    ranks: &Ranks,
    trainee: &mut Trainee,
    (checkpoint, name): (&Path, &'static str),
    (parts, steps): (usize, u64),
) -> Result<()> {
    let folder = checkpoint.join(name);
    let loaded = model::folder::load(&folder, &LoadOptions { verify: false, ..LoadOptions::default() })?;
    let (found, expected) = (model::Layout::new(&loaded.config), model::Layout::new(trainee.config()));
    if found != expected {
        let reason = format!("is a network of another shape than the {name} that is to be trained");
        return Err(Error::Mismatch { path: folder, reason }.into());
    }
    let mut parts = Parts::open(&checkpoint.join("optimizer"), name, parts)?;
    trainee.restore(ranks, (loaded.weights.flats(), steps), &mut |name, cut| {
        if parts.has(name) { Ok::<_, crate::Error>(Some(parts.read(name, cut)?)) } else { Ok(None) }
    })
}
