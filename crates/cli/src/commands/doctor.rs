//! `sluice doctor`: whether this machine is fit for runs.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::doctor::{Level, examine};

/// Looks at processor, memory, GPUs, libraries, sandbox, limits, ports, disk and clock, and says of each that
/// it is well or what to do. Exit code 1 where runs would fail.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where runs will write.
    #[arg(long, default_value = "runs")]
    folder: PathBuf,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Never but where nothing can be printed.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let findings = examine(&arguments.folder);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        findings.iter().for_each(|finding| println!("{finding}"));
    }
    let is_fit = findings.iter().all(|finding| finding.level < Level::Fail);
    Ok(if is_fit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
