//! `sluice sft`, `train-rm` and `dpo`: training on given examples.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use learner::{PreferenceConfig, RewardModelConfig, SftConfig};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use service::config::{Error, Layers, Schema, Section};

use crate::recipe::inputs;
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
    /// Only looks whether it could begin, and prints the file as it would be used: every key, where its value
    /// came from, what it means.
    #[arg(long)]
    check: bool,
}

impl Arguments {
    /// Trains what the file says, or only looks at it.
    fn work<C: Serialize + DeserializeOwned + JsonSchema>(
        &self,
        problems: impl FnOnce(&C) -> Vec<String>,
        train: impl FnOnce(&C) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let file = TrainingFile::<C>::read(self)?;
        if self.check {
            print!("{}", service::config::resolved(&file.sections, |path| file.layers.source(path)));
        }
        let problems = file.problems(&self.config, problems);
        if !problems.is_empty() {
            return Err(Error::Unusable { problems }.into());
        }
        if self.check { Ok(()) } else { train(&file.config) }
    }
}

/// A file that says what to train.
#[derive(Debug)]
struct TrainingFile<C> {
    layers: Layers,
    config: C,
    sections: Vec<Section>,
}

impl<C: Serialize + DeserializeOwned + JsonSchema> TrainingFile<C> {
    fn read(arguments: &Arguments) -> anyhow::Result<Self> {
        let layers = Layers::of_process(Some(&arguments.config), &arguments.settings)?;
        let config: C = layers.parse_known()?;
        let values = serde_json::to_value(&config).context("write down the configuration")?;
        Ok(Self { sections: Schema::of::<C>().sections_of(&values), layers, config })
    }

    /// Everything that would keep it from beginning, each with its place: what its values owe each other, and
    /// what it names that is not there.
    fn problems(&self, file: &Path, of_values: impl FnOnce(&C) -> Vec<String>) -> Vec<String> {
        let mut problems = of_values(&self.config);
        let folder = file.parent().unwrap_or(file).display().to_string();
        for key in self.sections.iter().flat_map(|section| &section.keys) {
            problems.extend(inputs::missing(key, None, file, &folder));
        }
        problems.into_iter().map(|problem| self.layers.placed(problem)).collect()
    }
}

/// Supervised fine-tuning.
///
/// # Errors
/// Names every key and file that cannot be used, or a line.
pub(crate) fn sft(arguments: &Arguments) -> anyhow::Result<()> {
    arguments.work(SftConfig::problems, training::sft)
}

/// A reward model.
///
/// # Errors
/// Names every key and file that cannot be used, or a line.
pub(crate) fn reward_model(arguments: &Arguments) -> anyhow::Result<()> {
    arguments.work(RewardModelConfig::problems, training::reward_model)
}

/// Direct preference optimisation.
///
/// # Errors
/// Names every key and file that cannot be used, or a line.
pub(crate) fn dpo(arguments: &Arguments) -> anyhow::Result<()> {
    arguments.work(PreferenceConfig::problems, training::dpo)
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
        fn problems<C: Serialize + DeserializeOwned + JsonSchema>(
            help: &str,
            of_values: impl Fn(&C) -> Vec<String>,
        ) -> Vec<String> {
            let folder = tempfile::tempdir().unwrap();
            let config = folder.path().join("config.toml");
            std::fs::write(&config, example(help)).unwrap();
            let arguments = Arguments { config, settings: Vec::new(), check: true };
            let file = TrainingFile::<C>::read(&arguments).unwrap();
            file.problems(&arguments.config, of_values)
        }
        // What it names is made by who reads it; everything else is right, and every path has its line.
        let all = [
            problems(SFT_HELP, SftConfig::problems),
            problems(REWARD_MODEL_HELP, RewardModelConfig::problems),
            problems(DPO_HELP, PreferenceConfig::problems),
        ];
        for said in all {
            assert_eq!(said.len(), 2, "{said:?}");
            assert!(said[0].contains("config.toml:1: model is \"models/"), "{said:?}");
            assert!(said[1].contains("config.toml:2: data is \"data/"), "{said:?}");
        }
    }

    #[test]
    fn what_help_says_of_keys_is_there() {
        for (help, section) in [(SFT_HELP, "sft"), (REWARD_MODEL_HELP, "reward_model"), (DPO_HELP, "dpo")] {
            assert!(help.contains(&format!("check-config --explain stages.{section}.KEY")), "{help}");
        }
    }
}
