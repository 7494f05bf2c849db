//! Checkpoints: everything that the next step depends on, whole or not at all (docs/decisions.md, D9).
//!
//! ```text
//! <folder>/step-00000012/
//!     manifest.json                                hashes of everything below and of itself, steps, configuration
//!     policy/  critic/                             Hugging Face folders
//!     adapter/                                     with LoRA: a PEFT folder (policy/ is merged)
//!     optimizer/policy-00000-of-00002.safetensors  one shard a rank, of every group
//!     consumed.jsonl                               which responses are part of the weights, by batch
//! <folder>/writer.json                             the learner that writes here
//! <folder>/best.json                               which checkpoint is kept because none was better
//! ```
//!
//! Invariants:
//! 1. A folder under its final name was whole when it got that name: everything is written and flushed under
//!    another name, the manifest last, then renamed, then the parent is flushed.
//! 2. What is loaded has the hashes of its manifest. A checkpoint that has not is passed over for the one
//!    before it.
//! 3. Training goes on from a checkpoint as it would have without the interruption, bit for bit on the same
//!    number of ranks; on another number, up to the rounding of sums.
//! 4. With several ranks the folder is one that all of them see.
//! 5. Of several learners only the one that the coordinator admitted last writes.

mod agreement;
mod best;
mod consumed;
mod fence;
mod folders;
mod manifest;
mod optimizer_shards;
mod read;
mod snapshot;
mod write;

use std::path::{Path, PathBuf};

use types::{BatchId, LearnerTerm, RunId};

use crate::disk::FileError;

pub use consumed::Consumed;
pub use fence::Writer;
pub(crate) use optimizer_shards::{OptimizerShards, file_name as optimizer_file_name};
pub use write::{PendingCheckpoint, WrittenCheckpoint};

/// The fewest checkpoints that are kept.
const MIN_KEPT_COUNT: usize = 2;

/// The checkpoints of a run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    /// The learner that writes, where a coordinator has admitted it.
    writer: Option<Writer>,
}

impl Checkpoints {
    /// Those in `folder`, of which the newest `keep`, at least 2, are kept: the newest may be damaged by what
    /// stopped the learner.
    pub fn new(folder: &Path, keep: usize) -> Self {
        Self { folder: folder.to_owned(), keep: keep.max(MIN_KEPT_COUNT), writer: None }
    }

    /// Where they are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A coordinator has admitted this learner: it alone writes here from now on. Rank 0 says so in the
    /// folder; all ranks call it.
    ///
    /// # Errors
    /// A newer learner that writes here; what the system refuses.
    pub fn claim(&mut self, writer: Writer, is_first: bool) -> Result<(), Error> {
        if is_first {
            fence::claim(&self.folder, writer)?;
        }
        self.writer = Some(writer);
        Ok(())
    }

    /// Checks that no newer learner writes here.
    fn check_writer(&self) -> Result<(), Error> {
        self.writer.map_or(Ok(()), |writer| fence::check(&self.folder, writer))
    }
}

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that the operating system refused.
    #[error("checkpoint: {0}")]
    Io(FileError),
    /// A file is not what was written.
    #[error("checkpoint {path}: {reason}")]
    Damaged {
        /// The checkpoint or the file.
        path: PathBuf,
        /// What differs from what was expected.
        reason: String,
    },
    /// There are checkpoints, but none that can be used. Training anew would throw them away silently.
    #[error(
        "no checkpoint in {folder} is whole; move them away to start anew:\n  - {}",
        reasons.join("\n  - ")
    )]
    NoneWhole {
        /// Where they are.
        folder: PathBuf,
        /// What is wrong with each.
        reasons: Vec<String>,
    },
    /// A checkpoint of something else than what is to be trained.
    #[error("checkpoint {path}: {reason}")]
    Mismatch {
        /// The checkpoint, or the folder of the model in it.
        path: PathBuf,
        /// What differs from what was expected.
        reason: String,
    },
    /// Another rank failed.
    #[error("checkpoint: rank {rank}: {reason}")]
    Rank {
        /// The rank, from 0.
        rank: usize,
        /// The other rank's error.
        reason: String,
        /// It found no room on the disk.
        is_disk_full: bool,
    },
    /// Another learner has taken this one's place.
    #[error(
        "learner {theirs} writes checkpoints in {folder}, this process is learner {ours}: it was stopped or cut off \
         when the coordinator admitted the other one, and has to end"
    )]
    Superseded {
        /// Where they are.
        folder: PathBuf,
        /// What this process is.
        ours: LearnerTerm,
        /// What the one is that writes.
        theirs: LearnerTerm,
    },
    /// A model's folder cannot be written or read.
    #[error(transparent)]
    Folder(#[from] model::folder::Error),
    /// Bytes cannot become tensors.
    #[error(transparent)]
    Raw(#[from] model::raw::Error),
    /// The thread that writes is gone.
    #[error("checkpoint: the writing thread ended without a result")]
    Writer,
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        Self::Io(error)
    }
}

impl Error {
    /// Whether there was no room on the disk: then nothing is lost, and the next try may succeed.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Rank { is_disk_full, .. } => *is_disk_full,
            Self::Io(error) => service::is_disk_full(error),
            other => service::is_disk_full(other),
        }
    }

    fn damaged(path: PathBuf, reason: impl ToString) -> Self {
        Self::Damaged { path, reason: reason.to_string() }
    }
}

/// A checkpoint that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumed {
    /// Its folder.
    pub path: PathBuf,
    /// The run it belongs to.
    pub run: RunId,
    /// The last batch that is part of its weights.
    pub batch: BatchId,
    /// Whether the configuration is another than the one it was written under.
    pub config_changed: bool,
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_is_known_wherever_it_was_met() {
        let met =
            |kind| FileError { action: "write", path: "manifest.json".into(), source: io::Error::from(kind) };
        assert!(Error::from(met(io::ErrorKind::StorageFull)).is_disk_full());
        assert!(!Error::from(met(io::ErrorKind::PermissionDenied)).is_disk_full());
        for is_disk_full in [false, true] {
            let other = Error::Rank { rank: 1, reason: "it said so".to_owned(), is_disk_full };
            assert_eq!(other.is_disk_full(), is_disk_full);
        }
    }
}
