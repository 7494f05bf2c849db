//! Why training cannot go on.

use std::path::{Path, PathBuf};

use types::BatchId;

use crate::disk::FileError;

/// `std::result::Result` with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The result of a formula of [`algo`].
pub(crate) type FormulaResult<T> = std::result::Result<T, algo::Error>;

/// An error of the training core. Nothing is trained half: after an error the weights in memory are not to be
/// used, and training resumes from the newest checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is unusable.
    #[error("the configuration is not usable:\n  - {}", problems.join("\n  - "))]
    Config {
        /// Everything that is wrong with it.
        problems: Vec<String>,
    },
    /// A model folder cannot be read or written.
    #[error(transparent)]
    Folder(#[from] model::folder::Error),
    /// A network's shape is unusable.
    #[error("{path}: {source}")]
    ModelConfig {
        /// Where it comes from.
        path: PathBuf,
        /// What is wrong with it.
        source: model::config::Error,
    },
    /// A folder has another head than its use needs.
    #[error("{path} is a {found}, but the {role} must be {wanted}")]
    Head {
        /// The folder that was loaded.
        path: PathBuf,
        /// Its class in `config.json`.
        found: &'static str,
        /// What it was to be.
        role: &'static str,
        /// What that needs.
        wanted: &'static str,
    },
    /// Weights do not fit their network.
    #[error(transparent)]
    Weights(#[from] model::weights::Error),
    /// A tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] model::tokenizer::Error),
    /// A chat template cannot be used.
    #[error(transparent)]
    Chat(#[from] model::chat::Error),
    /// A sequence does not fit the network.
    #[error("{what}: {source}")]
    Sequence {
        /// The rollout or example.
        what: String,
        /// What is wrong with it.
        source: model::packed::Error,
    },
    /// A batch that cannot be trained.
    #[error("batch {batch}: {problem}")]
    Batch {
        /// The batch's number.
        batch: BatchId,
        /// What is wrong with it.
        problem: String,
    },
    /// Numbers that a formula cannot take, in most cases because training has diverged.
    #[error("{what}: {source}")]
    Numbers {
        /// The batch, minibatch or examples.
        what: String,
        /// Which number, and what it must be.
        source: algo::Error,
    },
    /// Too many optimizer steps in a row could not be made. Starting again would repeat them.
    #[error(
        "the {model} has diverged: after {steps} optimizer steps, {skipped} in a row had a gradient or a loss that is \
         no finite number (max_skipped is exceeded); the log names their samples: look at them, or lower the learning rate"
    )]
    Diverged {
        /// Which model.
        model: &'static str,
        /// Its optimizer steps that were made.
        steps: u64,
        /// Those in a row that were not.
        skipped: u64,
    },
    /// The ranks disagree.
    #[error(
        "rank {rank} has other {what} than rank 0: all ranks must start from the same folders and configuration"
    )]
    Disagreement {
        /// The rank that noticed.
        rank: usize,
        /// What differs: configuration or weights.
        what: String,
    },
    /// The communication between ranks failed.
    #[error(transparent)]
    Collective(#[from] collective::Error),
    /// An operation of torch failed, in most cases for want of memory.
    #[error("torch: {0}")]
    Torch(#[from] tch::TchError),
    /// A line of a data file is unusable.
    #[error("{path}:{line}: {problem}")]
    Line {
        /// The data file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A file of samples, or a line of it, is unusable.
    #[error(transparent)]
    Input(#[from] service::BadInput),
    /// A file or folder cannot be read or written.
    #[error(transparent)]
    Io(#[from] FileError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// Training was told to stop.
    #[error(
        "interrupted after {step} optimizer steps, which {folder} keeps: the same command goes on from there"
    )]
    Interrupted {
        /// Optimizer steps done.
        step: u64,
        /// Where they are kept.
        folder: PathBuf,
    },
    /// A rank of this process ended without a result.
    #[error("rank {rank} panicked: {reason}")]
    Panicked {
        /// The rank, from 0.
        rank: usize,
        /// The panic's message.
        reason: String,
    },
}

impl Error {
    /// Whether the user's input is to blame, and not the system or the training.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Config { .. }
            | Self::Folder(_)
            | Self::ModelConfig { .. }
            | Self::Head { .. }
            | Self::Weights(_)
            | Self::Tokenizer(_)
            | Self::Chat(_)
            | Self::Input(_)
            | Self::Line { .. } => true,
            Self::Io(error) => error.action == "read",
            Self::Sequence { .. }
            | Self::Batch { .. }
            | Self::Numbers { .. }
            | Self::Diverged { .. }
            | Self::Disagreement { .. }
            | Self::Collective(_)
            | Self::Torch(_)
            | Self::Checkpoint(_)
            | Self::Interrupted { .. }
            | Self::Panicked { .. } => false,
        }
    }

    /// Whether training that goes on from the newest checkpoint would end in the same way: the same batch
    /// over the same weights.
    pub fn comes_again(&self) -> bool {
        matches!(
            self,
            Self::Sequence { .. } | Self::Batch { .. } | Self::Numbers { .. } | Self::Diverged { .. }
        )
    }

    /// An error of a line of a data file, counted from 1.
    pub(crate) fn line(path: &Path, line: usize, problem: impl ToString) -> Self {
        Self::Line { path: path.to_owned(), line, problem: problem.to_string() }
    }

    /// For `map_err` on formulas: the numbers are of a batch.
    pub(crate) fn in_batch(batch: BatchId) -> impl FnOnce(algo::Error) -> Self {
        Self::numbers(move || format!("batch {batch}"))
    }

    /// For `map_err` on formulas: names what the numbers are of.
    pub(crate) fn numbers(what: impl FnOnce() -> String) -> impl FnOnce(algo::Error) -> Self {
        move |source| Self::Numbers { what: what(), source }
    }
}
