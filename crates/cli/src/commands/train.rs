//! `sluice sft`, `train-rm` and `dpo`: training on given examples.

use std::path::PathBuf;

use learner::{PreferenceConfig, RewardModelConfig, SftConfig};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use service::config::{Error, Layers};

use crate::stage_work::training;

/// Training on given examples.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to train, on what (TOML).
    #[arg(long)]
    config: PathBuf,
    /// Sets one value over file and environment; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    settings: Vec<String>,
}

impl Arguments {
    fn read<C: DeserializeOwned + JsonSchema>(
        &self,
        problems: impl FnOnce(&C) -> Vec<String>,
    ) -> Result<C, Error> {
        let config: C = Layers::of_process(Some(&self.config), &self.settings)?.parse_known()?;
        let problems = problems(&config);
        if problems.is_empty() { Ok(config) } else { Err(Error::Unusable { problems }) }
    }
}

/// Supervised fine-tuning.
///
/// # Errors
/// Names the key, file or line that cannot be used.
pub(crate) fn sft(arguments: &Arguments) -> anyhow::Result<()> {
    training::sft(&arguments.read(SftConfig::problems)?)
}

/// A reward model.
///
/// # Errors
/// Names the key, file or line that cannot be used.
pub(crate) fn reward_model(arguments: &Arguments) -> anyhow::Result<()> {
    training::reward_model(&arguments.read(RewardModelConfig::problems)?)
}

/// Direct preference optimisation.
///
/// # Errors
/// Names the key, file or line that cannot be used.
pub(crate) fn dpo(arguments: &Arguments) -> anyhow::Result<()> {
    training::dpo(&arguments.read(PreferenceConfig::problems)?)
}
