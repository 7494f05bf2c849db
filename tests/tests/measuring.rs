//! `bench/gpu/all.sh` on a machine without a GPU, with programs that say at once what they would measure.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tests::root;

const SPEED: &str = r#"echo '{"new_tokens": 12, "steps": 4, "replayed_steps": 0, "seconds": 0.5}'"#;
const SWAP: &str = r#"echo '{"bytes": 100, "prepare_seconds": 0.25, "swap_seconds": 0.001}'"#;
const STEPS: &str = r#"echo '{"step": 1, "seconds": 2.0}'; echo '{"step": 2, "seconds": 1.5}'"#;

/// Runs it with these programs; its outcome and what it has written.
fn measure(folder: &Path, programs: [(&str, &str); 3], limit: &str) -> (Output, Value) {
    for (name, body) in programs {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let out = folder.join("out");
    let mut command = Command::new(root().join("bench/gpu/all.sh"));
    command.arg(&out).env("DEVICE", "cpu").env("BIN", folder).env("LIMIT", limit);
    let output = command.output().unwrap();
    let result = fs::read_to_string(out.join("result.json")).unwrap();
    (output, serde_json::from_str(&result).unwrap())
}

fn outcomes(result: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let stages = result["stages"].as_array().unwrap().iter();
    stages.map(|stage| (text(&stage["stage"]), text(&stage["outcome"]))).collect()
}

#[test]
fn one_command_measures_all_and_says_it_twice() {
    let folder = tempfile::tempdir().unwrap();
    let programs = [("engine_speed", SPEED), ("engine_swap", SWAP), ("steps", STEPS)];
    let (output, result) = measure(folder.path(), programs, "120");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let done: Vec<String> =
        outcomes(&result).into_iter().map(|(stage, outcome)| format!("{stage} {outcome}")).collect();
    assert_eq!(done, ["look done", "tests done", "nccl done", "engine done", "swap done", "step done"]);
    assert_eq!(result["failed_first"], Value::Null);
    let engine = result["results"]["engine"].as_array().unwrap();
    assert_eq!(engine.len(), 4, "two contexts, two batches");
    assert_eq!((engine[3]["batch"].as_u64(), engine[3]["tokens_per_second"].as_f64()), (Some(3), Some(24.0)));
    assert_eq!(result["results"]["swap"][0]["swap_seconds"], 0.001);
    assert_eq!(result["results"]["step"][0]["tokens_per_second"], 8.0 * 24.0 / 1.5);
    let table = fs::read_to_string(folder.path().join("out/table.md")).unwrap();
    for row in [
        "| engine tiny, batch 1, context 16 | 8 tokens/s |",
        "| swap tiny | 0.250 s to prepare",
        "| PPO step tiny",
    ] {
        assert!(table.contains(row), "{row}: {table}");
    }
}

#[test]
fn it_stops_at_the_first_stage_that_fails_and_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let broken = "echo 'CUDA error: an illegal memory access' >&2; exit 3";
    let programs = [("engine_speed", SPEED), ("engine_swap", broken), ("steps", STEPS)];
    let (output, result) = measure(folder.path(), programs, "120");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("failed first: swap") && said.contains("illegal memory access"), "{said}");
    let outcomes = outcomes(&result);
    assert_eq!(outcomes[4..], [("swap".into(), "failed".into()), ("step".into(), "left out".into())]);
    assert_eq!(result["results"]["engine"].as_array().unwrap().len(), 4, "what was measured before is kept");
}

#[test]
fn its_time_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    // The process itself waits: a child of the shell would outlive it.
    let programs = [("engine_speed", "exec sleep 600"), ("engine_swap", SWAP), ("steps", STEPS)];
    let (output, result) = measure(folder.path(), programs, "12");
    assert_eq!(output.status.code(), Some(1));
    assert!(result["seconds"].as_f64().unwrap() < 60.0, "{result}");
    assert_eq!(result["failed_first"]["stage"], "engine");
    assert!(result["failed_first"]["problem"].as_str().unwrap().contains("took longer than"), "{result}");
}
