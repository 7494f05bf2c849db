//! The programs and libraries that a run needs beside `sluice` itself.

use std::process::{Command, Stdio};

use sandbox::{GraderConfig, Tier};

use super::Finding;
use crate::programs::{COMPUTE, beside_us};

/// Whether the program that computes finds libtorch.
pub(super) fn compute() -> Finding {
    const WHAT: &str = "libtorch";
    let program = match beside_us(COMPUTE) {
        Ok(program) => program,
        Err(error) => return Finding::fail(WHAT, format!("{error:#}"), "cargo build --release --workspace"),
    };
    match Command::new(&program).arg("--version").stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Finding::ok(WHAT, format!("{COMPUTE} starts and finds it")),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let advice =
                "run setup/install.sh and build again, or put libtorch's lib folder into LD_LIBRARY_PATH";
            Finding::fail(WHAT, said.lines().next().unwrap_or("it ends without a word").to_owned(), advice)
        }
        Err(error) => {
            Finding::fail(WHAT, format!("{} cannot be started: {error}", program.display()), "build it anew")
        }
    }
}

/// The interpreter of Python rewards, of the sandbox and of trackers.
pub(super) fn python() -> Finding {
    const WHAT: &str = "python3";
    let asked = Command::new("python3").arg("--version").stdin(Stdio::null()).output();
    match asked.ok().filter(|output| output.status.success()) {
        Some(output) => Finding::ok(WHAT, String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        None => {
            let advice = "install it for rewards in Python, hidden tests, kind = \"math\" and trackers; the rest works without";
            Finding::warn(WHAT, "none on the path", advice)
        }
    }
}

/// Which tier of isolation there is for programs that nobody trusts, and why not a better one.
pub(super) fn sandbox() -> Finding {
    const WHAT: &str = "sandbox";
    let report = match sandbox::probe(&GraderConfig::default()) {
        Ok(report) => report,
        Err(error) => {
            return Finding::warn(
                WHAT,
                error.to_string(),
                "hidden tests cannot be run here; other scorers can",
            );
        }
    };
    let why_not_a = report.failure(Tier::A).map(ToString::to_string).unwrap_or_default();
    match report.best() {
        Some(Tier::A) => {
            Finding::ok(WHAT, "tier A: namespaces, a root of its own, Landlock, seccomp, limits")
        }
        Some(Tier::B) => Finding::warn(
            WHAT,
            format!("tier B (Landlock, seccomp, limits); tier A does not work: {why_not_a}"),
            "for tier A allow user namespaces: sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 \
             kernel.apparmor_restrict_unprivileged_userns=0; in a container a seccomp profile that has them",
        ),
        None => Finding::warn(
            WHAT,
            report.to_string(),
            "hidden tests cannot be run here: a kernel from 5.13 on with Landlock is needed (lsm=landlock,... at its start)",
        ),
    }
}
