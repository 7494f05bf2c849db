//! Which checkpoint is kept although newer ones came: the best one, as the run's evaluations have it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::BatchId;

use super::{Checkpoints, Error, folders};
use crate::disk;

const FILE_NAME: &str = "best.json";

/// What the file says.
#[derive(Serialize, Deserialize)]
struct Best {
    /// The last batch in the best weights.
    batch: BatchId,
}

impl Checkpoints {
    /// Keeps the checkpoint whose weights contain batches up to `batch`; the one that was the best before is
    /// like any other from now on. Rank 0 alone. Says whether there is such a checkpoint.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn keep_best(&self, batch: BatchId) -> Result<bool, Error> {
        if !self.folder.join(folders::final_name(batch)).is_dir() {
            return Ok(false);
        }
        let text = serde_json::to_vec(&Best { batch }).expect("a number is JSON");
        disk::replace(&self.folder, FILE_NAME, &text)?;
        Ok(true)
    }
}

/// The checkpoint that is kept, whatever comes after.
pub(super) fn of(folder: &Path) -> Option<PathBuf> {
    let text = std::fs::read(folder.join(FILE_NAME)).ok()?;
    let Best { batch } = serde_json::from_slice(&text).ok()?;
    Some(folder.join(folders::final_name(batch)))
}
