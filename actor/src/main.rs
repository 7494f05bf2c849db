//! `sluice-actor`: generates rollouts; needs nothing but the coordinator's address.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::run("actor", actor::build)
}
