//! The `sluice` command: a whole run on one machine, and tools that work on files.
//!
//! `recipe` is what a recipe says; `run` runs its stages, starts and supervises its roles; `render` writes
//! its ring as files for a cluster; `commands` holds one file per subcommand. What they do is done by the
//! roles' crates: here are arguments, progress and tables.

mod bad_input;
mod bar;
mod commands;
mod grading;
mod observer_client;
mod omp_wait;
mod recipe;
mod render;
mod responses;
mod run;
mod table;

use std::process::ExitCode;

use clap::Parser;

/// Reinforcement learning of language models from rewards that are not always right (PF-PPO, arXiv
/// 2409.06957).
#[derive(Debug, Parser)]
#[command(name = "sluice", version, propagate_version = true)]
struct Sluice {
    #[command(subcommand)]
    command: commands::Command,
}

/// The life of the command. Exit codes: 0 done, 1 failed, 2 bad usage or bad input.
pub fn main() -> ExitCode {
    let Sluice { command } = Sluice::parse();
    omp_wait::limit_spinning();
    service::exit_code("sluice", command.run())
}
