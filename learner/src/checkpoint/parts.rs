//! Optimizer state on disk: one safetensors file for each part, and reading any stretch of a group, however it was cut.
//!
//! A file has, for each group `g`, `g.first` and `g.second`, and `g.weights` where the weights that train are not those of
//! the model's folder (f32 masters, adapters): all f32 `[part]`, where a group of `numel` elements in `count` parts has
//! parts of `ceil(numel / count)`, the last padded with zeros.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use safetensors::{Dtype, View};
use tch::{Device, Kind, Tensor};

use super::Error;
use crate::trainee::Cut;

/// Name of a part's file.
pub(crate) fn file_name(model: &str, index: usize, count: usize) -> String {
    format!("{model}-{index:05}-of-{count:05}.safetensors")
}

/// Writes named f32 tensors and flushes the file.
pub(crate) fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), Error> {
    let views = tensors.iter().map(|(name, tensor)| {
        let shape = tensor.size().into_iter().map(|dim| usize::try_from(dim).unwrap_or(0)).collect();
        (name.as_str(), Floats { tensor, shape })
    });
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = safetensors::serialize_to_file(views, Some(metadata), path);
    written.map_err(std::io::Error::other).map_err(Error::io("write", path))?;
    let file = File::open(path).map_err(Error::io("open", path))?;
    file.sync_all().map_err(Error::io("flush", path))
}

struct Floats<'a> {
    tensor: &'a Tensor,
    shape: Vec<usize>,
}

impl View for Floats<'_> {
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

/// A model's optimizer state, of which stretches are read.
#[derive(Debug)]
pub(crate) struct Parts {
    files: Vec<PartFile>,
}

#[derive(Debug)]
struct PartFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    start: u64,
}

impl Parts {
    /// Opens the files of a model's parts.
    pub(crate) fn open(folder: &Path, model: &str, count: usize) -> Result<Self, Error> {
        let open = |index| PartFile::open(folder.join(file_name(model, index, count)));
        Ok(Self { files: (0..count).map(open).collect::<Result<_, _>>()? })
    }

    /// Whether a tensor of this name is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.first().is_some_and(|file| file.metadata.info(name).is_some())
    }

    /// The part of `cut` of a group's tensor, `[part]` f32 on the CPU, zeros behind the group's end.
    pub(crate) fn read(&mut self, name: &str, cut: &Cut) -> Result<Tensor, Error> {
        let part = Tensor::zeros([cut.part], (Kind::Float, Device::Cpu));
        let stored_part = Cut::new(cut.numel, 0, self.files.len()).part;
        let end = (cut.start + cut.part).min(cut.numel);
        for (index, file) in self.files.iter_mut().enumerate() {
            let offset = stored_part * index as i64;
            let first = cut.start.max(offset);
            let last = end.min(offset + stored_part);
            if first < last {
                let mut target = part.narrow(0, first - cut.start, last - first);
                let bytes = file.read(name, first - offset..last - offset, stored_part)?;
                model::copy_bytes(&mut target, &bytes, Kind::Float)?;
            }
        }
        Ok(part)
    }
}

impl PartFile {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let mut file = File::open(&path).map_err(Error::io("open", &path))?;
        let length = file.metadata().map_err(Error::io("look at", &path))?.len();
        let mut header = [0; 8];
        file.read_exact(&mut header).map_err(Error::io("read", &path))?;
        let header_bytes = u64::from_le_bytes(header);
        let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
        if header_bytes > length.saturating_sub(8) {
            return Err(damaged(format!("its header is {header_bytes} bytes long, the file {length}")));
        }
        let mut header = Vec::new();
        file.by_ref().take(header_bytes).read_to_end(&mut header).map_err(Error::io("read", &path))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| damaged(error.to_string()))?;
        let start = 8 + header_bytes;
        if start + metadata.data_len() as u64 != length {
            return Err(damaged(format!(
                "has {length} bytes, its header says {}",
                start + metadata.data_len() as u64
            )));
        }
        Ok(Self { file, metadata, start, path })
    }

    /// Bytes of some elements of an f32 tensor with `numel` of them.
    fn read(&mut self, name: &str, elements: Range<i64>, numel: i64) -> Result<Vec<u8>, Error> {
        let damaged = |reason: String| Error::Damaged { path: self.path.clone(), reason };
        let info = self.metadata.info(name).ok_or_else(|| damaged(format!("has no tensor {name}")))?;
        if info.shape.iter().product::<usize>() as i64 != numel || info.dtype != Dtype::F32 {
            let (dtype, shape) = (info.dtype, &info.shape);
            return Err(damaged(format!("tensor {name} is {dtype:?} {shape:?}, expected F32 [{numel}]")));
        }
        let offset = |element: i64| 4 * element.unsigned_abs();
        let at = self.start + info.data_offsets.0 as u64 + offset(elements.start);
        let count = offset(elements.end - elements.start);
        let mut bytes = Vec::new();
        let read = self
            .file
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.file.by_ref().take(count).read_to_end(&mut bytes));
        let read = read.map_err(Error::io("read", &self.path))?;
        if read as u64 != count {
            return Err(Error::Damaged {
                path: self.path.clone(),
                reason: format!("ends within tensor {name}"),
            });
        }
        Ok(bytes)
    }
}
