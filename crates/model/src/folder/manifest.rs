//! Hashes of the weights files of a folder that Sluice wrote.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Error;

/// Name of the file with the hashes. Other programs ignore it.
pub const MANIFEST: &str = "sluice_manifest.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// BLAKE3 of each weights file, hexadecimal, by file name.
    files: BTreeMap<String, String>,
}

impl Manifest {
    /// Hashes `files` of `dir`.
    pub(super) fn of(dir: &Path, files: &[String]) -> Result<Self, Error> {
        let hashed = files.iter().map(|name| Ok((name.clone(), hash_file(&dir.join(name))?)));
        Ok(Self { files: hashed.collect::<Result<_, _>>()? })
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut text = serde_json::to_string_pretty(self).expect("a map of strings is JSON");
        text.push('\n');
        text.into_bytes()
    }

    /// The manifest of `dir`, if it has one.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(MANIFEST);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|error| Error::Manifest { path, reason: error.to_string() })
    }

    /// Compares the hash of each of `files`.
    pub(super) fn verify(&self, dir: &Path, files: &[String]) -> Result<(), Error> {
        for name in files {
            let path = dir.join(name);
            let Some(expected) = self.files.get(name) else {
                let reason = format!("has no hash of {name}");
                return Err(Error::Manifest { path: dir.join(MANIFEST), reason });
            };
            let found = hash_file(&path)?;
            if found != *expected {
                return Err(Error::Hash { path, found, expected: expected.clone() });
            }
        }
        Ok(())
    }
}

fn hash_file(path: &Path) -> Result<String, Error> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).map_err(Error::io("open", path))?;
    hasher.update_reader(file).map_err(Error::io("read", path))?;
    Ok(hasher.finalize().to_hex().to_string())
}
