//! What a checkpoint says of itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};
use types::link::learner::RecentSteps;
use types::{BatchId, LearnerTerm, RunId};

use super::Error;
use crate::config::PpoConfig;
use crate::disk::FileError;

/// The manifest's file in a checkpoint.
pub(super) const FILE_NAME: &str = "manifest.json";

/// The layout of a checkpoint's folder; another number is another layout.
pub(super) const FORMAT: u32 = 2;

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    /// The file's length.
    pub(super) bytes: u64,
    /// The BLAKE3 of its content, hexadecimal.
    pub(super) blake3: String,
}

/// Files by their path in the checkpoint.
pub(super) type Files = BTreeMap<String, FileEntry>;

/// What cannot be seen from the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The layout of the folder: [`FORMAT`].
    pub(super) format: u32,
    /// The run that the weights belong to.
    pub(super) run: RunId,
    /// The last batch that is part of the weights: what the coordinator need not send again. Orders of passes
    /// are functions of the seed and this.
    pub(super) batch: BatchId,
    /// The learner that wrote it, where a coordinator had admitted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) term: Option<LearnerTerm>,
    /// Seed of those orders.
    pub(super) seed: u64,
    /// Shards of the policy's optimizer state, one file each; the critic's are as many.
    #[serde(rename = "parts")]
    pub(super) shards: usize,
    /// Optimizer steps of the policy.
    pub(super) policy_steps: u64,
    /// Optimizer steps of the critic, where there is one.
    pub(super) critic_steps: Option<u64>,
    /// β of the KL penalty now.
    pub(super) kl_coefficient: f64,
    /// Weight of tokens with a positive advantage now, where it adapts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) positive_weight: Option<f64>,
    /// What the last steps measured: a coordinator that did not hear of them is told.
    pub(super) steps: RecentSteps,
    /// BLAKE3 of the configuration.
    pub(super) config_hash: String,
    /// The configuration, for people.
    pub(super) config: PpoConfig,
    /// Every other file.
    pub(super) files: Files,
    /// BLAKE3 of this manifest with an empty text here.
    pub(super) digest: String,
}

/// BLAKE3 of a configuration.
pub(super) fn config_hash(config: &PpoConfig) -> String {
    let text = serde_json::to_vec(config).expect("a configuration is JSON");
    blake3::hash(&text).to_hex().to_string()
}

impl Manifest {
    /// The bytes of the file, its digest filled in.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let digest = blake3::hash(&self.bytes_with_digest(String::new())).to_hex().to_string();
        self.bytes_with_digest(digest)
    }

    fn bytes_with_digest(&self, digest: String) -> Vec<u8> {
        let sealed = Self { digest, ..self.clone() };
        let mut text = serde_json::to_vec_pretty(&sealed).expect("a manifest is JSON");
        text.push(b'\n');
        text
    }

    /// The manifest of a checkpoint, once every file that it names has been found to be there and unchanged.
    ///
    /// # Errors
    /// A file that is gone, that cannot be read, or that is another one than was written.
    pub(super) fn verified(checkpoint: &Path) -> Result<Self, Error> {
        let path = checkpoint.join(FILE_NAME);
        let bytes = std::fs::read(&path).map_err(FileError::on("read", &path))?;
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|error| Error::damaged(path.clone(), error))?;
        if manifest.to_bytes() != bytes {
            return Err(Error::damaged(path, "does not have the digest that it names"));
        }
        if manifest.format != FORMAT {
            let reason = format!("has format {}, this program reads {FORMAT}", manifest.format);
            return Err(Error::damaged(path, reason));
        }
        for (name, expected) in &manifest.files {
            let path = checkpoint.join(name);
            let found = FileEntry::of(&path)?;
            if found != *expected {
                let reason = format!(
                    "has {} bytes and BLAKE3 {}, the manifest says {} and {}",
                    found.bytes, found.blake3, expected.bytes, expected.blake3
                );
                return Err(Error::damaged(path, reason));
            }
        }
        Ok(manifest)
    }
}

impl FileEntry {
    /// Length and hash of a file.
    pub(super) fn of(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(FileError::on("open", path))?;
        let bytes = file.metadata().map_err(FileError::on("look at", path))?.len();
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).map_err(FileError::on("read", path))?;
        Ok(Self { bytes, blake3: hasher.finalize().to_hex().to_string() })
    }
}

/// The files below `folder`, under their paths in the checkpoint `root`.
pub(super) fn files_below(root: &Path, folder: &Path) -> Result<Files, Error> {
    let mut files = Files::new();
    for entry in std::fs::read_dir(folder).map_err(FileError::on("list", folder))? {
        let path = entry.map_err(FileError::on("list", folder))?.path();
        if path.is_dir() {
            files.extend(files_below(root, &path)?);
        } else {
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.insert(name, FileEntry::of(&path)?);
        }
    }
    Ok(files)
}
