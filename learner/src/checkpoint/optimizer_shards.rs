//! Optimizer state on disk: one safetensors file for each shard, from which the shards of any number of ranks
//! are read.
//!
//! A file has, for each group `g`, `g.first` and `g.second`, and `g.weights` where the weights that train are
//! not those of the model's folder (f32 masters, adapters): all f32 `[shard]`, where a group of `numel`
//! elements in `count` shards has shards of `ceil(numel / count)`, the last padded with zeros.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use tch::{Device, Kind, Tensor};

use super::Error;
use crate::disk::FileError;
use crate::trainable_model::Shard;

/// Bytes of an element.
const F32_BYTES: u64 = 4;

/// Bytes of the number at the beginning of a safetensors file that says how long its header is.
const LENGTH_BYTES: u64 = 8;

/// Name of a shard's file.
pub(crate) fn file_name(model: &str, index: usize, count: usize) -> String {
    format!("{model}-{index:05}-of-{count:05}.safetensors")
}

/// A model's optimizer state, from which shards are read.
#[derive(Debug)]
pub(crate) struct OptimizerShards {
    files: Vec<ShardFile>,
}

#[derive(Debug)]
struct ShardFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    start: u64,
}

impl OptimizerShards {
    /// Opens the files of a model's `count` shards.
    ///
    /// # Errors
    /// A file that is gone or no safetensors file.
    pub(crate) fn open(folder: &Path, model: &str, count: usize) -> Result<Self, Error> {
        let files = (0..count).map(|index| ShardFile::open(folder.join(file_name(model, index, count))));
        Ok(Self { files: files.collect::<Result<_, _>>()? })
    }

    /// Whether a tensor of this name is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.first().is_some_and(|file| file.metadata.info(name).is_some())
    }

    /// This shard of a group's tensor, `[shard]` f32 on the CPU, zeros behind the group's end.
    ///
    /// # Errors
    /// A tensor that is missing or has another length.
    pub(crate) fn read(&mut self, name: &str, shard: &Shard) -> Result<Tensor, Error> {
        let found = Tensor::zeros([shard.length], (Kind::Float, Device::Cpu));
        let stored_length = Shard::new(shard.numel, 0, self.files.len()).length;
        let end = (shard.start + shard.length).min(shard.numel);
        for (index, file) in self.files.iter_mut().enumerate() {
            let offset = stored_length * index as i64;
            let first = shard.start.max(offset);
            let last = end.min(offset + stored_length);
            if first < last {
                let mut target = found.narrow(0, first - shard.start, last - first);
                let bytes = file.read(name, first - offset..last - offset, stored_length)?;
                model::copy_bytes(&mut target, &bytes, Kind::Float)?;
            }
        }
        Ok(found)
    }
}

impl ShardFile {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let mut file = File::open(&path).map_err(FileError::on("open", &path))?;
        let length = file.metadata().map_err(FileError::on("look at", &path))?.len();
        let mut header_length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut header_length).map_err(FileError::on("read", &path))?;
        let header_length = u64::from_le_bytes(header_length);
        if header_length > length.saturating_sub(LENGTH_BYTES) {
            let reason = format!("its header is {header_length} bytes long, the file {length}");
            return Err(Error::damaged(path, reason));
        }
        let mut header = Vec::new();
        file.by_ref().take(header_length).read_to_end(&mut header).map_err(FileError::on("read", &path))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| Error::damaged(path.clone(), error))?;
        let start = LENGTH_BYTES + header_length;
        let expected = start + metadata.data_len() as u64;
        if expected != length {
            return Err(Error::damaged(path, format!("has {length} bytes, its header says {expected}")));
        }
        Ok(Self { file, metadata, start, path })
    }

    /// Bytes of some elements of an f32 tensor with `numel` of them.
    fn read(&mut self, name: &str, elements: Range<i64>, numel: i64) -> Result<Vec<u8>, Error> {
        let Some(info) = self.metadata.info(name) else {
            return Err(Error::damaged(self.path.clone(), format!("has no tensor {name}")));
        };
        if info.shape.iter().product::<usize>() as i64 != numel || info.dtype != Dtype::F32 {
            let (dtype, shape) = (info.dtype, &info.shape);
            let reason = format!("tensor {name} is {dtype:?} {shape:?}, expected F32 [{numel}]");
            return Err(Error::damaged(self.path.clone(), reason));
        }
        let (tensor_start, _) = info.data_offsets;
        let start = self.start + tensor_start as u64 + F32_BYTES * elements.start.unsigned_abs();
        let count = F32_BYTES * (elements.end - elements.start).unsigned_abs();
        let mut bytes = Vec::new();
        let read = self
            .file
            .seek(SeekFrom::Start(start))
            .and_then(|_| self.file.by_ref().take(count).read_to_end(&mut bytes));
        let read = read.map_err(FileError::on("read", &self.path))?;
        if read as u64 != count {
            return Err(Error::damaged(self.path.clone(), format!("ends within tensor {name}")));
        }
        Ok(bytes)
    }
}
