//! LoRA adapters as a folder that the PEFT library loads: `adapter_config.json` and `adapter_model.safetensors`.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::json;
use tch::Tensor;

use crate::checkpoint::{Error, write_tensors};
use crate::config::{LoraConfig, LoraTarget};

/// Writes the adapters, under their PEFT names, of the model in `base`. The folder is made; every file is flushed.
pub(crate) fn write(
    folder: &Path,
    lora: &LoraConfig,
    adapters: &[(String, Tensor)],
    base: &Path,
) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    write_tensors(&folder.join("adapter_model.safetensors"), adapters)?;
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
    let path = folder.join("adapter_config.json");
    let mut file = File::create(&path).map_err(Error::io("create", &path))?;
    let written = file.write_all(format!("{config:#}\n").as_bytes()).and_then(|()| file.sync_all());
    written.map_err(Error::io("write", &path))?;
    let folder_file = File::open(folder).and_then(|folder| folder.sync_all());
    folder_file.map_err(Error::io("flush", folder))
}
