//! Reads a model folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::manifest::Manifest;
use super::{Error, LoadOptions, Model, load_config};
use crate::config::ModelConfig;
use crate::groups::Groups;
use crate::layout::Layout;
use crate::raw::{MappedFile, copy_bytes};
use crate::weights::Weights;

/// Bytes of a mapped file that are copied before their pages are released: bounds the memory beside the
/// model.
const STRETCH_BYTES: usize = 16 << 20;

/// Loads a model folder.
///
/// # Errors
/// Names the file, and the tensor or field, that is missing, damaged, or not what `config.json` says.
pub fn load(dir: &Path, options: &LoadOptions) -> Result<Model, Error> {
    let opened = open(dir, options)?;
    let groups = 0..opened.layout.groups.len();
    let flats = groups.map(|index| opened.group(index)).collect::<Result<_, _>>()?;
    let weights = Weights::from_flats(&opened.config, flats);
    let weights = weights.map_err(|error| opened.torch(&error))?;
    Ok(Model { config: opened.config, weights, path: opened.path })
}

/// Opens a model folder: everything is checked but the redundant head of a tied network, which is compared
/// when the embedding is read.
///
/// # Errors
/// As for [`load`].
pub fn open(dir: &Path, options: &LoadOptions) -> Result<Opened, Error> {
    let config = load_config(dir)?;
    let files = weight_files(dir)?;
    if options.verify
        && let Some(manifest) = Manifest::read(dir)?
    {
        manifest.verify(dir, &files.names)?;
    }
    let stored = headers(&map(dir, &files.names)?)?;
    files.check(&stored)?;
    let layout = Layout::new(&config);
    let sources = Sources::find(dir, &config, &layout, &stored)?;
    let place = (options.kind.unwrap_or(sources.kind), options.device);
    Ok(Opened { config, path: dir.to_owned(), layout, sources, place })
}

/// A model folder whose weights are read group by group.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The network's shape and options.
    pub config: ModelConfig,
    path: PathBuf,
    layout: Layout,
    sources: Sources,
    place: (Kind, Device),
}

impl Groups for Opened {
    type Error = Error;

    fn group(&self, index: usize) -> Result<Tensor, Error> {
        let group = &self.layout.groups[index];
        let flat = Tensor::f_empty([group.numel], self.place).map_err(|error| self.torch(&error))?;
        for spec in &group.parameters {
            let part = flat.narrow(0, spec.offset, spec.numel());
            copy(&part, &self.sources.parameters[&spec.name]).map_err(|error| self.torch(&error))?;
        }
        if index == 0
            && let Some(head) = &self.sources.redundant_head
        {
            check_tied(&flat, head)?;
        }
        Ok(flat)
    }
}

impl Opened {
    fn torch(&self, error: &dyn ToString) -> Error {
        Error::Torch { path: self.path.clone(), reason: error.to_string() }
    }
}

/// The weights files of a folder, and what its index says about them.
struct WeightFiles {
    names: Vec<String>,
    index: Option<WeightIndex>,
}

/// The index of a sharded model.
struct WeightIndex {
    path: PathBuf,
    /// The file of each tensor.
    files: BTreeMap<String, String>,
}

impl WeightFiles {
    /// Every tensor of the index is in the file it names.
    fn check(&self, stored: &BTreeMap<String, Stored>) -> Result<(), Error> {
        let Some(WeightIndex { path, files }) = &self.index else { return Ok(()) };
        for (name, file) in files {
            let there = stored.get(name).is_some_and(|tensor| tensor.file.path.ends_with(file));
            if !there {
                let reason = format!("says that {file} has tensor {name}, which it has not");
                return Err(Error::Index { path: path.clone(), reason });
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn weight_files(dir: &Path) -> Result<WeightFiles, Error> {
    let single = "model.safetensors";
    let path = dir.join("model.safetensors.index.json");
    if dir.join(single).is_file() {
        return Ok(WeightFiles { names: vec![single.to_owned()], index: None });
    }
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NoWeights(dir.to_owned()));
        }
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    let index: Index = match serde_json::from_slice(&bytes) {
        Ok(index) => index,
        Err(error) => return Err(Error::Index { path, reason: error.to_string() }),
    };
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    // A name with a folder in it could lead out of the model's folder.
    if let Some(name) = names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
        let reason = format!("{name:?} is not the name of a file in the folder");
        return Err(Error::Index { path, reason });
    }
    let names = names.into_iter().cloned().collect();
    Ok(WeightFiles { names, index: Some(WeightIndex { path, files: index.weight_map }) })
}

#[derive(Debug)]
struct WeightFile {
    path: PathBuf,
    map: MappedFile,
}

fn map(dir: &Path, names: &[String]) -> Result<Vec<Arc<WeightFile>>, Error> {
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let path = dir.join(name);
        let map = MappedFile::open(&path).map_err(Error::io("open", &path))?;
        files.push(Arc::new(WeightFile { path, map }));
    }
    Ok(files)
}

/// A tensor as it lies in a file.
#[derive(Debug, Clone)]
struct Stored {
    file: Arc<WeightFile>,
    shape: Vec<usize>,
    dtype: Dtype,
    start: usize,
    length: usize,
}

impl Stored {
    fn kind(&self, name: &str) -> Result<Kind, Error> {
        match self.dtype {
            Dtype::F32 => Ok(Kind::Float),
            Dtype::F16 => Ok(Kind::Half),
            Dtype::BF16 => Ok(Kind::BFloat16),
            other => {
                let (path, name) = (self.file.path.clone(), name.to_owned());
                Err(Error::ElementType { path, name, found: format!("{other:?}") })
            }
        }
    }
}

fn headers(files: &[Arc<WeightFile>]) -> Result<BTreeMap<String, Stored>, Error> {
    let mut stored: BTreeMap<String, Stored> = BTreeMap::new();
    for file in files {
        let bytes = file.map.bytes();
        let read = SafeTensors::read_metadata(bytes);
        let (header, metadata) =
            read.map_err(|error| Error::Corrupt { path: file.path.clone(), reason: error.to_string() })?;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let start = start + header + size_of::<u64>();
            let (shape, dtype, length) = (info.shape.clone(), info.dtype, end - info.data_offsets.0);
            let tensor = Stored { file: Arc::clone(file), shape, dtype, start, length };
            if let Some(other) = stored.insert(name.clone(), tensor) {
                let (path, other) = (file.path.clone(), other.file.path.clone());
                return Err(Error::Duplicate { path, name, other });
            }
        }
    }
    Ok(stored)
}

/// Where every parameter is read from, all checked.
#[derive(Debug, Clone)]
struct Sources {
    parameters: BTreeMap<String, Source>,
    /// The head that a tied network's file has beside the embedding.
    redundant_head: Option<Source>,
    /// Element type of the embedding.
    kind: Kind,
}

#[derive(Debug, Clone)]
struct Source {
    stored: Stored,
    kind: Kind,
}

impl Sources {
    fn find(
        dir: &Path,
        config: &ModelConfig,
        layout: &Layout,
        stored: &BTreeMap<String, Stored>,
    ) -> Result<Self, Error> {
        let mut parameters = BTreeMap::new();
        for spec in layout.parameters() {
            let Some(tensor) = stored.get(&spec.name) else {
                let (path, name, shape) = (dir.to_owned(), spec.name.clone(), spec.shape.clone());
                return Err(Error::MissingTensor { path, name, shape });
            };
            parameters.insert(spec.name.clone(), source(&spec.name, tensor, &spec.shape)?);
        }
        let mut redundant_head = None;
        for (name, tensor) in stored {
            if parameters.contains_key(name) || is_buffer(name) {
                continue;
            }
            if config.tied() && name == "lm_head.weight" {
                redundant_head = Some(source(name, tensor, &[config.vocab_size, config.hidden_size])?);
                continue;
            }
            let (path, name) = (tensor.file.path.clone(), name.clone());
            let architecture = config.architecture.class(config.head);
            return Err(Error::UnexpectedTensor { path, name, architecture });
        }
        let kind = parameters["model.embed_tokens.weight"].kind;
        Ok(Self { parameters, redundant_head, kind })
    }
}

fn source(name: &str, stored: &Stored, shape: &[i64]) -> Result<Source, Error> {
    let equal = stored.shape.len() == shape.len()
        && stored.shape.iter().zip(shape).all(|(found, expected)| i64::try_from(*found) == Ok(*expected));
    if !equal {
        return Err(Error::Shape {
            path: stored.file.path.clone(),
            name: name.to_owned(),
            found: stored.shape.clone(),
            expected: shape.to_vec(),
        });
    }
    Ok(Source { kind: stored.kind(name)?, stored: stored.clone() })
}

/// Tables that old checkpoints store and that are computed from the configuration.
fn is_buffer(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attn.masked_bias")
}

/// Copies a parameter into its part of a group's buffer, `[numel]`.
fn copy(flat: &Tensor, source: &Source) -> Result<(), crate::raw::Error> {
    for_stretches(source, |first, bytes| {
        let count = (bytes.len() / source.kind.elt_size_in_bytes()) as i64;
        copy_bytes(&mut flat.narrow(0, first as i64, count), bytes, source.kind)
    })
}

/// Calls `visit` with the index of its first element and the bytes of each stretch of a tensor, and releases
/// each stretch's pages behind it.
fn for_stretches<E>(source: &Source, mut visit: impl FnMut(usize, &[u8]) -> Result<(), E>) -> Result<(), E> {
    let Stored { file, start, length, .. } = &source.stored;
    let mut done = 0;
    while done < *length {
        let end = (done + STRETCH_BYTES).min(*length);
        let range = start + done..start + end;
        visit(done / source.kind.elt_size_in_bytes(), &file.map.bytes()[range.clone()])?;
        file.map.release(range);
        done = end;
    }
    Ok(())
}

/// A tied network's stored head must be its embedding, or the file means another network than `config.json`
/// says.
fn check_tied(embedding: &Tensor, head: &Source) -> Result<(), Error> {
    for_stretches(head, |first, bytes| {
        let count = (bytes.len() / head.kind.elt_size_in_bytes()) as i64;
        let mine = embedding.narrow(0, first as i64, count);
        let mut theirs = mine.empty_like();
        let path = &head.stored.file.path;
        copy_bytes(&mut theirs, bytes, head.kind)
            .map_err(|error| Error::Torch { path: path.clone(), reason: error.to_string() })?;
        if mine.equal(&theirs) { Ok(()) } else { Err(Error::Untied { path: path.clone() }) }
    })
}
