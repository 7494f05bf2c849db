//! The `sluice` command: a whole run on one machine, and tools that work on files.
//!
//! `recipe` is what a recipe says; `run` does its stages in order, starts and supervises its roles; `render`
//! writes its ring as files for a cluster; `commands` holds one file per subcommand. What they do is done by
//! the roles' crates: here are arguments, progress and tables.
//!
//! There are two programs. `sluice` decides, looks and supervises, and links no torch: it starts in
//! milliseconds. It becomes `sluice-compute` for commands that compute (`commands::ComputeCommand`), and
//! starts it for the stages that do (`stage_work`). Both have the same arguments; the linker leaves out of
//! the first what nothing in it calls.

mod bad_input;
mod bar;
mod benchmark;
mod closed_pipe;
mod commands;
mod decimal;
mod doctor;
#[cfg(test)]
mod documented_commands;
mod episodes;
mod grading;
mod heartbeat;
mod judging;
mod observer_client;
mod omp_wait;
mod programs;
mod rate;
mod recipe;
#[cfg(test)]
mod reference;
mod render;
mod responses;
mod results;
mod run;
mod runtime;
mod say;
mod stage_work;
mod table;
mod tracking;

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

/// The part of `sluice` that computes, under the same name: what it says is about the command that the user
/// gave.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, propagate_version = true)]
struct Compute {
    #[command(subcommand)]
    command: commands::ComputeCommand,
}

/// The life of `sluice`. Exit codes: 0 done, 1 failed, 2 bad usage or bad input, 3 given up because it
/// would end in the same way again, 130 stopped at once, 141 nobody takes what it writes.
pub fn main() -> ExitCode {
    closed_pipe::end_quietly();
    match Sluice::parse().command.run() {
        Ok(code) => code,
        Err(error) => closed_pipe::exit_code(Err(error)),
    }
}

/// The life of `sluice-compute`. Exit codes are those of [`main`].
pub fn compute_main() -> ExitCode {
    closed_pipe::end_quietly();
    closed_pipe::exit_code(Compute::parse().command.run())
}
