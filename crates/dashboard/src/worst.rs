//! The responses of a run that scored highest although tests of theirs failed, out of `worst.json`.
//!
//! Their fields are the coordinator's (its `worst.rs`), and are handed on as they stand.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most bytes of the file that are read.
const FILE_LIMIT_BYTES: u64 = 16 << 20;

/// The answer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Worst {
    /// Whether there is such a file.
    #[serde(skip_deserializing)]
    exists: bool,
    /// The highest score first.
    examples: Vec<Value>,
}

impl Worst {
    /// Reads them.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or is no such list.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(told(path, error)),
        };
        let mut text = Vec::new();
        file.take(FILE_LIMIT_BYTES).read_to_end(&mut text).map_err(|error| told(path, error))?;
        let worst: Self = serde_json::from_slice(&text).map_err(|error| told(path, error.into()))?;
        Ok(Self { exists: true, ..worst })
    }
}

fn told(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
