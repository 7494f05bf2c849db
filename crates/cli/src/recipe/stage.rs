//! A stage of a recipe: a name and one kind of work, which makes one file or folder.

use std::path::{Path, PathBuf};

use learner::{ExecutionConfig, PreferenceConfig, RewardModelConfig, SftConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::stage_tables::{
    BestOfNStage, CommandStage, EvalStage, PreferencesStage, RingStage, TokenizerStage,
};

/// A stage. Beside its name it has exactly one table, which says what to do.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Stage {
    /// Its name, unique in the recipe.
    pub(crate) name: String,
    /// Runs a program.
    pub(crate) command: Option<CommandStage>,
    /// Trains a tokenizer.
    pub(crate) tokenizer: Option<TokenizerStage>,
    /// Supervised fine-tuning.
    pub(crate) sft: Option<SftConfig>,
    /// Preference pairs from a policy's own responses.
    pub(crate) preferences: Option<PreferencesStage>,
    /// A policy's own best responses by a reward model, to fine-tune on.
    pub(crate) best_of_n: Option<BestOfNStage>,
    /// A reward model from preference pairs.
    pub(crate) reward_model: Option<RewardModelConfig>,
    /// Direct preference optimisation.
    pub(crate) dpo: Option<PreferenceConfig>,
    /// The ring.
    pub(crate) ring: Option<RingStage>,
    /// Compares policies on held-out problems, by their tests or by scorers.
    pub(crate) eval: Option<EvalStage>,
}

/// What a stage does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work<'a> {
    Command(&'a CommandStage),
    Tokenizer(&'a TokenizerStage),
    Sft(&'a SftConfig),
    Preferences(&'a PreferencesStage),
    BestOfN(&'a BestOfNStage),
    RewardModel(&'a RewardModelConfig),
    Dpo(&'a PreferenceConfig),
    Ring(&'a RingStage),
    Eval(&'a EvalStage),
}

/// A stage that does not say what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StageError {
    /// It has no table.
    #[error("stage {stage:?} has nothing to do: give it a table such as [stages.sft]")]
    NoWork {
        /// Its name.
        stage: String,
    },
    /// It has several tables.
    #[error("stage {stage:?} has two things to do: make two stages of it")]
    TwoWorks {
        /// Its name.
        stage: String,
    },
}

impl Stage {
    /// Fills in what devices decide where the recipe does not.
    pub(crate) fn fill_in_decided(&mut self) {
        let Self { sft, reward_model, dpo, .. } = self;
        let executions = [
            sft.as_mut().map(|config| &mut config.execution),
            reward_model.as_mut().map(|config| &mut config.execution),
            dpo.as_mut().map(|config| &mut config.execution),
        ];
        executions.into_iter().flatten().for_each(ExecutionConfig::fill_in_decided);
    }

    /// The stage of a recipe that names none: the ring alone.
    pub(crate) fn ring_alone(output: &Path) -> Self {
        let ring = RingStage { output: output.join("policy"), ..RingStage::default() };
        Self { name: "ring".to_owned(), ring: Some(ring), ..Self::default() }
    }

    /// What it does.
    ///
    /// # Errors
    /// When that is nothing, or more than one thing.
    pub(crate) fn work(&self) -> Result<Work<'_>, StageError> {
        let tables = [
            self.command.as_ref().map(Work::Command),
            self.tokenizer.as_ref().map(Work::Tokenizer),
            self.sft.as_ref().map(Work::Sft),
            self.preferences.as_ref().map(Work::Preferences),
            self.best_of_n.as_ref().map(Work::BestOfN),
            self.reward_model.as_ref().map(Work::RewardModel),
            self.dpo.as_ref().map(Work::Dpo),
            self.ring.as_ref().map(Work::Ring),
            self.eval.as_ref().map(Work::Eval),
        ];
        let mut works = tables.into_iter().flatten();
        match (works.next(), works.next()) {
            (Some(work), None) => Ok(work),
            (None, _) => Err(StageError::NoWork { stage: self.name.clone() }),
            (Some(_), Some(_)) => Err(StageError::TwoWorks { stage: self.name.clone() }),
        }
    }
}

impl Work<'_> {
    /// The file or folder that it makes.
    pub(crate) fn output(&self) -> &PathBuf {
        match self {
            Self::Command(stage) => &stage.output,
            Self::Tokenizer(stage) => &stage.output,
            Self::Sft(config) => &config.output,
            Self::Preferences(stage) => &stage.output,
            Self::BestOfN(stage) => &stage.output,
            Self::RewardModel(config) => &config.output,
            Self::Dpo(config) => &config.output,
            Self::Ring(stage) => &stage.output,
            Self::Eval(stage) => &stage.output,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_has_exactly_one_table() {
        let mut stage = Stage { name: "x".to_owned(), ..Stage::default() };
        assert!(matches!(stage.work(), Err(StageError::NoWork { .. })));
        stage.ring = Some(RingStage::default());
        assert!(matches!(stage.work(), Ok(Work::Ring(_))));
        stage.sft = Some(SftConfig::default());
        assert!(matches!(stage.work(), Err(StageError::TwoWorks { .. })));
    }
}
