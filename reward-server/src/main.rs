//! `sluice-reward-server`: scores rollouts.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::run("reward-server", reward_server::build)
}
