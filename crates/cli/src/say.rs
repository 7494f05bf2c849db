//! Words for people beside a command's results. What is under way goes on when nobody listens any more:
//! `sluice run RECIPE 2>&1 | head -1` trains to its end.

use std::io::Write as _;

/// Says a line on standard error.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Says a line on standard output.
pub(crate) fn say_result(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
