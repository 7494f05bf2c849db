//! What the folders of checkpoints are called.

use std::path::{Path, PathBuf};

use types::BatchId;

use super::Error;
use crate::disk::FileError;

/// Start of the names of checkpoints.
const PREFIX: &str = "step-";

/// Within the name of one that is being written.
const PARTIAL_MARK: &str = ".partial-";

/// The name of the checkpoint whose weights contain batches up to `batch`.
pub(super) fn final_name(batch: BatchId) -> String {
    format!("{PREFIX}{:08}", batch.0)
}

/// The name of a checkpoint while this process writes it.
pub(super) fn partial_name(final_name: &str) -> String {
    format!(".{final_name}{PARTIAL_MARK}{}", std::process::id())
}

/// Whether a folder of this name was left behind by a learner that died.
pub(super) fn is_partial(name: &str) -> bool {
    name.contains(PARTIAL_MARK)
}

/// The checkpoints of a folder by name, the newest first; none where there is no folder.
pub(super) fn newest_first(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FileError::on("list", folder)(error).into()),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(FileError::on("list", folder))?;
        if let Some(number) = entry.file_name().to_str().and_then(batch_of) {
            found.push((number, entry.path()));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn batch_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}
