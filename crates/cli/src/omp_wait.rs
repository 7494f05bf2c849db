//! How torch's threads wait for each other: they look a thousand times, then they sleep.
//!
//! libgomp's threads spin at the end of every operation, some milliseconds by default. Where several
//! processes share the cores, as the roles of a ring on one machine do, a spinning thread keeps out the one
//! it waits for. Threads that sleep at once pay for waking up. Supervised training of tiny-coder on two
//! cores, tokens/s alone and beside one busy process: 9,600 and 700 with 100,000 spins, 9,700 and 5,000 with
//! 1,000, 7,700 and 5,700 with none (`OMP_WAIT_POLICY=passive`).
//!
//! libgomp reads its environment when it is loaded, before `main`, so that the only way to set it is to start
//! anew.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What libgomp reads.
const SPIN_VARIABLE: &str = "GOMP_SPINCOUNT";
/// How often a thread looks before it sleeps.
const SPIN_COUNT: &str = "1000";

/// Starts this program anew with threads that spin little, unless the user has said how threads wait. Child
/// processes inherit it.
pub(crate) fn limit_spinning() {
    if std::env::var_os(SPIN_VARIABLE).is_some() || std::env::var_os("OMP_WAIT_POLICY").is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let arguments = std::env::args_os().skip(1);
        let error = Command::new(program).args(arguments).env(SPIN_VARIABLE, SPIN_COUNT).exec();
        // Only slower without: no reason to stop.
        eprintln!("cannot set {SPIN_VARIABLE}={SPIN_COUNT}: {error}");
    }
}
