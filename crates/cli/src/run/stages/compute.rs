//! A stage that computes: done by `sluice-compute`, as a child of this process.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use anyhow::Context as _;
use tokio::process::Command;

use super::Done;
use crate::omp_wait;
use crate::programs::{COMPUTE, beside_us};
use crate::recipe::{RecipeFile, Stage};

/// Runs it. The child says itself what went wrong; its exit code becomes ours.
///
/// # Errors
/// When it cannot be started, or a signal ended it.
pub(crate) async fn run(file: &RecipeFile, stage: &Stage) -> anyhow::Result<Done> {
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
    let status = child.wait().await.with_context(|| format!("wait for {}", program.display()))?;
    drop(stdin);
    match status.code() {
        Some(0) => Ok(Done::Complete),
        Some(code) => Ok(Done::Failed(u8::try_from(code).unwrap_or(1))),
        None => anyhow::bail!("{COMPUTE} was ended by signal {}", status.signal().unwrap_or_default()),
    }
}
