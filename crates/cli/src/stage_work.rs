//! The work of stages that compute, one file each, as `sluice-compute` does it.

mod best_of_n;
mod eval;
mod frozen;
mod preferences;
mod tokenizer;
pub(crate) mod training;

use crate::recipe::{Recipe, Stage, Work};

/// Does the work of a stage.
///
/// # Errors
/// When it fails, or is none that is done here.
pub(crate) fn run(recipe: &Recipe, stage: &Stage) -> anyhow::Result<()> {
    match stage.work()? {
        Work::Tokenizer(stage) => tokenizer::run(stage),
        Work::Sft(config) => training::sft(config),
        Work::RewardModel(config) => training::reward_model(config),
        Work::Dpo(config) => training::dpo(config),
        Work::Preferences(stage) => preferences::run(recipe, stage),
        Work::BestOfN(stage) => best_of_n::run(stage),
        Work::Eval(stage) => eval::run(recipe, stage),
        Work::Command(_) | Work::Ring(_) => anyhow::bail!("{}: this stage is done by sluice run", stage.name),
    }
}
