//! Writing a checkpoint: a snapshot on the thread that owns torch, then a thread that writes, then the commit.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use model::{ModelConfig, SaveOptions, Weights};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};
use tracing::warn;
use types::{BatchId, RunId};

use super::manifest::{self, Entry, FORMAT, Files, Manifest};
use super::{Checkpoints, Error, parts};
use crate::config::LoraConfig;
use crate::error::Result;
use crate::ppo::Trainer;
use crate::ranks::Ranks;
use crate::trainee::Trainee;

/// Start of the names of checkpoints.
pub(super) const PREFIX: &str = "step-";

/// Within the name of one that is being written.
const PARTIAL: &str = ".partial-";

/// A checkpoint under way. Dropped unfinished, it never gets its name.
#[derive(Debug)]
#[must_use = "a checkpoint has its name only after `finish`"]
pub struct Pending {
    /// The folder being written.
    partial: PathBuf,
    /// What it will be called.
    target: PathBuf,
    manifest: Manifest,
    writer: Writer,
}

/// The thread that writes. Dropping it waits for the thread, so that nothing appears in a folder that is given up.
#[derive(Debug)]
struct Writer(Option<JoinHandle<std::result::Result<Files, Error>>>);

impl Writer {
    /// What it has written.
    fn join(mut self) -> std::result::Result<Files, Error> {
        let thread = self.0.take().ok_or(Error::Writer)?;
        thread.join().unwrap_or(Err(Error::Writer))
    }

    fn is_finished(&self) -> bool {
        self.0.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // Nobody wants its result any more.
            drop(thread.join());
        }
    }
}

impl Pending {
    /// Whether this rank has written its part, so that [`Checkpoints::finish`] waits for other ranks only.
    pub fn is_written(&self) -> bool {
        self.writer.is_finished()
    }
}

impl Checkpoints {
    /// Writes a checkpoint of weights that contain batches up to `batch`, and returns its path: [`start`](Self::start), then
    /// [`finish`](Self::finish). All ranks call it together.
    ///
    /// # Errors
    /// What the system refuses, on this rank or another. Then nothing is left under a checkpoint's name, older checkpoints are
    /// untouched, and training may go on.
    pub fn save(&self, trainer: &Trainer, run: &RunId, batch: BatchId) -> Result<PathBuf> {
        self.finish(trainer, self.start(trainer, run, batch)?)
    }

    /// Copies everything that a checkpoint holds and starts to write the copy, beside further steps. All ranks call it
    /// together.
    ///
    /// # Errors
    /// A folder that cannot be made, a rank that is lost.
    pub fn start(&self, trainer: &Trainer, run: &RunId, batch: BatchId) -> Result<Pending> {
        let name = format!("{PREFIX}{:08}", batch.0);
        let is_first = trainer.ranks.rank() == 0;
        let begun = if is_first { begin(&self.folder, &name) } else { Ok(String::new()) };
        let partial = self.folder.join(agreed(&trainer.ranks, begun)?);
        let manifest = Manifest {
            format: FORMAT,
            run: run.clone(),
            batch,
            seed: trainer.config.seed,
            parts: trainer.policy.share(&trainer.ranks).1,
            policy_steps: trainer.policy.steps(),
            critic_steps: trainer.critic.as_ref().map(Trainee::steps),
            kl_coefficient: trainer.controller.coefficient(),
            steps: trainer.steps.clone(),
            config_hash: manifest::config_hash(&trainer.config),
            config: trainer.config.clone(),
            files: Files::new(),
            digest: String::new(),
        };
        let snapshot = Snapshot::of(trainer)?;
        let root = partial.clone();
        let writer =
            thread::Builder::new().name("checkpoint".to_owned()).spawn(move || snapshot.write(&root));
        let writer = Writer(Some(writer.map_err(Error::io("start a thread for", &partial))?));
        Ok(Pending { partial, target: self.folder.join(name), manifest, writer })
    }

    /// Waits for a checkpoint that was started, gives it its name, and deletes all but the newest. All ranks call it
    /// together.
    ///
    /// # Errors
    /// As for [`save`](Self::save).
    pub fn finish(&self, trainer: &Trainer, pending: Pending) -> Result<PathBuf> {
        let Pending { partial, target, mut manifest, writer } = pending;
        let ranks = &trainer.ranks;
        let is_first = ranks.rank() == 0;
        let written = writer.join();
        let committed = gathered(ranks, written)?.and_then(|files| {
            manifest.files = files;
            if is_first { commit(&manifest, &partial, &target) } else { Ok(()) }
        });
        if committed.is_err() && is_first {
            // What went wrong is reported; what is left has a name that nothing reads.
            drop(fs::remove_dir_all(&partial));
        }
        agreed(ranks, committed.map(|()| String::new()))?;
        if is_first {
            prune(&self.folder, self.keep);
        }
        Ok(target)
    }
}

/// Tensors with their names.
type Named = Vec<(String, Tensor)>;

/// What a rank writes, in memory of its own.
#[derive(Debug, Default)]
struct Snapshot {
    models: Vec<(&'static str, ModelConfig, Weights)>,
    companions: Option<PathBuf>,
    /// With LoRA, the adapters and whose they are.
    adapter: Option<(LoraConfig, Named, PathBuf)>,
    /// Optimizer state by file name.
    state: Vec<(String, Named)>,
}

impl Snapshot {
    /// Copies what this rank writes. All ranks call it together.
    fn of(trainer: &Trainer) -> Result<Self> {
        let ranks = &trainer.ranks;
        let is_first = ranks.rank() == 0;
        let on_cpu = |tensor: &Tensor| tensor.to_device(Device::Cpu).copy();
        let mut snapshot = Self::default();
        for (name, trainee) in [("policy", Some(&trainer.policy)), ("critic", trainer.critic.as_ref())] {
            let Some(trainee) = trainee else { continue };
            let flats = trainee.flats(ranks)?;
            if is_first {
                let weights = Weights::from_flats(trainee.config(), flats.iter().map(on_cpu).collect())?;
                snapshot.models.push((name, trainee.config().clone(), weights));
            }
            let (index, count) = trainee.share(ranks);
            if is_first || count > 1 {
                snapshot.state.push((parts::file_name(name, index, count), trainee.snapshot()));
            }
        }
        snapshot.companions = is_first.then(|| trainer.policy_folder.clone());
        let adapters = trainer.policy.adapters(ranks)?;
        if let (Some(adapters), Some(lora), true) = (adapters, &trainer.config.lora, is_first) {
            let copies = adapters.into_iter().map(|(name, tensor)| (name, on_cpu(&tensor))).collect();
            snapshot.adapter = Some((lora.clone(), copies, trainer.policy_folder.clone()));
        }
        Ok(snapshot)
    }

    /// Writes and flushes everything, and returns what was written.
    fn write(self, root: &Path) -> std::result::Result<Files, Error> {
        let mut files = Files::new();
        for (name, config, weights) in &self.models {
            let companions = (*name == "policy").then(|| self.companions.clone()).flatten();
            let folder = root.join(name);
            let options = SaveOptions { companions, ..SaveOptions::default() };
            model::folder::save(&folder, config, weights, &options)?;
            files.extend(manifest::files_below(root, &folder)?);
        }
        if let Some((lora, adapters, base)) = &self.adapter {
            let folder = root.join("adapter");
            crate::adapter::write(&folder, lora, adapters, base)?;
            files.extend(manifest::files_below(root, &folder)?);
        }
        for (name, tensors) in &self.state {
            let path = root.join("optimizer").join(name);
            parts::write(&path, tensors)?;
            files.insert(format!("optimizer/{name}"), Entry::of(&path)?);
        }
        sync_folder(&root.join("optimizer"))?;
        Ok(files)
    }
}

/// Makes the folder that is written to; rank 0 alone. Returns its name.
fn begin(folder: &Path, name: &str) -> std::result::Result<String, Error> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))?.flatten() {
        if entry.file_name().to_string_lossy().contains(PARTIAL) {
            // Left behind by a learner that died.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
    let partial = format!(".{name}{PARTIAL}{}", std::process::id());
    let path = folder.join(&partial).join("optimizer");
    fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    Ok(partial)
}

/// The last steps: manifest, flush, rename, flush the parent.
fn commit(manifest: &Manifest, partial: &Path, target: &Path) -> std::result::Result<(), Error> {
    let path = partial.join(manifest::NAME);
    let mut file = File::create(&path).map_err(Error::io("create", &path))?;
    file.write_all(&manifest.to_bytes()).and_then(|()| file.sync_all()).map_err(Error::io("write", &path))?;
    sync_folder(partial)?;
    if target.exists() {
        // Only a damaged one that was passed over on resuming is made again.
        let aside = partial.with_extension("replaced");
        fs::rename(target, &aside).map_err(Error::io("move aside", target))?;
    }
    fs::rename(partial, target).map_err(Error::io("rename to", target))?;
    sync_folder(target.parent().unwrap_or(Path::new(".")))
}

/// Deletes all but the newest `keep` checkpoints. One that cannot be deleted is in nobody's way.
fn prune(folder: &Path, keep: usize) {
    for old in super::read::newest_first(folder).unwrap_or_default().into_iter().skip(keep) {
        if let Err(error) = fs::remove_dir_all(&old) {
            warn!(path = %old.display(), %error, "an old checkpoint cannot be deleted");
        }
    }
}

fn sync_folder(path: &Path) -> std::result::Result<(), Error> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io("flush", path))
}

/// A rank's part of the outcome, as the others see it.
#[derive(Serialize, Deserialize)]
enum Outcome<T> {
    Done(T),
    Failed(String),
}

impl<T> Outcome<T> {
    fn of(result: &std::result::Result<T, Error>) -> Outcome<&T> {
        match result {
            Ok(value) => Outcome::Done(value),
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }
}

/// Rank 0's result, on every rank.
fn agreed(ranks: &Ranks, result: std::result::Result<String, Error>) -> Result<String> {
    let bytes = serde_json::to_vec(&Outcome::of(&result)).expect("text is JSON");
    let first: Outcome<String> = decode(&ranks.of_first(bytes)?)?;
    match (result, first) {
        (Err(error), _) => Err(error.into()),
        (Ok(_), Outcome::Done(value)) => Ok(value),
        (Ok(_), Outcome::Failed(reason)) => Err(Error::Rank { rank: 0, reason }.into()),
    }
}

/// The files of all ranks, or the first failure, on every rank.
fn gathered(
    ranks: &Ranks,
    result: std::result::Result<Files, Error>,
) -> Result<std::result::Result<Files, Error>> {
    let bytes = serde_json::to_vec(&Outcome::of(&result)).expect("files are JSON");
    let all = ranks.gather(bytes)?;
    if let Err(error) = result {
        return Ok(Err(error));
    }
    let mut files = Files::new();
    for (rank, bytes) in all.iter().enumerate() {
        match decode::<Files>(bytes)? {
            Outcome::Done(own) => files.extend(own),
            Outcome::Failed(reason) => return Ok(Err(Error::Rank { rank, reason })),
        }
    }
    Ok(Ok(files))
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<Outcome<T>> {
    let wrong = |error: serde_json::Error| Error::Rank { rank: 0, reason: error.to_string() };
    Ok(serde_json::from_slice(bytes).map_err(wrong)?)
}
