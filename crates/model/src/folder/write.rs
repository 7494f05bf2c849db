//! Writes a model folder, whole or not at all.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::{Dtype, View};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::manifest::{MANIFEST, Manifest};
use super::{Error, companions};
use crate::config::ModelConfig;
use crate::raw::bytes_of;
use crate::weights::{Parameter, Weights};

/// How to write a folder.
#[derive(Debug, Clone)]
pub struct SaveOptions {
    /// Folder whose tokenizer and generation files are copied along.
    pub companions: Option<PathBuf>,
    /// Weights files are at most this long, except where one tensor is longer. A model that fits is one file.
    pub shard_bytes: u64,
}

impl Default for SaveOptions {
    /// Shards of 5 GB, as transformers 4 and the hub's tools use.
    fn default() -> Self {
        Self { companions: None, shard_bytes: 5_000_000_000 }
    }
}

/// Writes a model as the folder `dir`, which must not exist or be empty. Equal weights give equal bytes.
///
/// # Errors
/// When something is there already, or the system refuses; then nothing is left behind.
pub fn save(dir: &Path, config: &ModelConfig, weights: &Weights, options: &SaveOptions) -> Result<(), Error> {
    let dtype = dtype(weights.kind())?;
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::Exists(dir.to_owned()));
    }
    let staging = Staging::beside(dir)?;
    let files = write_weights(&staging.path, weights, dtype, options.shard_bytes)?;
    let manifest = Manifest::of(&staging.path, &files)?;
    write_file(&staging.path.join(MANIFEST), &manifest.to_bytes())?;
    write_file(&staging.path.join("config.json"), &config.to_bytes(weights.kind()))?;
    if let Some(source) = &options.companions {
        for (name, content) in companions(source)? {
            write_file(&staging.path.join(name), &content)?;
        }
    }
    staging.publish(dir)
}

/// A folder under a temporary name beside its final place, removed unless published.
struct Staging {
    path: PathBuf,
    published: bool,
}

impl Staging {
    fn beside(dir: &Path) -> Result<Self, Error> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = parent(dir).join(format!(".{name}.partial-{}-{number}", std::process::id()));
        fs::create_dir_all(parent(dir)).map_err(Error::io("create", parent(dir)))?;
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(Self { path, published: false })
    }

    fn publish(mut self, dir: &Path) -> Result<(), Error> {
        sync_folder(&self.path)?;
        fs::rename(&self.path, dir).map_err(Error::io("rename to", dir))?;
        self.published = true;
        sync_folder(parent(dir))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            // The error that led here is the one to report; a leftover has a name that nothing reads.
            drop(fs::remove_dir_all(&self.path));
        }
    }
}

fn parent(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io("flush", path))
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut file = File::create(path).map_err(Error::io("create", path))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(Error::io("write", path))
}

fn dtype(kind: Kind) -> Result<Dtype, Error> {
    match kind {
        Kind::Float => Ok(Dtype::F32),
        Kind::Half => Ok(Dtype::F16),
        Kind::BFloat16 => Ok(Dtype::BF16),
        other => Err(Error::Unwritable(other)),
    }
}

/// Writes `model.safetensors`, or shards and their index. Returns the names of the weights files.
fn write_weights(
    dir: &Path,
    weights: &Weights,
    dtype: Dtype,
    shard_bytes: u64,
) -> Result<Vec<String>, Error> {
    let shards = shards(weights, shard_bytes);
    let count = shards.len();
    let mut names = Vec::with_capacity(count);
    let mut weight_map = serde_json::Map::new();
    for (shard, number) in shards.iter().zip(1usize..) {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        write_shard(&dir.join(&name), shard, dtype)?;
        for parameter in shard {
            weight_map.insert(parameter.name.to_owned(), Value::from(name.as_str()));
        }
        names.push(name);
    }
    if count > 1 {
        weight_map.sort_keys();
        let index = json!({ "metadata": { "total_size": weights.bytes() }, "weight_map": weight_map });
        write_file(&dir.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())?;
    }
    Ok(names)
}

/// The parameters in order, cut before the one that would make a file longer than `shard_bytes`.
fn shards(weights: &Weights, shard_bytes: u64) -> Vec<Vec<Parameter<'_>>> {
    let mut shards: Vec<Vec<Parameter>> = Vec::new();
    let mut room = 0;
    for parameter in weights.parameters() {
        let bytes = (parameter.tensor.numel() * parameter.tensor.kind().elt_size_in_bytes()) as u64;
        match shards.last_mut() {
            Some(shard) if bytes <= room => {
                shard.push(parameter);
                room -= bytes;
            }
            _ => {
                shards.push(vec![parameter]);
                room = shard_bytes.saturating_sub(bytes);
            }
        }
    }
    shards
}

fn write_shard(path: &Path, shard: &[Parameter], dtype: Dtype) -> Result<(), Error> {
    let views = shard.iter().map(|parameter| {
        let shape =
            parameter.tensor.size().into_iter().map(|dim| usize::try_from(dim).unwrap_or(0)).collect();
        (parameter.name, TensorView { tensor: &parameter.tensor, shape, dtype })
    });
    // transformers before 4.47.1 refuses a file without this.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = safetensors::serialize_to_file(views, Some(metadata), path);
    written.map_err(std::io::Error::other).map_err(Error::io("write", path))?;
    let file = File::open(path).map_err(Error::io("open", path))?;
    file.sync_all().map_err(Error::io("flush", path))
}

struct TensorView<'a> {
    tensor: &'a Tensor,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl View for TensorView<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        bytes_of(self.tensor)
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}
