//! The ring as a stage: runs it to its end, then puts the trained policy where the recipe wants it.

use std::path::Path;

use anyhow::Context as _;
use learner::Checkpoints;
use serde_json::Value;
use service::StopSignals;

use super::Done;
use crate::recipe::{RecipeFile, RingStage};
use crate::run::ring;
use crate::say::say;

/// Runs it.
///
/// # Errors
/// When the ring cannot start or go on.
pub(crate) async fn run(
    file: &RecipeFile,
    stage: &RingStage,
    resume: bool,
    stop: &mut StopSignals,
) -> anyhow::Result<Done> {
    ring::run(file, resume, stop).await?;
    let batches = file.recipe.coordinator.batches;
    let Some((checkpoint, trained)) = Checkpoints::new(&file.ring_folder().checkpoints(), 0).newest()? else {
        say("  stopped before the first checkpoint; the same command starts it again");
        return Ok(Done::Stopped);
    };
    if trained.0 < batches && is_ended_by_evaluations(&file.ring_folder().evals()) {
        say(&format!(
            "  ended after batch {} of {batches}: its evaluations are not better any more",
            trained.0
        ));
    } else if trained.0 < batches {
        say(&format!("  stopped after batch {} of {batches}; --resume goes on", trained.0));
        return Ok(Done::Stopped);
    }
    let policy = checkpoint.join("policy");
    copy_folder(&policy, &stage.output)?;
    Ok(Done::Complete)
}

/// Whether the last evaluation says that the run ends with it.
fn is_ended_by_evaluations(evals: &Path) -> bool {
    let text = std::fs::read_to_string(evals).unwrap_or_default();
    let last = text.lines().next_back().and_then(|line| serde_json::from_str::<Value>(line).ok());
    last.is_some_and(|record| record["ends_run"] == true)
}

/// Copies a folder under its final name in one step. Files are linked where the system can: checkpoints are
/// never changed.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    let partial = to.with_extension("partial");
    let copied = link_or_copy(from, &partial, to);
    copied.with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

fn link_or_copy(from: &Path, partial: &Path, to: &Path) -> std::io::Result<()> {
    for stale in [partial, to] {
        if stale.exists() {
            std::fs::remove_dir_all(stale)?;
        }
    }
    std::fs::create_dir_all(partial)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = partial.join(entry.file_name());
        if std::fs::hard_link(entry.path(), &target).is_err() {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    std::fs::rename(partial, to)
}
