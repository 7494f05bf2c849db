//! `sluice-learner`: one rank of the learner.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::run("learner", learner::build)
}
