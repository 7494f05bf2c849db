//! Checkpoints: everything that the next step depends on, whole or not at all (docs/decisions.md, D9).
//!
//! ```text
//! <folder>/step-00000012/
//!     manifest.json                                hashes of everything below and of itself, steps, configuration
//!     policy/  critic/                             Hugging Face folders
//!     adapter/                                     with LoRA: a PEFT folder (policy/ is merged)
//!     optimizer/policy-00000-of-00002.safetensors  one shard a rank, of every group
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

mod agreement;
mod folders;
mod manifest;
mod optimizer_shards;
mod read;
mod snapshot;
mod write;

use std::path::{Path, PathBuf};

use types::{BatchId, RunId};

use crate::disk::FileError;

pub(crate) use optimizer_shards::{OptimizerShards, file_name as optimizer_file_name};
pub use write::PendingCheckpoint;

/// The fewest checkpoints that are kept.
const MIN_KEPT_COUNT: usize = 2;

/// The checkpoints of a run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// Those in `folder`, of which the newest `keep`, at least 2, are kept: the newest may be damaged by what
    /// stopped the learner.
    pub fn new(folder: &Path, keep: usize) -> Self {
        Self { folder: folder.to_owned(), keep: keep.max(MIN_KEPT_COUNT) }
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
