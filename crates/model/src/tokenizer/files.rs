//! The small files of a model: in a folder, or in memory as another process sent them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Error;

/// Where a model's tokenizer, its special tokens and its chat templates are read from.
#[derive(Debug, Clone, Copy)]
pub enum Files<'a> {
    /// A folder.
    Folder(&'a Path),
    /// Contents by file name.
    Memory(&'a BTreeMap<String, Vec<u8>>),
}

impl Files<'_> {
    /// The name of a file in messages.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(name),
            Self::Memory(_) => PathBuf::from(name),
        }
    }

    /// The content of a file.
    ///
    /// # Errors
    /// [`Error::Io`], with [`io::ErrorKind::NotFound`] when there is no such file.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let content = match self {
            Self::Folder(folder) => std::fs::read(folder.join(name)),
            Self::Memory(files) => files.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into()),
        };
        content.map_err(|source| Error::Io { action: "read", path: self.path(name), source })
    }

    /// The content of a file; `None` when there is no such file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read.
    fn read_if_present(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.read(name) {
            Ok(content) => Ok(Some(content)),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The content of a text file; `None` when there is no such file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Invalid`] when it is not UTF-8.
    pub(crate) fn read_text(&self, name: &str) -> Result<Option<String>, Error> {
        let Some(content) = self.read_if_present(name)? else { return Ok(None) };
        let text = String::from_utf8(content);
        text.map(Some).map_err(|error| Error::Invalid { path: self.path(name), reason: error.to_string() })
    }

    /// The object in a JSON file; `None` when there is no such file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Invalid`] when it holds no JSON object.
    pub(crate) fn read_object(&self, name: &str) -> Result<Option<Map<String, Value>>, Error> {
        let Some(content) = self.read_if_present(name)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&content);
        parsed.map(Some).map_err(|error| Error::Invalid { path: self.path(name), reason: error.to_string() })
    }

    /// The names of the files in a subfolder, with it. Memory has no subfolders.
    pub(crate) fn names_in(&self, subfolder: &str) -> Vec<String> {
        let Self::Folder(folder) = self else { return Vec::new() };
        let Ok(entries) = std::fs::read_dir(folder.join(subfolder)) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.map(|name| format!("{subfolder}/{name}")).collect()
    }
}
