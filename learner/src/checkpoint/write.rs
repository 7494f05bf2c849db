//! Writing a checkpoint: a snapshot on the thread that owns torch, then a thread that writes, then the
//! commit.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use algo::PositiveWeight;
use tokio::time::Instant;
use tracing::warn;
use types::{BatchId, RunId};

use super::manifest::{self, FORMAT, Files, Manifest};
use super::snapshot::Snapshot;
use super::{Checkpoints, Error, agreement, best, folders};
use crate::disk::{self, FileError};
use crate::error::Result;
use crate::ppo::Trainer;
use crate::trainable_model::TrainableModel;

/// A checkpoint under way. Dropped unfinished, it never gets its name.
#[derive(Debug)]
#[must_use = "a checkpoint has its name only after `finish`"]
pub struct PendingCheckpoint {
    /// The folder being written.
    partial: PathBuf,
    /// What it will be called.
    target: PathBuf,
    manifest: Manifest,
    writer: WriterThread,
    begun: Instant,
}

/// A checkpoint that is whole.
#[derive(Debug)]
pub struct WrittenCheckpoint {
    /// Its folder.
    pub path: PathBuf,
    /// The length of all its files but the manifest, those of every rank.
    pub bytes: u64,
    /// From its beginning to its name.
    pub time: Duration,
}

impl PendingCheckpoint {
    /// The last batch that it holds.
    pub(crate) fn batch(&self) -> BatchId {
        self.manifest.batch
    }

    /// Whether this rank's part is on the disk; what is left to do takes no time.
    pub(crate) fn is_written(&self) -> bool {
        self.writer.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// The thread that writes. Dropping it waits for the thread, so that nothing appears in a folder that is
/// given up.
#[derive(Debug)]
struct WriterThread {
    /// Taken by whoever waits for the thread.
    handle: Option<JoinHandle<std::result::Result<Files, Error>>>,
}

impl WriterThread {
    /// What it has written.
    fn join(mut self) -> std::result::Result<Files, Error> {
        let handle = self.handle.take().ok_or(Error::Writer)?;
        handle.join().unwrap_or(Err(Error::Writer))
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            // Nobody wants its result any more.
            drop(handle.join());
        }
    }
}

impl Checkpoints {
    /// Writes a checkpoint of weights that contain batches up to `batch`, and returns its path:
    /// [`start`](Self::start), then [`finish`](Self::finish). All ranks call it together.
    ///
    /// # Errors
    /// What the system refuses, on this rank or another. Then nothing is left under a checkpoint's name,
    /// older checkpoints are untouched, and training may go on.
    pub fn save(&self, trainer: &Trainer, run: &RunId, batch: BatchId) -> Result<PathBuf> {
        Ok(self.finish(trainer, self.start(trainer, run, batch)?)?.path)
    }

    /// Copies everything that a checkpoint holds and starts to write the copy, beside further steps. All
    /// ranks call it together.
    ///
    /// # Errors
    /// A folder that cannot be made, a rank that is lost.
    pub fn start(&self, trainer: &Trainer, run: &RunId, batch: BatchId) -> Result<PendingCheckpoint> {
        let begun = Instant::now();
        let name = folders::final_name(batch);
        let is_first = trainer.ranks.rank() == 0;
        let folder = if is_first {
            self.check_writer().and_then(|()| begin(&self.folder, &name))
        } else {
            Ok(String::new())
        };
        let partial = self.folder.join(agreement::of_first(&trainer.ranks, folder)?);
        let manifest = Manifest {
            format: FORMAT,
            run: run.clone(),
            batch,
            term: self.writer.map(|writer| writer.term),
            seed: trainer.config.seed,
            shards: trainer.policy.state_shard(&trainer.ranks).count,
            policy_steps: trainer.policy.steps(),
            critic_steps: trainer.critic.as_ref().map(TrainableModel::steps),
            kl_coefficient: trainer.controller.coefficient(),
            positive_weight: match trainer.positive_weight {
                PositiveWeight::Fixed { .. } => None,
                PositiveWeight::Adaptive { weight, .. } => Some(weight),
            },
            steps: trainer.steps.clone(),
            config_hash: manifest::config_hash(&trainer.config),
            config: trainer.config.clone(),
            files: Files::new(),
            digest: String::new(),
        };
        let snapshot = Snapshot::of(trainer)?;
        let root = partial.clone();
        let thread = thread::Builder::new().name("checkpoint".to_owned());
        let handle = thread
            .spawn(move || snapshot.write(&root))
            .map_err(FileError::on("start a thread for", &partial))
            .map_err(Error::from)?;
        let writer = WriterThread { handle: Some(handle) };
        Ok(PendingCheckpoint { partial, target: self.folder.join(name), manifest, writer, begun })
    }

    /// Waits for a checkpoint that was started, gives it its name, and deletes all but the newest. All ranks
    /// call it together.
    ///
    /// # Errors
    /// As for [`save`](Self::save).
    pub fn finish(&self, trainer: &Trainer, pending: PendingCheckpoint) -> Result<WrittenCheckpoint> {
        let PendingCheckpoint { partial, target, mut manifest, writer, begun } = pending;
        let ranks = &trainer.ranks;
        let is_first = ranks.rank() == 0;
        let mut bytes = 0;
        let committed = agreement::all_files(ranks, writer.join())?.and_then(|files| {
            bytes = files.values().map(|file| file.bytes).sum();
            manifest.files = files;
            if is_first {
                self.check_writer()?;
                commit(&manifest, &partial, &target)
            } else {
                Ok(())
            }
        });
        if committed.is_err() && is_first {
            // What went wrong is reported; what is left has a name that nothing reads.
            drop(fs::remove_dir_all(&partial));
        }
        agreement::of_first(ranks, committed)?;
        if is_first {
            prune(&self.folder, self.keep);
        }
        Ok(WrittenCheckpoint { path: target, bytes, time: begun.elapsed() })
    }
}

/// Makes the folder that is written to; rank 0 alone. Returns its name.
fn begin(folder: &Path, final_name: &str) -> std::result::Result<String, Error> {
    disk::create_folder(folder)?;
    for entry in fs::read_dir(folder).map_err(FileError::on("list", folder))?.flatten() {
        if folders::is_partial(&entry.file_name().to_string_lossy()) {
            // Left behind by a learner that died.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
    let partial = folders::partial_name(final_name);
    let path = folder.join(&partial).join("optimizer");
    fs::create_dir_all(&path).map_err(FileError::on("create", &path))?;
    Ok(partial)
}

/// The last steps: manifest, flush, rename, flush the parent.
fn commit(manifest: &Manifest, partial: &Path, target: &Path) -> std::result::Result<(), Error> {
    disk::write_flushed(&partial.join(manifest::FILE_NAME), &manifest.to_bytes())?;
    disk::sync_folder(partial)?;
    if target.exists() {
        // Only a damaged one that was passed over on resuming is made again.
        let aside = partial.with_extension("replaced");
        drop(fs::remove_dir_all(&aside));
        fs::rename(target, &aside).map_err(FileError::on("move aside", target))?;
    }
    fs::rename(partial, target).map_err(FileError::on("rename to", target))?;
    disk::sync_folder(target.parent().unwrap_or(Path::new(".")))?;
    Ok(())
}

/// Deletes all but the newest `keep` checkpoints and the best one. One that cannot be deleted is in nobody's
/// way.
fn prune(folder: &Path, keep: usize) {
    let best = best::of(folder);
    let old = folders::newest_first(folder).unwrap_or_default().into_iter().skip(keep);
    for old in old.filter(|path| best.as_ref() != Some(path)) {
        if let Err(error) = fs::remove_dir_all(&old) {
            warn!(path = %old.display(), %error, "an old checkpoint cannot be deleted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_checkpoint_is_kept_beside_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 2);
        let write = |batch| fs::create_dir(dir.path().join(folders::final_name(BatchId(batch)))).unwrap();
        let left = || -> Vec<String> {
            prune(dir.path(), 2);
            let found = folders::newest_first(dir.path()).unwrap();
            found.iter().map(|path| path.file_name().unwrap().to_string_lossy()[5..].to_owned()).collect()
        };
        (1..=4).for_each(write);
        assert!(checkpoints.keep_best(BatchId(2)).unwrap());
        assert_eq!(left(), ["00000004", "00000003", "00000002"]);
        (5..=6).for_each(write);
        assert!(checkpoints.keep_best(BatchId(5)).unwrap());
        assert_eq!(left(), ["00000006", "00000005"], "the best before is like any other");
        assert!(!checkpoints.keep_best(BatchId(9)).unwrap(), "there is none");
    }
}
