//! Our other programs, which lie in the folder that this one is in.

use std::convert::Infallible;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::omp_wait;

/// The program that links torch. `sluice` itself does not, so that what only looks or decides starts in
/// milliseconds.
pub(crate) const COMPUTE: &str = "sluice-compute";

/// The path of a program of ours.
///
/// # Errors
/// Says where it was looked for.
pub(crate) fn beside_us(name: &str) -> anyhow::Result<PathBuf> {
    let us = std::env::current_exe().context("find our own binary")?;
    let folder = us.parent().context("our own binary is in no folder")?;
    let path = folder.join(name);
    anyhow::ensure!(
        path.exists(),
        "{} is missing; build all binaries: cargo build --release",
        path.display()
    );
    Ok(path)
}

/// Becomes the program that computes, with the arguments of this process: input, output, signals and exit
/// code are then its own.
///
/// # Errors
/// When it is not there or cannot be started.
pub(crate) fn become_compute() -> anyhow::Result<Infallible> {
    let program = beside_us(COMPUTE)?;
    let mut command = Command::new(&program);
    command.args(std::env::args_os().skip(1)).envs(omp_wait::variable());
    Err(command.exec()).with_context(|| format!("start {}", program.display()))
}
