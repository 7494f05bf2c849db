//! What the command says about input that cannot be used: exit code 2, the place, and what to do.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;
use std::process::Command;

use tests::{TinyRing, binary};

/// Runs `sluice` and returns its exit code and what it said on stderr.
fn sluice(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(binary("sluice").unwrap()).args(arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn expect_bad_input(arguments: &[&str], expected: &[&str]) {
    let (code, said) = sluice(arguments);
    assert_eq!(code, 2, "{said}");
    for text in expected {
        assert!(said.contains(text), "{said:?} should say {text:?}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    fs::write(&recipe, "name = 'x'\n[coordinator]\nbatch = 3\n").unwrap();
    expect_bad_input(
        &["run", path(&recipe)],
        &["recipe.toml:3: unknown key coordinator.batch; did you mean"],
    );
    fs::write(&recipe, "name = 'x'\n[[stages]]\nname = 's'\n[stages.sft]\nepoch = 3\n").unwrap();
    expect_bad_input(&["check-config", path(&recipe)], &["recipe.toml:", "epoch"]);
}

#[test]
fn a_missing_model_folder_and_a_truncated_one_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.jsonl");
    fs::write(&input, "{\"id\": 1, \"tokens\": [1, 2]}\n").unwrap();
    let output = folder.path().join("out.jsonl");
    let files = ["--input", path(&input), "--output", path(&output)];
    let nowhere = [&["logprobs", "--model", "/nowhere/model"][..], &files].concat();
    expect_bad_input(&nowhere, &["/nowhere/model"]);

    let ring = TinyRing::new(folder.path()).unwrap().with("coordinator.batches=1");
    ring.run().unwrap();
    let weights = ring.output().join("policy/model.safetensors");
    // The policy is linked to the checkpoint's: it is replaced, not written.
    let bytes = fs::read(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    let model = ring.output().join("policy");
    for command in ["logprobs", "generate"] {
        let truncated = [&[command, "--model", path(&model)][..], &files].concat();
        expect_bad_input(&truncated, &["model.safetensors"]);
    }
}

#[test]
fn a_broken_line_is_named_by_file_and_number() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap();
    let data = folder.path().join("data.jsonl");
    let broken =
        fs::read_to_string(&data).unwrap().replacen("{\"prompt\": \"3 plus", "{\"prompt: \"3 plus", 1);
    fs::write(&data, broken).unwrap();
    let error = ring.run().unwrap_err().to_string();
    assert!(error.contains("data.jsonl:4"), "{error}");
}

#[test]
fn a_port_in_use_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.jsonl");
    fs::write(&data, "{\"prompt\": \"x\"}\n").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = Command::new(binary("sluice-coordinator").unwrap())
        .args(["--set", &format!("data.path={}", data.display())])
        .args(["--set", &format!("journal={}", folder.path().join("journal").display())])
        .args(["--set", &format!("listen={address}")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&address.to_string()) && said.contains("another process listens there"), "{said}");
}
