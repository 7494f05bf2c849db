//! Reads a model folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::manifest::Manifest;
use super::{Error, LoadOptions, Model, load_config};
use crate::config::ModelConfig;
use crate::layout::Layout;
use crate::raw::{MappedFile, copy_bytes};
use crate::weights::Weights;

/// Bytes of a mapped file that are copied before their pages are released: bounds the memory beside the model.
const STRETCH_BYTES: usize = 16 << 20;

/// Loads a model folder.
///
/// # Errors
/// Names the file, and the tensor or field, that is missing, damaged, or not what `config.json` says.
pub fn load(dir: &Path, options: &LoadOptions) -> Result<Model, Error> {
    let config = load_config(dir)?;
    let files = weight_files(dir)?;
    if options.verify
        && let Some(manifest) = Manifest::read(dir)?
    {
        manifest.verify(dir, &files.names)?;
    }
    let maps = open(dir, &files.names)?;
    let stored = headers(&maps)?;
    files.check(&stored)?;
    let plan = plan(dir, &config, &stored)?;
    let kind = options.kind.unwrap_or(plan.kind);
    let torch = |error: &dyn ToString| Error::Torch { path: dir.to_owned(), reason: error.to_string() };
    let weights = Weights::uninitialized(&config, kind, options.device).map_err(|error| torch(&error))?;
    for parameter in weights.parameters() {
        let source = &plan.sources[parameter.name];
        copy_parameter(&parameter.tensor, source).map_err(|error| torch(&error))?;
    }
    if let Some(head) = plan.redundant_head {
        check_tied(&weights, &head)?;
    }
    Ok(Model { config, weights, path: dir.to_owned() })
}

/// The weights files of a folder, and what its index says about them.
struct WeightFiles {
    names: Vec<String>,
    index: Option<(PathBuf, BTreeMap<String, String>)>,
}

impl WeightFiles {
    /// Every tensor of the index is in the file it names.
    fn check(&self, stored: &BTreeMap<String, Stored>) -> Result<(), Error> {
        let Some((path, map)) = &self.index else { return Ok(()) };
        for (name, file) in map {
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
    let wrong = |reason: String| Error::Index { path: path.clone(), reason };
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    // A name with a folder in it could lead out of the model's folder.
    if let Some(name) = names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
        return Err(wrong(format!("{name:?} is not the name of a file in the folder")));
    }
    let names = names.into_iter().cloned().collect();
    Ok(WeightFiles { names, index: Some((path, index.weight_map)) })
}

struct WeightFile {
    path: PathBuf,
    map: MappedFile,
}

fn open(dir: &Path, names: &[String]) -> Result<Vec<WeightFile>, Error> {
    let open = |name: &String| {
        let path = dir.join(name);
        let map = MappedFile::open(&path).map_err(Error::io("open", &path))?;
        Ok(WeightFile { path, map })
    };
    names.iter().map(open).collect()
}

/// A tensor as it lies in a file.
struct Stored<'a> {
    file: &'a WeightFile,
    shape: Vec<usize>,
    dtype: Dtype,
    start: usize,
    length: usize,
}

impl Stored<'_> {
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

fn headers(files: &[WeightFile]) -> Result<BTreeMap<String, Stored<'_>>, Error> {
    let mut stored: BTreeMap<String, Stored> = BTreeMap::new();
    for file in files {
        let bytes = file.map.bytes();
        let corrupt = |error: safetensors::SafeTensorError| Error::Corrupt {
            path: file.path.clone(),
            reason: error.to_string(),
        };
        let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(corrupt)?;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let start = start + header + size_of::<u64>();
            let (shape, dtype, length) = (info.shape.clone(), info.dtype, end - info.data_offsets.0);
            let tensor = Stored { file, shape, dtype, start, length };
            if let Some(other) = stored.insert(name.clone(), tensor) {
                let (path, other) = (file.path.clone(), other.file.path.clone());
                return Err(Error::Duplicate { path, name, other });
            }
        }
    }
    Ok(stored)
}

/// A checked source for each parameter.
struct Plan<'a> {
    sources: BTreeMap<String, Source<'a>>,
    /// The head that a tied network's file has beside the embedding.
    redundant_head: Option<Source<'a>>,
    /// Element type of the embedding.
    kind: Kind,
}

struct Source<'a> {
    stored: &'a Stored<'a>,
    kind: Kind,
}

fn plan<'a>(
    dir: &Path,
    config: &ModelConfig,
    stored: &'a BTreeMap<String, Stored<'a>>,
) -> Result<Plan<'a>, Error> {
    let layout = Layout::new(config);
    let mut sources = BTreeMap::new();
    for spec in layout.parameters() {
        let Some(tensor) = stored.get(&spec.name) else {
            let (path, name, shape) = (dir.to_owned(), spec.name.clone(), spec.shape.clone());
            return Err(Error::MissingTensor { path, name, shape });
        };
        sources.insert(spec.name.clone(), source(&spec.name, tensor, &spec.shape)?);
    }
    let mut redundant_head = None;
    for (name, tensor) in stored {
        if sources.contains_key(name) || is_buffer(name) {
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
    let kind = sources["model.embed_tokens.weight"].kind;
    Ok(Plan { sources, redundant_head, kind })
}

fn source<'a>(name: &str, stored: &'a Stored<'a>, shape: &[i64]) -> Result<Source<'a>, Error> {
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
    Ok(Source { stored, kind: stored.kind(name)? })
}

/// Tables that old checkpoints store and that are computed from the configuration.
fn is_buffer(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attn.masked_bias")
}

fn copy_parameter(parameter: &Tensor, source: &Source) -> Result<(), crate::raw::Error> {
    let flat = parameter.view([-1]);
    for_stretches(source, |first, bytes| {
        let count = (bytes.len() / source.kind.elt_size_in_bytes()) as i64;
        copy_bytes(&mut flat.narrow(0, first as i64, count), bytes, source.kind)
    })
}

/// Calls `visit` with the index of its first element and the bytes of each stretch of a tensor, and releases each
/// stretch's pages behind it.
fn for_stretches<E>(source: &Source, mut visit: impl FnMut(usize, &[u8]) -> Result<(), E>) -> Result<(), E> {
    let Stored { file, start, length, .. } = *source.stored;
    let mut done = 0;
    while done < length {
        let end = (done + STRETCH_BYTES).min(length);
        let range = start + done..start + end;
        visit(done / source.kind.elt_size_in_bytes(), &file.map.bytes()[range.clone()])?;
        file.map.release(range);
        done = end;
    }
    Ok(())
}

/// A tied network's stored head must be its embedding, or the file means another network than `config.json` says.
fn check_tied(weights: &Weights, head: &Source) -> Result<(), Error> {
    let embedding = weights.flats()[0].shallow_clone();
    for_stretches(head, |first, bytes| {
        let count = (bytes.len() / head.kind.elt_size_in_bytes()) as i64;
        let mine = embedding.narrow(0, first as i64, count);
        let mut theirs = mine.empty_like();
        let path = || head.stored.file.path.clone();
        copy_bytes(&mut theirs, bytes, head.kind)
            .map_err(|error| Error::Torch { path: path(), reason: error.to_string() })?;
        if mine.equal(&theirs) { Ok(()) } else { Err(Error::Untied { path: path() }) }
    })
}
