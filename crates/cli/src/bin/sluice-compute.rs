//! The `sluice-compute` binary: the commands and stages that compute. `sluice` starts it.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::compute_main()
}
