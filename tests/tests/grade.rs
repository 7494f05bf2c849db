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
    assert!(said.contains("samples.jsonl:2: has no completion, no text and no solution"), "{said}");
    assert!(!folder.path().join("grades.jsonl").exists());
}

/// Chat answers, whole answers and missing imports, judged as in the ring.
#[test]
fn what_is_graded_is_the_program_in_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let whole = "def add(a, b):\n    return a + b\n";
    let stub = "def add(a, b):\n    \"\"\"Adds two numbers.\"\"\"\n";
    let human_eval = |prompt: &str| json!({"prompt": prompt, "entry_point": "add", "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"});
    let mbpp = || json!({"test_list": ["assert add(1, 2) == 3"]});
    let stdio = json!({"kind": "stdio", "cases": [{"stdin": "2\n", "expected_stdout": "4\n"}]});
    let square = "print(int(input()) ** 2)";
    let typed = "def add(a: Optional[int], b: int) -> int:\n    return a + b\n";
    let cases = [
        (human_eval(stub), format!("Here:\n\n```python\n{whole}```\nIt adds.\n")),
        (human_eval(stub), format!("```python\n{whole}")),
        (human_eval(stub), format!("{whole}```")),
        (human_eval(stub), format!("```python\n{whole}```\nUse it so:\n```python\nprint(add(1, 2))\n```\n")),
        (human_eval(stub), format!("from __future__ import annotations\n\n{whole}")),
        (human_eval(stub.trim_end()), whole.to_owned()),
        (human_eval(stub), format!("<think>\n```python\nadd = 0\n```\n</think>\n{whole}")),
        (mbpp(), format!("[BEGIN]\n{whole}[DONE]")),
        (mbpp(), typed.to_owned()),
        (stdio, format!("```python\n{square}\n```\nOutput:\n```\n4\n```\n")),
    ];
    let (mut problems, mut samples) = (String::new(), String::new());
    for (number, (problem, completion)) in cases.into_iter().enumerate() {
        let mut problem = problem;
        problem["task_id"] = json!(number.to_string());
        problems += &format!("{problem}\n");
        samples += &format!("{}\n", json!({"task_id": number.to_string(), "completion": completion}));
    }
    let recipe = "[reward_server.sandbox.grader]\nprelude = \"from typing import *\"\n";
    for (name, text) in [("p.jsonl", &problems), ("s.jsonl", &samples), ("recipe.toml", &recipe.to_owned())] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let run = |extra: &[&str]| {
        let mut command = Command::new(binary("sluice").unwrap());
        command.args(["grade", "--problems", "p.jsonl", "--samples", "s.jsonl", "--output", "grades.jsonl"]);
        let output =
            command.args(["--config", "recipe.toml"]).args(extra).current_dir(folder.path()).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        grades(folder.path())
    };
    for grade in run(&[]) {
        assert_eq!(grade["verdict"], "accepted", "{grade}");
    }
    let whole = run(&["--extract", "whole"]);
    assert!(whole.iter().filter(|grade| grade["passed"] == true).count() < 5, "{whole:?}");
}

#[test]
fn a_configuration_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("p.jsonl"), "").unwrap();
    fs::write(folder.path().join("rs.toml"), "[sandbox]\nextrakt = \"whole\"\n").unwrap();
    let mut command = Command::new(binary("sluice").unwrap());
    command.args([
        "grade",
        "--problems",
        "p.jsonl",
        "--samples",
        "-",
        "--output",
        "-",
        "--config",
        "rs.toml",
    ]);
    let output = command.current_dir(folder.path()).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("rs.toml") && said.contains("extrakt"), "{said}");
}

/// Runs `sluice grade` on `p.jsonl` and `s.jsonl` of a folder.
fn grade_files(folder: &Path, problems: &str, samples: &str, more: &[&str]) -> Output {
    fs::write(folder.join("p.jsonl"), problems).unwrap();
    fs::write(folder.join("s.jsonl"), samples).unwrap();
    let mut command = Command::new(binary("sluice").unwrap());
    command.args(["grade", "--problems", "p.jsonl", "--samples", "s.jsonl", "--output", "grades.jsonl"]);
    command.args(["--json"]).args(more).current_dir(folder).stdin(Stdio::null()).output().unwrap()
}

fn add_problem(task_id: &str, sum: i64) -> String {
    let problem = json!({"task_id": task_id, "test_list": [format!("assert add(2, 3) == {sum}")]});
    format!("{problem}\n")
}

/// The last of two would decide for both, and nobody would know.
#[test]
fn two_problems_of_one_name_are_refused_with_both_lines() {
    let folder = tempfile::tempdir().unwrap();
    let problems = [add_problem("a", 5), add_problem("b", 5), "\n".to_owned(), add_problem("a", 6)].concat();
    let sample = |task_id: &str| {
        format!("{}\n", json!({"task_id": task_id, "completion": "def add(a, b):\n    return a + b\n"}))
    };
    let samples = sample("a") + &sample("b");
    let output = grade_files(folder.path(), &problems, &samples, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("p.jsonl:4: task_id \"a\" stands in line 1 already"), "{said}");
    assert!(!folder.path().join("grades.jsonl").exists(), "nothing has run");

    let output = grade_files(folder.path(), &problems, &samples, &["--keep-going"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("1 line was wrong"), "{said}");
    let verdicts: Vec<Value> =
        grades(folder.path()).into_iter().map(|grade| grade["verdict"].clone()).collect();
    assert_eq!(verdicts, ["accepted", "accepted"], "the first of the two");

    // A number and its text are one name: that of a file's problem is compared with that of a sample.
    let numbered = format!("{}\n", json!({"task_id": 7, "test_list": ["assert add(2, 3) == 5"]}));
    let output = grade_files(folder.path(), &(add_problem("7", 5) + &numbered), &sample("7"), &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("p.jsonl:2: task_id \"7\""), "{said}");
}

/// The limits, the interpreter and the modules of the ring are the tool's.
#[test]
fn limits_interpreter_and_import_paths_come_from_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let modules = folder.path().join("modules");
    fs::create_dir(&modules).unwrap();
    fs::write(modules.join("ours.py"), "def plus(a, b):\n    return a + b\n").unwrap();
    let samples: String = [
        "import ours\n\ndef add(a, b):\n    return ours.plus(a, b)\n",
        "import time\n\ndef add(a, b):\n    end = time.process_time() + 1\n    while time.process_time() < end:\n        pass\n    \
         return a + b\n",
    ]
    .iter()
    .map(|completion| format!("{}\n", json!({"task_id": "a", "solution": completion})))
    .collect();
    let verdicts = |config: &str| {
        fs::write(folder.path().join("rs.toml"), config).unwrap();
        let output = grade_files(
            folder.path(),
            &add_problem("a", 5),
            &samples,
            &["--config", "rs.toml", "--jobs", "1"],
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        grades(folder.path()).into_iter().map(|grade| grade["verdict"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(verdicts(""), ["runtime_error", "accepted"], "by default");
    let config = format!(
        "[sandbox.grader]\nimport_paths = [{:?}]\ninterpreter = \"/usr/bin/python3\"\n\
         [sandbox.limits]\ncpu = \"200ms\"\n",
        modules
    );
    assert_eq!(verdicts(&config), ["accepted", "time_limit"]);
    let recipe = config.replace("[sandbox.", "[reward_server.sandbox.");
    assert_eq!(verdicts(&recipe), ["accepted", "time_limit"], "a recipe's");
    fs::write(folder.path().join("rs.toml"), "[sandbox.grader]\ninterpreter = \"/nowhere/python3\"\n")
        .unwrap();
    let output = grade_files(folder.path(), &add_problem("a", 5), &samples, &["--config", "rs.toml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("/nowhere/python3"), "{said}");
}

/// EvalPlus writes whole programs under `solution`; an editor on Windows marks its files.
#[test]
fn samples_of_evalplus_and_files_with_a_mark_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let sample =
        json!({"task_id": "a", "solution": "def add(a, b):\n    return a + b\n", "raw_solution": "..."});
    let mark = "\u{feff}";
    let problems = format!("{mark}{}", add_problem("a", 5).replace('\n', "\r\n"));
    let output = grade_files(folder.path(), &problems, &format!("{mark}{sample}\r\n"), &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(grades(folder.path())[0]["verdict"], "accepted");
}
