//! What a checkpoint says of itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::link::learner::RecentSteps;
use types::{BatchId, RunId};

use super::Error;
use crate::config::PpoConfig;

/// Its file name.
pub(crate) const NAME: &str = "manifest.json";

/// The layout of a checkpoint's folder; another number is another layout.
pub(crate) const FORMAT: u32 = 2;

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// Its length.
    pub(crate) bytes: u64,
    /// Its BLAKE3, hexadecimal.
    pub(crate) blake3: String,
}

/// Files by their path in the checkpoint.
pub(crate) type Files = BTreeMap<String, Entry>;

/// What cannot be seen from the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// The run.
    pub(crate) run: RunId,
    /// The last batch that is part of the weights: what the coordinator need not send again. Orders of passes are functions
    /// of the seed and this.
    pub(crate) batch: BatchId,
    /// Seed of those orders.
    pub(crate) seed: u64,
    /// Parts that the policy's optimizer state is cut into; the critic's are as many.
    pub(crate) parts: usize,
    /// Optimizer steps of the policy.
    pub(crate) policy_steps: u64,
    /// Optimizer steps of the critic, where there is one.
    pub(crate) critic_steps: Option<u64>,
    /// β of the KL penalty now.
    pub(crate) kl_coefficient: f64,
    /// What the last steps measured: a coordinator that did not hear of them is told.
    pub(crate) steps: RecentSteps,
    /// BLAKE3 of the configuration.
    pub(crate) config_hash: String,
    /// The configuration, for people.
    pub(crate) config: PpoConfig,
    /// Every other file.
    pub(crate) files: Files,
    /// BLAKE3 of this manifest with an empty text here.
    pub(crate) digest: String,
}

/// BLAKE3 of a configuration.
pub(crate) fn config_hash(config: &PpoConfig) -> String {
    let text = serde_json::to_vec(config).expect("a configuration is JSON");
    blake3::hash(&text).to_hex().to_string()
}

impl Manifest {
    /// The bytes of the file, its digest filled in.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let text = |digest: String| {
            let sealed = Self { digest, ..self.clone() };
            let mut text = serde_json::to_vec_pretty(&sealed).expect("a manifest is JSON");
            text.push(b'\n');
            text
        };
        text(blake3::hash(&text(String::new())).to_hex().to_string())
    }

    /// The manifest of a checkpoint, once every file that it names has been found to be there and unchanged.
    pub(crate) fn verified(checkpoint: &Path) -> Result<Self, Error> {
        let path = checkpoint.join(NAME);
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let damaged = |path: PathBuf, reason: String| Error::Damaged { path, reason };
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|error| damaged(path.clone(), error.to_string()))?;
        if manifest.to_bytes() != bytes {
            return Err(damaged(path, "does not have the digest that it names".to_owned()));
        }
        if manifest.format != FORMAT {
            return Err(damaged(
                path,
                format!("has format {}, this program reads {FORMAT}", manifest.format),
            ));
        }
        for (name, expected) in &manifest.files {
            let path = checkpoint.join(name);
            let found = Entry::of(&path)?;
            if found != *expected {
                let reason = format!(
                    "has {} bytes and BLAKE3 {}, the manifest says {} and {}",
                    found.bytes, found.blake3, expected.bytes, expected.blake3
                );
                return Err(damaged(path, reason));
            }
        }
        Ok(manifest)
    }
}

impl Entry {
    /// Length and hash of a file.
    pub(crate) fn of(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let bytes = file.metadata().map_err(Error::io("look at", path))?.len();
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).map_err(Error::io("read", path))?;
        Ok(Self { bytes, blake3: hasher.finalize().to_hex().to_string() })
    }
}

/// The files below `folder`, under their paths in the checkpoint `root`.
pub(crate) fn files_below(root: &Path, folder: &Path) -> Result<Files, Error> {
    let mut files = Files::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.is_dir() {
            files.extend(files_below(root, &path)?);
        } else {
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.insert(name, Entry::of(&path)?);
        }
    }
    Ok(files)
}
