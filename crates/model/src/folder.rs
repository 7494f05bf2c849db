//! Hugging Face model folders: `config.json`, safetensors, tokenizer files.
//!
//! Reading checks everything before it allocates anything: names, shapes and element types of all tensors
//! against the configuration, file sizes against their headers, and hashes where the folder has a
//! [`MANIFEST`]. Weights are copied straight from the mapped file, a stretch at a time, so that peak memory
//! is that of the model.
//!
//! Writing makes a whole new folder under a temporary name, flushes every file and the folder to disk, and
//! renames it. A crash leaves either nothing or the whole folder under the final name.

mod manifest;
mod read;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use tch::{Device, Kind};

use crate::config::{self, ModelConfig};
use crate::weights::Weights;

pub use manifest::MANIFEST;
pub use read::{Opened, load, open};
pub use write::{SaveOptions, save};

/// The files beside weights and `config.json` that belong to a model and travel with it.
pub const COMPANIONS: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// Why a model folder cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The configuration is unusable.
    #[error("{path}: {source}")]
    Config {
        /// The folder that was read or written.
        path: PathBuf,
        /// What is wrong with it.
        source: config::Error,
    },
    /// No safetensors in the folder.
    #[error(
        "{0} has neither model.safetensors nor model.safetensors.index.json; convert the weights to \
         safetensors"
    )]
    NoWeights(PathBuf),
    /// The index of a sharded model is unusable.
    #[error("{path}: {reason}")]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A weights file that is cut short or was never one.
    #[error("{path} is truncated or not a safetensors file: {reason}")]
    Corrupt {
        /// The file that it is about.
        path: PathBuf,
        /// What its header breaks.
        reason: String,
    },
    /// The network needs a tensor that no file has.
    #[error("{path} has no tensor {name} (shape {shape:?})")]
    MissingTensor {
        /// The folder that was read or written.
        path: PathBuf,
        /// The name of the tensor.
        name: String,
        /// The shape that the configuration gives it.
        shape: Vec<i64>,
    },
    /// A file has a tensor that the network does not know.
    #[error("{path}: unexpected tensor {name}, which {architecture} does not have")]
    UnexpectedTensor {
        /// The file that it is about.
        path: PathBuf,
        /// The name of the tensor.
        name: String,
        /// The network's class.
        architecture: &'static str,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{path}: tensor {name} has shape {found:?}, config.json says {expected:?}")]
    Shape {
        /// The file that it is about.
        path: PathBuf,
        /// The name of the tensor.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// Its shape by the configuration.
        expected: Vec<i64>,
    },
    /// A tensor of an element type that weights cannot have.
    #[error("{path}: tensor {name} is {found}, expected F32, F16 or BF16")]
    ElementType {
        /// The file that it is about.
        path: PathBuf,
        /// The name of the tensor.
        name: String,
        /// Its element type.
        found: String,
    },
    /// Two files have the same tensor.
    #[error("{path}: tensor {name} is also in {other}")]
    Duplicate {
        /// One of the two files.
        path: PathBuf,
        /// The name of the tensor.
        name: String,
        /// The other file.
        other: PathBuf,
    },
    /// A tied network whose file has another head beside its embedding.
    #[error(
        "{path}: lm_head.weight differs from the embedding, but config.json has tie_word_embeddings true"
    )]
    Untied {
        /// The file that it is about.
        path: PathBuf,
    },
    /// The hashes cannot be read.
    #[error("{path}: {reason}")]
    Manifest {
        /// The file of hashes.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is not the one that was written.
    #[error("{path} has BLAKE3 {found}, {MANIFEST} says {expected}: the file was changed or damaged")]
    Hash {
        /// The file that it is about.
        path: PathBuf,
        /// The hash of its content now.
        found: String,
        /// Its hash when it was written.
        expected: String,
    },
    /// The target of a write is there already.
    #[error("{0} exists and is not empty; remove it or choose another folder")]
    Exists(PathBuf),
    /// An element type that weights are not written in.
    #[error("weights of element type {0:?} cannot be written, expected Float, Half or BFloat16")]
    Unwritable(Kind),
    /// An allocation or copy that torch refused.
    #[error("{path}: {reason}")]
    Torch {
        /// The folder that was read or written.
        path: PathBuf,
        /// What torch says, mostly that there is no memory.
        reason: String,
    },
}

impl Error {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// How to load a folder.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Element type in memory; that of the embedding on disk when `None`.
    pub kind: Option<Kind>,
    /// Where the weights go.
    pub device: Device,
    /// Whether the weights files are hashed and compared where the folder has a [`MANIFEST`]: one more pass
    /// over the files.
    pub verify: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { kind: None, device: Device::Cpu, verify: true }
    }
}

/// A network that came from a folder.
#[derive(Debug)]
pub struct Model {
    /// Its shape and options.
    pub config: ModelConfig,
    /// Its weights, as they were in the folder.
    pub weights: Weights,
    /// The folder that it came from.
    pub path: PathBuf,
}

/// The companions that `dir` has, as names and contents, in a fixed order.
///
/// # Errors
/// When one cannot be read.
pub fn companions(dir: &Path) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    let mut files = Vec::new();
    for name in COMPANIONS {
        let path = dir.join(name);
        match std::fs::read(&path) {
            Ok(content) => files.push((name, content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", &path)(error)),
        }
    }
    Ok(files)
}

/// Reads the configuration of a folder.
///
/// # Errors
/// When `config.json` cannot be read or used.
pub fn load_config(dir: &Path) -> Result<ModelConfig, Error> {
    let path = dir.join("config.json");
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    ModelConfig::parse(&bytes).map_err(|source| Error::Config { path: dir.to_owned(), source })
}
