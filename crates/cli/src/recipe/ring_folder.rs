//! Where a ring keeps its things, below a run's output folder: the first one of a recipe in `ring`, each
//! further one in `ring-NAME`, so that what is added to a recipe moves nothing.

use std::path::{Path, PathBuf};

/// The folder of a run's ring.
#[derive(Debug, Clone)]
pub(crate) struct RingFolder(PathBuf);

impl RingFolder {
    /// That of a recipe's first ring, below a run's output folder.
    pub(crate) fn of(output: &Path) -> Self {
        Self(output.join("ring"))
    }

    /// That of a further ring.
    pub(super) fn of_further(output: &Path, stage: &str) -> Self {
        Self(output.join(format!("ring-{stage}")))
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    /// The coordinator's journal.
    pub(crate) fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }

    /// The learner's checkpoints, one folder each.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// One JSON line per training step.
    pub(crate) fn steps(&self) -> PathBuf {
        self.0.join("steps.jsonl")
    }

    /// One JSON line per evaluation.
    pub(crate) fn evals(&self) -> PathBuf {
        self.0.join("evals.jsonl")
    }

    /// Some responses of each batch, for people.
    pub(crate) fn samples(&self) -> PathBuf {
        self.0.join("samples.jsonl")
    }

    /// What the processes log, one file each.
    pub(crate) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// What the processes are told, one file each.
    pub(crate) fn configs(&self) -> PathBuf {
        self.0.join("config")
    }

    /// Where a process says on which addresses it listens.
    pub(crate) fn address_file(&self, process: &str) -> PathBuf {
        self.0.join(format!("{process}.address.json"))
    }
}

/// Whether a ring's folder holds a trained batch or a checkpoint.
pub(crate) fn holds_training(root: &Path) -> bool {
    let has_steps = std::fs::metadata(root.join("steps.jsonl")).is_ok_and(|steps| steps.len() > 0);
    let checkpoints = std::fs::read_dir(root.join("checkpoints")).into_iter().flatten().flatten();
    has_steps || checkpoints.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
}
