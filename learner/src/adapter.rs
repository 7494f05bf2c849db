//! LoRA adapters as a folder that the PEFT library loads: `adapter_config.json` and
//! `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use tch::{Kind, Tensor};

use crate::config::{LoraConfig, LoraTarget, Problems};
use crate::disk::{self, FileError};
use crate::error::{Error, Result};

const TENSORS_FILE: &str = "adapter_model.safetensors";
const CONFIG_FILE: &str = "adapter_config.json";

/// Writes what is trained, under its PEFT names, of the model in `base`. The folder is made; every file is
/// flushed.
///
/// # Errors
/// A file or folder that cannot be made or written.
pub(crate) fn write(
    folder: &Path,
    lora: &LoraConfig,
    adapters: &[(String, Tensor)],
    base: &Path,
) -> std::result::Result<(), FileError> {
    std::fs::create_dir_all(folder).map_err(FileError::on("create", folder))?;
    disk::write_tensors(&folder.join(TENSORS_FILE), adapters)?;
    let has_score = adapters.iter().any(|(name, _)| name.ends_with(".score.weight"));
    let config = json!({
        "peft_type": "LORA",
        "task_type": if has_score { "SEQ_CLS" } else { "CAUSAL_LM" },
        "base_model_name_or_path": base.to_string_lossy(),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": target_names(lora),
        "modules_to_save": has_score.then_some(["score"]),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "use_rslora": false,
    });
    disk::write_flushed(&folder.join(CONFIG_FILE), format!("{config:#}\n").as_bytes())?;
    disk::sync_folder(folder)
}

fn target_names(lora: &LoraConfig) -> Vec<&'static str> {
    lora.targets.iter().map(|target| LoraTarget::as_str(*target)).collect()
}

/// Adapters that were read from such a folder.
#[derive(Debug)]
pub(crate) struct Adapter {
    folder: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

/// What of `adapter_config.json` has to be as it is configured.
#[derive(Debug, Deserialize)]
struct Stored {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    target_modules: BTreeSet<String>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
}

impl Adapter {
    /// Reads a folder of adapters as they are configured.
    ///
    /// # Errors
    /// A file that cannot be read, adapters of another kind, rank, scale or place.
    pub(crate) fn read(folder: &Path, lora: &LoraConfig) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        let text = std::fs::read(&path).map_err(FileError::on("read", &path))?;
        let stored: Stored = serde_json::from_slice(&text).map_err(|error| Error::line(&path, 1, error))?;
        let targets: BTreeSet<String> = target_names(lora).into_iter().map(str::to_owned).collect();
        let mut problems = Problems::default();
        problems.check(stored.peft_type == "LORA", || format!("holds {}, must be LORA", stored.peft_type));
        problems.check(!stored.use_rslora && !stored.use_dora, || "is of rsLoRA or DoRA".to_owned());
        problems
            .check(stored.r == lora.rank, || format!("has rank {}, lora.rank is {}", stored.r, lora.rank));
        problems.check(stored.lora_alpha == lora.alpha, || {
            format!("has alpha {}, lora.alpha is {}", stored.lora_alpha, lora.alpha)
        });
        problems.check(stored.target_modules == targets, || {
            format!("adapts {:?}, lora.targets are {targets:?}", stored.target_modules)
        });
        let problems = problems.into_list();
        if !problems.is_empty() {
            let place = format!("lora.start: {}", folder.display());
            let problems = problems.into_iter().map(|problem| format!("{place} {problem}")).collect();
            return Err(Error::Config { problems });
        }
        let path = folder.join(TENSORS_FILE);
        drop(std::fs::File::open(&path).map_err(FileError::on("read", &path))?);
        let tensors = Tensor::read_safetensors(&path)?.into_iter().collect();
        Ok(Self { folder: folder.to_owned(), tensors })
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor as f32.
    ///
    /// # Errors
    /// One that is not there or has another shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let found = self.tensors.get(name).map(Tensor::size);
        match self.tensors.get(name) {
            Some(tensor) if tensor.size() == shape => Ok(tensor.to_kind(Kind::Float)),
            _ => {
                let folder = self.folder.display();
                let problem =
                    format!("lora.start: {folder} has {name} as {found:?}, the network needs {shape:?}");
                Err(Error::Config { problems: vec![problem] })
            }
        }
    }
}
