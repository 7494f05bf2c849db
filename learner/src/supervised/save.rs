//! Writing what was trained: a folder with the network and the files that belong to it, whole or not at all.

use std::path::Path;

use model::{ModelConfig, SaveOptions};

use super::training::SupervisedTrainer;
use crate::disk::FileError;
use crate::error::Result;

impl SupervisedTrainer<'_> {
    /// Writes the network as the folder `output`, with the tokenizer and other files of the folder
    /// `companions`; with LoRA the merged network, and the adapter in `adapter/`. All ranks call it together.
    /// `amend` may change the configuration that is written.
    ///
    /// # Errors
    /// A folder that is there already or cannot be written, a rank that is lost.
    pub(crate) fn save(
        &self,
        output: &Path,
        companions: &Path,
        amend: impl FnOnce(&mut ModelConfig),
    ) -> Result<()> {
        let weights = self.model().copy_on_first(self.ranks())?;
        let adapters = self.model().adapters(self.ranks())?;
        let Some(weights) = weights else { return Ok(()) };
        let mut config = self.model().config().clone();
        amend(&mut config);
        let options = SaveOptions { companions: Some(companions.to_owned()), ..SaveOptions::default() };
        let (Some(adapters), Some(lora)) = (adapters, self.lora()) else {
            return Ok(model::folder::save(output, &config, &weights, &options)?);
        };
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let partial = output.with_file_name(format!(".{name}.with-adapter-{}", std::process::id()));
        model::folder::save(&partial, &config, &weights, &options)?;
        crate::adapter::write(&partial.join("adapter"), lora, &adapters, companions)?;
        std::fs::rename(&partial, output).map_err(FileError::on("rename to", output))?;
        Ok(())
    }
}
