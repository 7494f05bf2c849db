//! Small models of public reports, each a folder of its own making: what was wrong with it, end to end.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::binary;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name)
}

/// Runs `sluice` to its end in a folder, and yields what it printed and what it said.
fn sluice(arguments: &[&str], folder: &Path) -> (String, String) {
    let mut command = Command::new(binary("sluice").unwrap());
    let output = command.args(arguments).current_dir(folder).env("OMP_NUM_THREADS", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    (String::from_utf8(output.stdout).unwrap(), said)
}

/// A model whose tokenizer marks spaces as SentencePiece does answers with an indented line. Decoded alone
/// the line has a space less, which is no Python.
#[test]
fn the_first_space_of_a_response_is_there_and_its_program_passes() {
    let (case, folder) = (case("first-space"), tempfile::tempdir().unwrap());
    let at = |name: &str| case.join(name).to_str().unwrap().to_owned();
    let common = ["--model", &at("model"), "--temperature", "0", "--max-new-tokens", "12"];
    let generate = ["generate", "--input", &at("prompt.jsonl"), "--output", "out.jsonl"];
    sluice(&[&generate[..], &common].concat(), folder.path());
    let line: Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("out.jsonl")).unwrap()).unwrap();
    assert_eq!(line["text"], "    return 1", "{line}");
    let eval = ["eval", "--problems", &at("humaneval.jsonl"), "--json"];
    let (said, _) = sluice(&[&eval[..], &common].concat(), folder.path());
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["pass"]["pass@1"], 1.0, "{said}");
}

/// A response that ends with the end token already gets no second one in the loss: 10.1223 as TRL computes
/// it, and 9.0119 with two.
#[test]
fn a_response_that_has_its_end_is_not_ended_twice() {
    let (case, folder) = (case("sft-eos-twice"), tempfile::tempdir().unwrap());
    let config = fs::read_to_string(case.join("sft.toml")).unwrap();
    let config = config.replace("\"model\"", &format!("{:?}", case.join("model")));
    fs::write(folder.path().join("sft.toml"), config).unwrap();
    fs::copy(case.join("data.jsonl"), folder.path().join("data.jsonl")).unwrap();
    let (printed, said) = sluice(&["sft", "--config", "sft.toml"], folder.path());
    let said = printed + &said;
    assert!(said.contains("3 of 6 tokens learnt") && said.contains("held-out loss 10.1223"), "{said}");
}
