//! Output that nobody takes is no bug of ours: `sluice top --json | head -1` ends without a word.

use std::any::Any;
use std::io::{Error, ErrorKind};
use std::process::{ExitCode, exit};

use service::config::LogFormat;

/// What std's printing macros say before they panic.
const FAILED: &str = "failed printing to std";
/// Exit code of a program that wrote to a closed pipe, as a shell tells it: 128 + SIGPIPE.
const CLOSED_PIPE: u8 = 141;
/// Exit code where the output cannot be written.
const FAILURE: i32 = 1;

/// Starts logging for a command: warnings, on standard error.
///
/// # Errors
/// Never, with this filter.
pub(crate) fn init_logging() -> anyhow::Result<()> {
    service::init_logging("warn", LogFormat::Text, &[])?;
    // Logging has a word to say about panics, and would have it about those that are none.
    end_quietly();
    Ok(())
}

/// The exit code of a command; without a word where what ended it is that nobody takes its output.
pub(crate) fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Err(error) if error.chain().any(is_closed_pipe) => ExitCode::from(CLOSED_PIPE),
        result => service::exit_code("sluice", result),
    }
}

fn is_closed_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Ends the process quietly when standard output or error is closed, and with one sentence when it cannot be
/// written, where std would panic with a backtrace.
pub(crate) fn end_quietly() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| match unwritten(info.payload()) {
        Some(closed) if closed.contains(&broken_pipe()) => exit(CLOSED_PIPE.into()),
        Some(problem) => {
            // Standard error may be what cannot be written.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("sluice: {problem}\n"));
            exit(FAILURE)
        }
        None => report(info),
    }));
}

/// What a panic says of output that could not be written, if it is about that.
fn unwritten(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<String>().map(String::as_str).filter(|text| text.starts_with(FAILED))
}

/// How the system calls it.
fn broken_pipe() -> String {
    std::io::Error::from(nix::errno::Errno::EPIPE).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_that_nobody_takes_ends_a_command_without_a_word() {
        let closed = anyhow::Error::from(Error::from(ErrorKind::BrokenPipe)).context("write -");
        assert!(closed.chain().any(is_closed_pipe));
        let full = anyhow::Error::from(Error::from(ErrorKind::StorageFull)).context("write -");
        assert!(!full.chain().any(is_closed_pipe));
    }

    #[test]
    fn only_what_could_not_be_written_is_ours() {
        let closed = format!("failed printing to stdout: {}", broken_pipe());
        assert_eq!(std::io::Error::from(nix::errno::Errno::EPIPE).kind(), ErrorKind::BrokenPipe);
        assert_eq!(unwritten(&closed.clone()), Some(closed.as_str()));
        assert_eq!(unwritten(&"index out of bounds".to_owned()), None);
        assert_eq!(unwritten(&7), None);
    }
}
