//! Files that are on the disk once they are said to be, and errors that name what was tried on which path.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, View};
use tch::{Kind, Tensor};

/// A file or folder that the operating system refused.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}: {source}")]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: what was tried on which path.
    pub(crate) fn on(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path: path.to_owned(), source }
    }
}

/// Writes a file and flushes it.
pub(crate) fn write_flushed(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = File::create(path).map_err(FileError::on("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(FileError::on("write", path))
}

/// Makes a folder with those above it, and flushes the names of all that were not there.
pub(crate) fn create_folder(path: &Path) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_folder(parent)?;
    }
    std::fs::create_dir_all(path).map_err(FileError::on("create", path))?;
    sync_folder(parent.unwrap_or(Path::new(".")))
}

/// Writes a small file in a folder; a crash leaves the file that was there before, or this one.
pub(crate) fn replace(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), FileError> {
    let (path, new) = (folder.join(name), folder.join(format!(".{name}.new")));
    write_flushed(&new, bytes)?;
    std::fs::rename(&new, &path).map_err(FileError::on("rename to", &path))?;
    sync_folder(folder)
}

/// Flushes a folder: the names in it are those that it has now, also after a crash.
pub(crate) fn sync_folder(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(FileError::on("flush", path))
}

/// Writes f32 tensors under their names as safetensors and flushes the file.
pub(crate) fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), FileError> {
    let views = tensors.iter().map(|(name, tensor)| (name.as_str(), TensorView::new(tensor)));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = safetensors::serialize_to_file(views, Some(metadata), path);
    written.map_err(io::Error::other).map_err(FileError::on("write", path))?;
    let file = File::open(path).map_err(FileError::on("open", path))?;
    file.sync_all().map_err(FileError::on("flush", path))
}

/// An f32 tensor as safetensors reads it.
struct TensorView<'a> {
    tensor: &'a Tensor,
    shape: Vec<usize>,
}

impl<'a> TensorView<'a> {
    fn new(tensor: &'a Tensor) -> Self {
        let shape = tensor.size().into_iter().map(|dim| usize::try_from(dim).unwrap_or(0)).collect();
        Self { tensor, shape }
    }
}

impl View for TensorView<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(model::tensor_bytes(self.tensor))
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * Kind::Float.elt_size_in_bytes()
    }
}
