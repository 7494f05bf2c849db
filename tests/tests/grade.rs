//! `sluice grade` as a process: grades come in the samples' order, and what was graded is kept.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tests::binary;

/// A folder with one problem of HumanEval's shape.
fn problems(folder: &Path) -> PathBuf {
    let path = folder.join("problems.jsonl");
    let problem = json!({
        "task_id": "Test/0",
        "prompt": "def add(a, b):\n",
        "entry_point": "add",
        "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    });
    fs::write(&path, format!("{problem}\n")).unwrap();
    path
}

/// A sample that adds, and one that does not; `number` tells them apart.
fn sample(number: usize, right: bool) -> String {
    let sign = if right { '+' } else { '-' };
    let sample =
        json!({"task_id": "Test/0", "number": number, "completion": format!("    return a {sign} b\n")});
    format!("{sample}\n")
}

fn grade(folder: &Path, samples: &str, stdin: &str) -> Output {
    let mut command = Command::new(binary("sluice").unwrap());
    command.arg("grade").arg("--problems").arg(problems(folder)).args(["--samples", samples, "--json"]);
    command.arg("--output").arg(folder.join("grades.jsonl"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that never reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn grades(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("grades.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// More samples than are in hand at a time; the slow ones are overtaken, but not on paper.
#[test]
fn grades_lie_in_the_order_of_the_samples() {
    let folder = tempfile::tempdir().unwrap();
    let mut text: String = (0..400).map(|number| sample(number, number % 3 == 0)).collect();
    let slow = "    import time; time.sleep(0.5)\n    return a + b\n";
    text.insert_str(0, &format!("{}\n", json!({"task_id": "Test/0", "number": "slow", "completion": slow})));
    let output = grade(folder.path(), "-", &text);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let grades = grades(folder.path());
    assert_eq!(grades.len(), 401);
    assert_eq!((&grades[0]["number"], &grades[0]["passed"]), (&json!("slow"), &json!(true)));
    for (number, grade) in grades[1..].iter().enumerate() {
        assert_eq!(grade["number"], number);
        assert_eq!(grade["passed"], number % 3 == 0, "{grade}");
    }
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["problems"], 1);
    let rate = said["pass"]["pass@1"].as_f64().unwrap();
    assert!((rate - 135.0 / 401.0).abs() < 1e-9, "{said}");
}

#[test]
fn a_broken_sample_ends_a_stream_after_those_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let broken = "{\"task_id\": \"Test/1\", \"completion\": \"\"}\n";
    let text = format!("{}{}{broken}{}", sample(0, true), sample(1, false), sample(3, true));
    let output = grade(folder.path(), "-", &text);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("-:3: task_id \"Test/1\" is no problem of"), "{said}");
    let verdicts: Vec<Value> =
        grades(folder.path()).into_iter().map(|grade| grade["passed"].clone()).collect();
    assert_eq!(verdicts, [true, false]);
}

/// A file is looked through before anything runs.
#[test]
fn a_broken_sample_of_a_file_is_named_before_any_is_graded() {
    let folder = tempfile::tempdir().unwrap();
    let samples = folder.path().join("samples.jsonl");
    fs::write(&samples, format!("{}{{\"task_id\": \"Test/0\"}}\n", sample(0, true))).unwrap();
    let output = grade(folder.path(), samples.to_str().unwrap(), "");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("samples.jsonl:2: missing field `completion`"), "{said}");
    assert!(!folder.path().join("grades.jsonl").exists());
}
