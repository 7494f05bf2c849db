//! Groups of ranks: as threads where all of them live, as processes of their own where one has to die.
//!
//! Called with `member ...`, this program is such a process; see `processes`. Otherwise it is the tests.

#![expect(clippy::disallowed_types, reason = "the tests measure how long calls take")]

mod faults;
mod groups;
mod operations;
mod processes;
mod stores;
mod threads;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    // Ranks share few processors here; torch's threads would only wait for each other.
    tch::set_num_threads(1);
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == "member") {
        return processes::member(&arguments[2..]);
    }
    let trials = [operations::TESTS, groups::TESTS, stores::TESTS, faults::TESTS];
    #[cfg(feature = "cuda")]
    let trials = [trials.as_slice(), &[groups::gpu::TESTS]].concat();
    let trials = trials.concat().into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// A test's name and body.
type Test = (&'static str, fn());

/// Lists the functions as tests named `module::function`.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[crate::Test] = &[$((concat!(module_path!(), "::", stringify!($name)), $name)),*];
    };
}
pub(crate) use tests;
