//! What a training leaves beside its output until it is over, so that it can be followed and gone on with.
//!
//! ```text
//! <output>.training/
//!     steps.jsonl                 a line for each optimizer step and each evaluation, as they happen
//!     step-00000500/              a checkpoint: what the next step depends on
//!         state.json              where training stands, and the fingerprint of its configuration
//!         model/                  the network
//!         optimizer/model-00000-of-00002.safetensors    one shard a rank
//!     best/                       the network with the lowest loss on `eval_data`, where it is kept
//! ```
//!
//! A checkpoint is written under another name, flushed and renamed: under its own name it is whole. Training
//! goes on from the newest as it would have without the interruption, bit for bit on as many ranks.
//! When training is over, `steps.jsonl` and `best/` move into the output, and the folder is gone.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use model::{SaveOptions, Weights};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::training_state::TrainingState;
use crate::checkpoint::{OptimizerShards, optimizer_file_name};
use crate::disk::{self, FileError};
use crate::error::{Error, Result};
use crate::model_folder::StartModel;
use crate::ranks::Ranks;
use crate::trainable_model::TrainableModel;

/// Checkpoints that are kept.
const KEPT_COUNT: usize = 2;
const STEPS_FILE: &str = "steps.jsonl";
const STATE_FILE: &str = "state.json";
const BEST: &str = "best";
/// The model's folder, and the stem of its optimizer shards' names.
const MODEL: &str = "model";

/// The folder of one training.
#[derive(Debug, Clone)]
pub(crate) struct WorkFolder {
    path: PathBuf,
    fingerprint: String,
}

/// What is written of a checkpoint besides tensors.
#[derive(Debug, Serialize, Deserialize)]
struct StoredState {
    /// BLAKE3 of the configuration.
    fingerprint: String,
    /// Shards of the optimizer's state.
    shards: usize,
    /// Optimizer steps that were made.
    optimizer_steps: u64,
    state: TrainingState,
}

impl WorkFolder {
    /// The folder of the training with this output and configuration.
    pub(crate) fn of(output: &Path, config: &impl Serialize) -> Self {
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let text = serde_json::to_vec(config).expect("a configuration is JSON");
        Self {
            path: output.with_file_name(format!("{name}.training")),
            fingerprint: blake3::hash(&text).to_hex().to_string(),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the best network is kept.
    pub(crate) fn best(&self) -> PathBuf {
        self.path.join(BEST)
    }

    /// Takes the model back to the newest checkpoint and says where training goes on; the beginning where
    /// there is none. All ranks call it together.
    ///
    /// # Errors
    /// A checkpoint of another configuration, or one that cannot be read.
    pub(crate) fn resume(&self, ranks: &Ranks, model: &mut TrainableModel) -> Result<TrainingState> {
        let Some(checkpoint) = self.newest()? else {
            return Ok(TrainingState::default());
        };
        let path = checkpoint.join(STATE_FILE);
        let bytes = fs::read(&path).map_err(FileError::on("read", &path))?;
        let stored: StoredState =
            serde_json::from_slice(&bytes).map_err(|error| Error::line(&path, 1, error))?;
        if stored.fingerprint != self.fingerprint {
            let problem = format!(
                "output: {} holds a training of another configuration that is not over: go on with that \
                 configuration, remove the folder, or name another output",
                self.path.display()
            );
            return Err(Error::Config { problems: vec![problem] });
        }
        let network = StartModel::open_verified(&checkpoint.join(MODEL))?;
        let mut shards = OptimizerShards::open(&checkpoint.join("optimizer"), MODEL, stored.shards)?;
        model.restore(ranks, &network, stored.optimizer_steps, &mut |name, shard| {
            if shards.has(name) { Ok(Some(shards.read(name, shard)?)) } else { Ok(None) }
        })?;
        if ranks.rank() == 0 {
            info!(checkpoint = %checkpoint.display(), step = stored.state.step, "training goes on");
            self.keep_lines_up_to(stored.state.step)?;
        }
        Ok(stored.state)
    }

    /// Writes a checkpoint. All ranks call it together.
    ///
    /// # Errors
    /// What the system refuses, on this rank or another.
    pub(crate) fn checkpoint(
        &self,
        ranks: &Ranks,
        model: &TrainableModel,
        state: &TrainingState,
    ) -> Result<()> {
        let name = checkpoint_name(state.step);
        let partial = self.path.join(format!(".{name}.partial"));
        let is_first = ranks.rank() == 0;
        together(ranks, if is_first { begin(&partial) } else { Ok(()) })?;
        let weights = model.copy_on_first(ranks)?;
        let written = self.write(&partial, (ranks, model), weights.as_ref(), state);
        together(ranks, written)?;
        let target = self.path.join(name);
        let committed = if is_first { commit(&partial, &target) } else { Ok(()) };
        together(ranks, committed)?;
        if is_first {
            for old in newest_first(&self.path)?.into_iter().skip(KEPT_COUNT) {
                // One that cannot be deleted is in nobody's way.
                drop(fs::remove_dir_all(old));
            }
        }
        Ok(())
    }

    fn write(
        &self,
        partial: &Path,
        (ranks, model): (&Ranks, &TrainableModel),
        weights: Option<&Weights>,
        state: &TrainingState,
    ) -> Result<()> {
        let shard = model.state_shard(ranks);
        if ranks.rank() == 0 || shard.count > 1 {
            let path = partial.join("optimizer").join(optimizer_file_name(MODEL, shard.index, shard.count));
            disk::write_tensors(&path, &model.snapshot()?)?;
        }
        let Some(weights) = weights else { return Ok(()) };
        model::folder::save(&partial.join(MODEL), model.config(), weights, &SaveOptions::default())?;
        let stored = StoredState {
            fingerprint: self.fingerprint.clone(),
            shards: shard.count,
            optimizer_steps: model.steps(),
            state: state.clone(),
        };
        let text = serde_json::to_vec_pretty(&stored).expect("a state is JSON");
        Ok(disk::write_flushed(&partial.join(STATE_FILE), &text)?)
    }

    /// Adds a line to `steps.jsonl`; rank 0 alone.
    ///
    /// # Errors
    /// What the system refuses.
    pub(crate) fn add_line(&self, line: &impl Serialize) -> Result<()> {
        fs::create_dir_all(&self.path).map_err(FileError::on("create", &self.path))?;
        let path = self.path.join(STEPS_FILE);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let mut file = file.map_err(FileError::on("open", &path))?;
        let mut text = serde_json::to_vec(line).expect("a line is JSON");
        text.push(b'\n');
        Ok(file.write_all(&text).map_err(FileError::on("write", &path))?)
    }

    /// Takes out the lines of steps that are made again.
    fn keep_lines_up_to(&self, step: u64) -> Result<()> {
        #[derive(Deserialize)]
        struct Line {
            step: u64,
        }
        let path = self.path.join(STEPS_FILE);
        let Ok(file) = File::open(&path) else { return Ok(()) };
        let mut kept = Vec::new();
        for line in BufReader::new(file).lines() {
            let line = line.map_err(FileError::on("read", &path))?;
            if serde_json::from_str::<Line>(&line).is_ok_and(|parsed| parsed.step <= step) {
                kept.extend([line.as_bytes(), b"\n"].concat());
            }
        }
        Ok(disk::write_flushed(&path, &kept)?)
    }

    /// Moves what stays into the output, which is whole; rank 0 alone.
    ///
    /// # Errors
    /// What the system refuses.
    pub(crate) fn finish(&self, output: &Path) -> Result<()> {
        for name in [STEPS_FILE, BEST] {
            let (from, to) = (self.path.join(name), output.join(name));
            if from.exists() {
                fs::rename(&from, &to).map_err(FileError::on("rename to", &to))?;
            }
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(FileError::on("remove", &self.path)(error).into())
            }
            _ => Ok(()),
        }
    }

    fn newest(&self) -> Result<Option<PathBuf>> {
        Ok(newest_first(&self.path)?.into_iter().next())
    }
}

fn checkpoint_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn newest_first(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FileError::on("list", folder)(error).into()),
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let is_checkpoint = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-")) && path.is_dir()
    };
    let mut found: Vec<PathBuf> = paths.filter(is_checkpoint).collect();
    found.sort_by(|one, other| other.cmp(one));
    Ok(found)
}

/// An empty folder for a checkpoint.
fn begin(partial: &Path) -> Result<()> {
    if partial.exists() {
        // Left behind by a process that was killed.
        fs::remove_dir_all(partial).map_err(FileError::on("remove", partial))?;
    }
    let optimizer = partial.join("optimizer");
    Ok(fs::create_dir_all(&optimizer).map_err(FileError::on("create", &optimizer))?)
}

fn commit(partial: &Path, target: &Path) -> Result<()> {
    disk::sync_folder(&partial.join("optimizer"))?;
    disk::sync_folder(partial)?;
    if target.exists() {
        fs::remove_dir_all(target).map_err(FileError::on("remove", target))?;
    }
    fs::rename(partial, target).map_err(FileError::on("rename to", target))?;
    Ok(disk::sync_folder(target.parent().unwrap_or(Path::new(".")))?)
}

/// What came of the same work on every rank: where one failed, all do.
fn together(ranks: &Ranks, own: Result<()>) -> Result<()> {
    let mut failed = if own.is_err() { [1.0, ranks.rank() as f64] } else { [0.0, 0.0] };
    ranks.sum(&mut failed)?;
    own?;
    let [count, rank_sum] = failed;
    if count == 0.0 {
        return Ok(());
    }
    let rank = (rank_sum / count) as usize;
    let reason = "could not write its part".to_owned();
    Err(crate::checkpoint::Error::Rank { rank, reason, is_disk_full: false }.into())
}
