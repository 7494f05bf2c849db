//! Cases from public reports of graders, through `sluice grade` in both tiers: each has the verdicts that are
//! right for it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tests::binary;

/// Lines of `problem`, `completion`, and `right`: the verdicts that are right, several where a value may
/// cross or be refused with a reason.
fn cases() -> Vec<Value> {
    let text = include_str!("cases/grading.jsonl");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn lines(values: impl Iterator<Item = Value>) -> String {
    values.map(|value| format!("{value}\n")).collect()
}

fn grade(folder: &Path, tier: &str) -> Vec<Value> {
    let mut command = Command::new(binary("sluice").unwrap());
    command.args(["grade", "--problems", "p.jsonl", "--samples", "s.jsonl", "--output", "grades.jsonl"]);
    let output =
        command.args(["--prelude", "prelude.py", "--tier", tier]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(folder.join("grades.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_reported_case_has_its_right_verdict_in_both_tiers() {
    let cases = cases();
    assert!(cases.len() > 50);
    let folder = tempfile::tempdir().unwrap();
    let problems = lines(cases.iter().map(|case| case["problem"].clone()));
    let samples = lines(
        cases
            .iter()
            .map(|case| json!({"task_id": case["problem"]["task_id"], "completion": case["completion"]})),
    );
    let prelude = "from typing import *\n".to_owned();
    for (name, text) in [("p.jsonl", problems), ("s.jsonl", samples), ("prelude.py", prelude)] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    for tier in ["a", "b"] {
        let mut wrong = Vec::new();
        for (case, grade) in cases.iter().zip(grade(folder.path(), tier)) {
            let right = case["right"].as_array().unwrap();
            if !right.contains(&grade["verdict"]) {
                let (task_id, verdict, detail) = (&grade["task_id"], &grade["verdict"], &grade["detail"]);
                wrong.push(format!("{task_id}: {verdict} ({detail}), right is {right:?}"));
            }
        }
        assert!(wrong.is_empty(), "tier {tier}, {} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    }
}
