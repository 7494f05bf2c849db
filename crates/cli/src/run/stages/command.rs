//! Runs a program, such as one that makes data.

use anyhow::Context as _;
use service::BadInput;

use crate::heartbeat::Heartbeat;
use crate::recipe::CommandStage;

/// Runs it.
///
/// # Errors
/// When it cannot be started, fails, or does not make its output.
pub(crate) async fn run(stage: &CommandStage) -> anyhow::Result<()> {
    let Some((program, arguments)) = stage.run.split_first() else {
        return Err(BadInput("run is empty: name a program".to_owned()).into());
    };
    let _heartbeat = Heartbeat::of_work();
    let mut command = tokio::process::Command::new(program);
    let status = command.args(arguments).kill_on_drop(true).status().await;
    let status = status.with_context(|| format!("start {program}"))?;
    anyhow::ensure!(status.success(), "{} ended with {status}", stage.run.join(" "));
    anyhow::ensure!(stage.output.exists(), "{program} did not make {}", stage.output.display());
    Ok(())
}
