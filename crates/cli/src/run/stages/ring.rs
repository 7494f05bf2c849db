//! The ring as a stage: runs it to its end, then puts the trained policy where the recipe wants it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use service::StopSignals;

use super::Done;
use crate::run::recipe::Recipe;
use crate::run::ring::{self, RingFolder};

/// What becomes of the policy.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RingStage {
    /// Folder that the trained policy is put into.
    pub(crate) output: PathBuf,
}

/// Runs it.
///
/// # Errors
/// When the ring cannot start or go on, or left no checkpoint.
pub(crate) async fn run(
    recipe: &Recipe,
    stage: &RingStage,
    resume: bool,
    stop: &mut StopSignals,
) -> anyhow::Result<Done> {
    ring::run(recipe, resume, stop).await?;
    let (checkpoint, trained) = ring::newest_checkpoint(&RingFolder::of(&recipe.output).checkpoints())?;
    if trained.0 < recipe.coordinator.batches {
        eprintln!("  stopped after batch {} of {}; --resume goes on", trained.0, recipe.coordinator.batches);
        return Ok(Done::Stopped);
    }
    let policy = checkpoint.join("policy");
    copy_folder(&policy, &stage.output)?;
    Ok(Done::Complete)
}

/// Removes a ring's journal, checkpoints and logs.
///
/// # Errors
/// When the system refuses.
pub(crate) fn discard(output: &Path) -> anyhow::Result<()> {
    super::discard(RingFolder::of(output).root(), output)
}

/// Copies a folder under its final name in one step. Files are linked where the system can: checkpoints are never changed.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    let partial = to.with_extension("partial");
    let copy = || -> std::io::Result<()> {
        for stale in [&partial, &to.to_owned()] {
            if stale.exists() {
                std::fs::remove_dir_all(stale)?;
            }
        }
        std::fs::create_dir_all(&partial)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            let target = partial.join(entry.file_name());
            if std::fs::hard_link(entry.path(), &target).is_err() {
                std::fs::copy(entry.path(), &target)?;
            }
        }
        std::fs::rename(&partial, to)
    };
    copy().with_context(|| format!("copy {} to {}", from.display(), to.display()))
}
