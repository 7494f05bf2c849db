//! Versions as model folders that the server reads. Each actor has a folder of its own below the one that is
//! shared, and keeps its two newest versions there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model::buffer::PackedWeights;
use model::folder::SaveOptions;
use model::{Groups as _, ModelConfig, Weights};
use types::{MemberId, ModelFile, PolicyVersion};

/// Why a version was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The system refuses.
    #[error("weights_folder: {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// The model does not fit its configuration, or the disk.
    #[error("weights_folder: {0}")]
    Model(#[from] model::folder::Error),
    /// The weights are not the model's.
    #[error("weights_folder: {0}")]
    Weights(String),
}

/// What the system says of a path.
fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// Where an actor's versions are written. It goes with the actor.
#[derive(Debug)]
pub(crate) struct WeightsFolder {
    path: PathBuf,
    /// The newest version written, and the one before.
    written: Vec<PathBuf>,
}

impl WeightsFolder {
    pub(crate) fn new(shared: &Path, member: &MemberId) -> Self {
        Self { path: shared.join(member.to_string()), written: Vec::new() }
    }

    /// Writes a version with the model's other files; the folder that holds them all.
    ///
    /// # Errors
    /// When there is no room, or the folder cannot be written.
    pub(crate) fn write(
        &mut self,
        version: PolicyVersion,
        model: &ModelConfig,
        files: &[ModelFile],
        weights: &PackedWeights<'_>,
    ) -> Result<PathBuf, Error> {
        let companions = self.path.join("files");
        if self.written.is_empty() {
            // What an actor of this name has left.
            match fs::remove_dir_all(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(&self.path)(error)),
                _ => {}
            }
            fs::create_dir_all(&companions).map_err(io(&companions))?;
            for file in files {
                let path = companions.join(file.name());
                fs::write(&path, file.content()).map_err(io(&path))?;
            }
        }
        let groups = 0..model::Layout::new(model).groups.len();
        let flats: Result<Vec<_>, _> = groups.map(|index| weights.group(index)).collect();
        let flats = flats.map_err(|error| Error::Weights(error.to_string()))?;
        let weights = Weights::from_flats(model, flats).map_err(|error| Error::Weights(error.to_string()))?;
        let folder = self.path.join(format!("v{}", version.0));
        self.forget(&folder);
        model::folder::save(
            &folder,
            model,
            &weights,
            &SaveOptions { companions: Some(companions), ..SaveOptions::default() },
        )?;
        self.written.push(folder.clone());
        while self.written.len() > 2 {
            let oldest = self.written[0].clone();
            self.forget(&oldest);
        }
        Ok(folder)
    }

    /// Removes a version.
    fn forget(&mut self, folder: &Path) {
        self.written.retain(|written| written != folder);
        // What cannot be removed is in the way of the next one of its number, which says so.
        drop(fs::remove_dir_all(folder));
    }
}

impl Drop for WeightsFolder {
    fn drop(&mut self) {
        if !self.written.is_empty() {
            drop(fs::remove_dir_all(&self.path));
        }
    }
}
