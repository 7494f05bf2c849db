//! How torch's threads wait for each other: they look a thousand times, then they sleep.
//!
//! libgomp's threads spin at the end of every operation, some milliseconds by default. Where several
//! processes share the cores, as the roles of a ring on one machine do, a spinning thread keeps out the one
//! it waits for. Threads that sleep at once pay for waking up. Supervised training of tiny-coder on two
//! cores, tokens/s alone and beside one busy process: 9,600 and 700 with 100,000 spins, 9,700 and 5,000 with
//! 1,000, 7,700 and 5,700 with none (`OMP_WAIT_POLICY=passive`).
//!
//! libgomp reads its environment when it is loaded, before `main`: whoever starts a program that computes
//! sets it.

/// What libgomp reads.
const SPIN_VARIABLE: &str = "GOMP_SPINCOUNT";
/// How often a thread looks before it sleeps.
const SPIN_COUNT: &str = "1000";

/// The variable that programs which compute are started with; none where the user has said how threads wait.
pub(crate) fn variable() -> Option<(&'static str, &'static str)> {
    let said = [SPIN_VARIABLE, "OMP_WAIT_POLICY"].into_iter().any(|name| std::env::var_os(name).is_some());
    if said { None } else { Some((SPIN_VARIABLE, SPIN_COUNT)) }
}
