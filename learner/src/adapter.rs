//! LoRA adapters as a folder that the PEFT library loads: `adapter_config.json` and
//! `adapter_model.safetensors`.

use std::path::Path;

use serde_json::json;
use tch::Tensor;

use crate::config::{LoraConfig, LoraTarget};
use crate::disk::{self, FileError};

/// Writes the adapters, under their PEFT names, of the model in `base`. The folder is made; every file is
/// flushed.
///
/// # Errors
/// A file or folder that cannot be made or written.
pub(crate) fn write(
    folder: &Path,
    lora: &LoraConfig,
    adapters: &[(String, Tensor)],
    base: &Path,
) -> Result<(), FileError> {
    std::fs::create_dir_all(folder).map_err(FileError::on("create", folder))?;
    disk::write_tensors(&folder.join("adapter_model.safetensors"), adapters)?;
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.to_string_lossy(),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": lora.targets.iter().map(|target| LoraTarget::as_str(*target)).collect::<Vec<_>>(),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "use_rslora": false,
    });
    disk::write_flushed(&folder.join("adapter_config.json"), format!("{config:#}\n").as_bytes())?;
    disk::sync_folder(folder)
}
