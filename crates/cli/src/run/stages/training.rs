//! Training on given examples, with a bar.

use learner::{PreferenceConfig, Progress, RewardModelConfig, SftConfig, TrainingReport};

use crate::bad_input;
use crate::bar::Bar;

/// Supervised fine-tuning.
///
/// # Errors
/// As [`learner::sft`].
pub(crate) async fn sft(config: SftConfig) -> anyhow::Result<()> {
    in_background("sft", move |progress| learner::sft(&config, progress)).await
}

/// A reward model.
///
/// # Errors
/// As [`learner::train_rm`].
pub(crate) async fn reward_model(config: RewardModelConfig) -> anyhow::Result<()> {
    in_background("reward model", move |progress| learner::train_rm(&config, progress)).await
}

/// Direct preference optimisation.
///
/// # Errors
/// As [`learner::dpo`].
pub(crate) async fn dpo(config: PreferenceConfig) -> anyhow::Result<()> {
    in_background("dpo", move |progress| learner::dpo(&config, progress)).await
}

/// Runs training on a thread of its own, so that Ctrl-C is heard.
async fn in_background<F>(what: &'static str, train: F) -> anyhow::Result<()>
where
    F: FnOnce(&mut dyn FnMut(Progress)) -> learner::Result<TrainingReport> + Send + 'static,
{
    tokio::task::spawn_blocking(move || with_bar(what, train).map(|_| ())).await?
}

/// Runs training with a bar and prints what came of it.
///
/// # Errors
/// The training's.
pub(crate) fn with_bar<F>(what: &str, train: F) -> anyhow::Result<TrainingReport>
where
    F: FnOnce(&mut dyn FnMut(Progress)) -> learner::Result<TrainingReport>,
{
    let bar = Bar::new(what, 0);
    let report = train(&mut |progress| bar.at(progress.step, progress.steps, &progress.to_string()));
    bar.finish();
    let report = report.map_err(bad_input::of_learner)?;
    eprintln!("  {report}");
    Ok(report)
}
