//! Whole programs: one run for each case, its output compared here, outside every guest.

use std::io;

use super::ends::{death, ended_early};
use super::{GradedRun, RunContext};
use crate::limits::Limits;
use crate::memfd;
use crate::problem::{Stdio, StdioCase};
use crate::trial::{GuestSpec, Trial, TrialReport, raw};
use crate::verdict::{Verdict, printable};
use crate::wire::Role;
use crate::zygote::Zygote;

/// Exit codes by which a program's runner tells what it died of; a response that forges one only changes the
/// word for its failure.
const OUT_OF_MEMORY_STATUS: i32 = 101;
const OUT_OF_FILES_STATUS: i32 = 102;

/// Runs a whole program on the case of this index.
///
/// # Errors
/// Where the pipes and memory files of the run cannot be made.
pub(crate) fn program(
    context: &RunContext<'_>,
    source: &str,
    stdio: &Stdio,
    index: usize,
    zygote: &mut Zygote,
) -> io::Result<GradedRun> {
    let case = &stdio.cases[index];
    // What is right must fit, and some wrong beside it, so that the difference can be named.
    let output_bytes = context.limits.output_bytes.max(2 * case.expected_stdout.len() as u64);
    let limits = &Limits { output_bytes, ..context.limits.clone() };
    let stdin = memfd::with(&[case.stdin.as_bytes()])?;
    let job = context.program_job(["", "", source])?;
    let mut trial = Trial::new(limits);
    let stdout = trial.stream(limits.output_bytes)?;
    let stderr = trial.stream(limits.output_bytes)?;
    let fds = [raw(&stdin), raw(&stdout), raw(&stderr), raw(&job)];
    let spec = GuestSpec { role: Role::Program, nested: context.nested, fds: &fds, extra_memory_bytes: 0 };
    trial.start(zygote, &spec);
    drop((stdout, stderr));
    let outcome = trial.run();
    Ok(judge_program(&outcome, stdio, case, limits))
}

fn judge_program(outcome: &TrialReport, stdio: &Stdio, case: &StdioCase, limits: &Limits) -> GradedRun {
    let event = outcome.events.first().copied().flatten();
    let (verdict, detail) = ended_early(outcome, event, limits).unwrap_or_else(|| {
        let status = event.map_or(-1, |event| event.status);
        if event.is_some() && status == 0 {
            let expected = case.expected_stdout.as_bytes();
            let same = stdio.compare.same(&outcome.streams[0], expected, stdio.tolerance);
            return if same {
                (Verdict::Accepted, String::new())
            } else {
                (Verdict::WrongAnswer, difference(&outcome.streams[0], case.expected_stdout.as_bytes()))
            };
        }
        let complaint = String::from_utf8_lossy(&outcome.streams[1]);
        let last_line = complaint.trim_end().lines().last().unwrap_or("ended early").to_owned();
        match event.map(|event| libc::WEXITSTATUS(event.status)) {
            Some(OUT_OF_MEMORY_STATUS) => (Verdict::MemoryLimit, "out of memory".to_owned()),
            Some(OUT_OF_FILES_STATUS) => (Verdict::FileLimit, "out of space for files".to_owned()),
            _ => death(event, limits, &last_line),
        }
    });
    GradedRun {
        verdict,
        passed: u32::from(verdict == Verdict::Accepted),
        total: 1,
        detail: printable(&detail),
        wall: outcome.wall,
        stalled: outcome.stalled,
        cpu: outcome.cpu,
        event,
        healthy: outcome.healthy,
        compiled_tests: None,
    }
}

/// The first line in which two outputs differ.
fn difference(got: &[u8], expected: &[u8]) -> String {
    let (mut got, mut expected) = (got.split(|byte| *byte == b'\n'), expected.split(|byte| *byte == b'\n'));
    let mut line = 1;
    loop {
        let (a, b) = (got.next(), expected.next());
        if a != b || a.is_none() {
            return format!("line {line}: expected {}, got {}", quoted(b), quoted(a));
        }
        line += 1;
    }
}

/// The beginning of a line, quoted.
fn quoted(line: Option<&[u8]>) -> String {
    match line {
        Some(bytes) => format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)])),
        None => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_the_line() {
        assert_eq!(difference(b"1\n2\n", b"1\n3\n"), r#"line 2: expected "3", got "2""#);
        assert_eq!(difference(b"1", b"1\n3"), r#"line 2: expected "3", got nothing"#);
    }
}
