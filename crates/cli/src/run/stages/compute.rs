//! A stage that computes: done by `sluice-compute`, as a child of this process.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use service::StopSignals;
use tokio::process::{Child, Command};

use super::Done;
use crate::omp_wait;
use crate::programs::{COMPUTE, beside_us};
use crate::recipe::{RecipeFile, Stage};

/// How long a stage that is told to stop may take to end its step and keep what it has.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs it. The child says itself what went wrong; its exit code becomes ours. Told to stop, it keeps what it
/// has; told again, or when that takes too long, it is killed.
///
/// # Errors
/// When it cannot be started, or a signal of somebody else ended it.
pub(crate) async fn run(file: &RecipeFile, stage: &Stage, stop: &mut StopSignals) -> anyhow::Result<Done> {
    let program = beside_us(COMPUTE)?;
    let mut command = Command::new(&program);
    command.arg("stage").arg(&file.path).arg(&stage.name);
    for setting in &file.settings {
        command.args(["--set", setting]);
    }
    // Ctrl-C is for us. The child ends when its input closes: when this process does, however it ends.
    command.envs(omp_wait::variable()).process_group(0).stdin(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("start {}", program.display()))?;
    let stdin = child.stdin.take();
    let status = tokio::select! {
        biased;
        () = stop.next() => None,
        status = child.wait() => Some(status),
    };
    let is_stopped = status.is_none();
    let status = match status {
        Some(status) => status,
        None => stopped(&mut child, stop).await,
    };
    drop(stdin);
    let status = status.with_context(|| format!("wait for {}", program.display()))?;
    if is_stopped && !status.success() {
        return Ok(Done::Abandoned);
    }
    match status.code() {
        Some(0) => Ok(Done::Complete),
        Some(code) => Ok(Done::Failed(u8::try_from(code).unwrap_or(1))),
        None => anyhow::bail!("{COMPUTE} was ended by signal {}", status.signal().unwrap_or_default()),
    }
}

/// Asks a child to end, and kills it when somebody will wait no longer.
async fn stopped(child: &mut Child, stop: &mut StopSignals) -> std::io::Result<ExitStatus> {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // One that has just ended needs no signal.
        let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
    }
    tokio::select! {
        status = child.wait() => return status,
        () = stop.next() => {}
        () = tokio::time::sleep(STOP_TIMEOUT) => {}
    }
    child.start_kill()?;
    child.wait().await
}
