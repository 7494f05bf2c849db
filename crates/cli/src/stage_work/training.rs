//! Training on given examples, with a bar.

use learner::{PreferenceConfig, Progress, RewardModelConfig, SftConfig, TrainingReport};

use crate::bad_input;
use crate::bar::Bar;

/// Supervised fine-tuning.
///
/// # Errors
/// As [`learner::sft`].
pub(crate) fn sft(config: &SftConfig) -> anyhow::Result<()> {
    with_bar("sft", |progress| learner::sft(config, progress))
}

/// A reward model.
///
/// # Errors
/// As [`learner::train_rm`].
pub(crate) fn reward_model(config: &RewardModelConfig) -> anyhow::Result<()> {
    with_bar("reward model", |progress| learner::train_rm(config, progress))
}

/// Direct preference optimisation.
///
/// # Errors
/// As [`learner::dpo`].
pub(crate) fn dpo(config: &PreferenceConfig) -> anyhow::Result<()> {
    with_bar("dpo", |progress| learner::dpo(config, progress))
}

/// Runs training with a bar and prints what came of it.
///
/// # Errors
/// The training's.
fn with_bar<F>(what: &str, train: F) -> anyhow::Result<()>
where
    F: FnOnce(&mut dyn FnMut(Progress)) -> learner::Result<TrainingReport>,
{
    let bar = Bar::new(what, 0);
    let report = train(&mut |progress| bar.at(progress.step, progress.steps, &progress.to_string()));
    bar.finish();
    let report = report.map_err(bad_input::of_learner)?;
    eprintln!("  {report}");
    Ok(())
}
