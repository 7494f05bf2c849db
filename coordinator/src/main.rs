//! `sluice-coordinator`: the run's one coordinator.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::run("coordinator", coordinator::build)
}
