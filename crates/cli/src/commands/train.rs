//! `sluice sft`, `train-rm` and `dpo`: training on given examples.

use std::path::PathBuf;

use learner::{PreferenceConfig, RewardModelConfig, SftConfig};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use service::config::{Error, Layers};

use crate::stage_work::training;

/// What `sft --help` says of its file.
pub(crate) const SFT_HELP: &str = "\
A file to begin with:
  model = \"models/base\"           # a Hugging Face folder; or [init] for a new network
  data = \"data/examples.jsonl\"    # \"messages\", or \"prompt\" and \"response\"; tokens as prompt_tokens, response_tokens
  output = \"runs/sft\"
  [training]
  epochs = 1
  [optimizer]
  lr = 1e-5

`sluice check-config --explain stages.sft.KEY` says what a key is, docs/configuration.md what there are: those of [stages.sft].";

/// What `train-rm --help` says of its file.
pub(crate) const REWARD_MODEL_HELP: &str = "\
A file to begin with:
  model = \"models/sft\"            # a Hugging Face folder; its head is made anew
  data = \"data/pairs.jsonl\"       # \"prompt\", \"chosen\" and \"rejected\", as texts or lists of messages
  output = \"runs/reward-model\"
  [optimizer]
  lr = 1e-5

`sluice check-config --explain stages.reward_model.KEY` says what a key is, docs/configuration.md what there are: those of
[stages.reward_model].";

/// What `dpo --help` says of its file.
pub(crate) const DPO_HELP: &str = "\
A file to begin with:
  model = \"models/sft\"            # a Hugging Face folder, also the reference
  data = \"data/pairs.jsonl\"       # \"prompt\", \"chosen\" and \"rejected\", as texts or lists of messages
  output = \"runs/dpo\"
  [optimizer]
  lr = 5e-7

`sluice check-config --explain stages.dpo.KEY` says what a key is, docs/configuration.md what there are: those of [stages.dpo].";

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

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines between the first and the empty one, as they are to be copied.
    fn example(help: &str) -> String {
        help.lines()
            .skip(1)
            .take_while(|line| !line.is_empty())
            .map(|line| format!("{}\n", line.trim()))
            .collect()
    }

    #[test]
    fn what_help_shows_can_be_used_as_it_stands() {
        fn problems<C: DeserializeOwned + JsonSchema>(
            help: &str,
            problems: impl Fn(&C) -> Vec<String>,
        ) -> Vec<String> {
            let folder = tempfile::tempdir().unwrap();
            let config = folder.path().join("config.toml");
            std::fs::write(&config, example(help)).unwrap();
            let arguments = Arguments { config, settings: Vec::new() };
            problems(&arguments.read::<C>(|_| Vec::new()).unwrap())
        }
        assert_eq!(problems(SFT_HELP, SftConfig::problems), Vec::<String>::new());
        assert_eq!(problems(REWARD_MODEL_HELP, RewardModelConfig::problems), Vec::<String>::new());
        assert_eq!(problems(DPO_HELP, PreferenceConfig::problems), Vec::<String>::new());
    }

    #[test]
    fn what_help_says_of_keys_is_there() {
        for (help, section) in [(SFT_HELP, "sft"), (REWARD_MODEL_HELP, "reward_model"), (DPO_HELP, "dpo")] {
            assert!(help.contains(&format!("check-config --explain stages.{section}.KEY")), "{help}");
        }
    }
}
