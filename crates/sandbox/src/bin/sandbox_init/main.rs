//! `sluice-sandbox-init`: builds one sandbox and becomes, or starts, the interpreter in it.
//!
//! The server starts it with the control socket as stdin and a memfd with the guests' Python as stdout. It
//! reads a [`zygote_spec::ZygoteSpec`], does everything that has to happen before untrusted code can run, and
//! executes the interpreter as a *zygote*: a process that never runs guest code itself and forks a confined
//! child for every run. What happens in that child stands in `native/`, which this binary carries as a shared
//! object.
//!
//! Invariants:
//! 1. One thread, no asynchronous runtime: forking and changing namespaces are safe.
//! 2. A step that fails ends the process with a report of the step; nothing is skipped.
//! 3. It dies with the server, and the zygote dies with it.

mod blueprint;
mod bpf;
mod failure;
mod filesystem;
mod landlock_rules;
mod launch;
mod namespaces;
mod seccomp_lists;
mod seccomp_rules;

/// The native half is compiled by `build.rs`; this makes clippy look at it.
#[cfg(clippy)]
#[path = "../../../native/native.rs"]
#[allow(dead_code)]
mod native;

use std::process::ExitCode;

use sandbox::{wire, zygote_spec};

fn main() -> ExitCode {
    match launch::zygote() {
        Ok(code) => code,
        Err(failure) => {
            failure.report();
            ExitCode::FAILURE
        }
    }
}
