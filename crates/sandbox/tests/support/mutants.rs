//! Programs that are nearly right, and what plain CPython says of them.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use sandbox::{Record, Verdict};

/// Single edits that a model could have made. Most make a right program wrong, some do not; the oracle knows.
const EDITS: [(&str, &str); 14] = [
    (" + ", " - "),
    (" - ", " + "),
    (" < ", " <= "),
    (" > ", " >= "),
    (" == ", " != "),
    (" and ", " or "),
    ("True", "False"),
    ("False", "True"),
    ("return ", "return not "),
    ("[i]", "[i - 1]"),
    (" 1", " 2"),
    (" 0", " 1"),
    ("sorted(", "list("),
    ("max(", "min("),
];

/// The edits of a reference that are possible, and its beginning.
pub(crate) fn mutants(record: &Record) -> Vec<String> {
    let reference = record.reference.as_deref().unwrap();
    let edited = EDITS.iter().filter_map(|(from, to)| {
        let at = reference.find(from)?;
        Some(format!("{}{to}{}", &reference[..at], &reference[at + from.len()..]))
    });
    let shortened = reference.rmatch_indices('\n').nth(1).map(|(at, _)| reference[..=at].to_owned());
    edited.chain(shortened).collect()
}

/// The harness's verdicts on whole programs; none where its time was over.
pub(crate) fn oracle(programs: &[String]) -> Vec<Option<bool>> {
    const SCRIPT: &str = include_str!("oracle.py");
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", SCRIPT])
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/vendor"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    let lines: Vec<_> = programs
        .iter()
        .map(|program| serde_json::json!({"program": program, "timeout": 3}).to_string())
        .collect();
    let writer = std::thread::spawn(move || {
        for line in lines {
            writeln!(stdin, "{line}").unwrap();
        }
    });
    let verdicts = BufReader::new(python.stdout.take().unwrap())
        .lines()
        .map(|line| line.unwrap().parse().ok())
        .collect();
    writer.join().unwrap();
    assert!(python.wait().unwrap().success());
    verdicts
}

/// Whether a verdict is that of plain CPython. Where it took too long there, it may be quick enough here.
pub(crate) fn agree(verdict: Verdict, expected: Option<bool>) -> bool {
    match expected {
        Some(right) => right == (verdict == Verdict::Accepted),
        None => matches!(verdict, Verdict::Accepted | Verdict::TimeLimit),
    }
}
