//! Makes torch's threads sleep while they wait for each other.
//!
//! libgomp's threads spin at the end of every operation, some milliseconds by default. Where several processes share the
//! cores, as the roles of a ring on one machine do, a spinning thread keeps out the one it waits for: training was four
//! times slower beside one busy neighbour (two cores, OMP_WAIT_POLICY unset against passive). libgomp reads its
//! environment when it is loaded, before `main`, so that the only way to set it is to start anew.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What libgomp reads.
const POLICY: &str = "OMP_WAIT_POLICY";

/// Starts this program anew with sleeping threads, unless the user has said how threads wait. Child processes inherit it.
pub(crate) fn sleep_while_waiting() {
    if std::env::var_os(POLICY).is_some() || std::env::var_os("GOMP_SPINCOUNT").is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let error = Command::new(program).args(std::env::args_os().skip(1)).env(POLICY, "passive").exec();
        // Only slower without: no reason to stop.
        eprintln!("cannot set {POLICY}=passive: {error}");
    }
}
