//! Training on given examples, with a bar. Ctrl-C keeps what is done: the same command goes on from there.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use learner::{PreferenceConfig, Progress, RewardModelConfig, SftConfig, TrainingReport};
use service::StopSignals;

use crate::bad_input;
use crate::bar::Bar;
use crate::say::say;

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
    F: FnOnce(&mut dyn FnMut(Progress) -> ControlFlow<()>) -> learner::Result<TrainingReport>,
{
    let bar = Bar::new(what, 0);
    let is_stopped = stop_flag()?;
    let report = train(&mut |progress| {
        bar.at(progress.step, progress.steps, &progress.to_string());
        if is_stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish();
    let report = report.map_err(bad_input::of_learner)?;
    say(&format!("  {report}"));
    Ok(())
}

/// Becomes true when Ctrl-C is pressed or SIGTERM comes; a second one ends the process at once.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    const INTERRUPTED_CODE: i32 = 130;
    let flag = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start a runtime for signals")?;
    let mut signals = {
        let _entered = runtime.enter();
        StopSignals::listen().context("listen for signals")?
    };
    let told = Arc::clone(&flag);
    let wait = move || {
        runtime.block_on(signals.next());
        told.store(true, Ordering::Relaxed);
        say("stopping after this step; once more ends at once");
        runtime.block_on(signals.next());
        std::process::exit(INTERRUPTED_CODE);
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .context("start a thread for signals")?;
    Ok(flag)
}
