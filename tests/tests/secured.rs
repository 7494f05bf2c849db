//! A ring whose processes prove who they are: it trains what it trains without, and every response is graded
//! by its own prompt's fields, which no actor has.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::{TinyRing, binary};

/// Graded by a field of the prompt.
const SCORERS: &str = "reward_server.scorers=[{kind = \"numeric-match\", field = \"label\"}, \
                       {kind = \"length-penalty\", weight = 0.1, free_tokens = 1, max_tokens = 12}]";

fn ring(folder: &Path) -> TinyRing {
    let ring = TinyRing::new(folder).unwrap();
    let mut lines = String::new();
    for number in 0..64 {
        let (a, b) = (number % 8, number / 8);
        let sum = a + b;
        writeln!(
            lines,
            "{{\"prompt\": \"{a} plus {b} is\", \"response\": \" {sum}.\", \"label\": {sum}, \"test\": \"hidden\"}}"
        )
        .unwrap();
    }
    fs::write(folder.join("data.jsonl"), lines).unwrap();
    ring.with(SCORERS).with("coordinator.samples.per_batch=32").with("processes.reward_servers=2")
}

fn sluice(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary("sluice").unwrap()).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The last number of a text, as far as this task needs it.
fn last_number(text: &str) -> Option<i64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number = digits.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    let sign = if digits.strip_suffix(number)?.ends_with('-') { -1 } else { 1 };
    Some(sign * number.parse::<i64>().ok()?)
}

/// Grades every response that was written down anew.
fn assert_graded_by_its_own_prompt(ring: &TinyRing) {
    let samples = fs::read_to_string(ring.output().join("ring/samples.jsonl")).unwrap();
    let mut by_number = [0; 2];
    for line in samples.lines() {
        let sample: Value = serde_json::from_str(line).unwrap();
        let (Some(prompt), Some(response)) = (sample["prompt"].as_str(), sample["response"].as_str()) else {
            continue;
        };
        let words: Vec<&str> = prompt.split(' ').collect();
        let sum = words[0].parse::<i64>().unwrap() + words[2].parse::<i64>().unwrap();
        let right = last_number(response) == Some(sum);
        let given = sample["scorers"]["numeric-match"].as_f64().unwrap();
        assert_eq!(given, f64::from(u8::from(right)), "{line}");
        by_number[usize::from(right)] += 1;
    }
    println!("{} wrong and {} right responses", by_number[0], by_number[1]);
    assert!(by_number.iter().all(|count| *count > 0), "{by_number:?}");
}

#[test]
fn a_ring_that_asks_for_tokens_and_certificates_trains_what_an_open_one_does() {
    let (plain, guarded) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = ring(plain.path());
    open.run().unwrap();
    assert_graded_by_its_own_prompt(&open);

    let path = |name: &str| guarded.path().join(name).display().to_string();
    assert_eq!(sluice(&["token", "new", &path("token")]).0, Some(0));
    assert_eq!(sluice(&["certs", &path("certs")]).0, Some(0));
    let secured = ring(guarded.path())
        .with(&format!("security.token_file={}", path("token")))
        .with(&format!("security.certificates={}", path("certs")));
    secured.run().unwrap();
    assert_graded_by_its_own_prompt(&secured);
    assert_eq!(secured.steps().unwrap().len(), open.steps().unwrap().len());
    assert!(secured.weights().unwrap() == open.weights().unwrap(), "another policy came out");
    for role in ["coordinator", "reward-server-0", "learner", "actor-0"] {
        let log = secured.log(role).unwrap();
        assert!(!log.contains(" refused "), "{role}: {log}");
    }
}

#[test]
fn a_token_file_that_is_missing_is_named_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let ring = ring(folder.path()).with("security.token_file=/nonexistent/token");
    let output = ring.command().unwrap().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("security.token_file") && said.contains("sluice token new"), "{said}");
    assert!(!ring.output().join("ring").exists());
}
