//! The two programs of this crate: `sluice`, which starts at once because it links no torch, and
//! `sluice-compute`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");
const COMPUTE: &str = env!("CARGO_BIN_EXE_sluice-compute");

/// The shared libraries that a program asks the dynamic linker for.
fn needed(program: &str) -> BTreeSet<String> {
    let output = Command::new("readelf").args(["--dynamic", program]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter(|line| line.contains("(NEEDED)"));
    lines.map(|line| line.split(['[', ']']).nth(1).unwrap().to_owned()).collect()
}

fn is_torch(library: &str) -> bool {
    ["libtorch", "libc10", "libgomp", "libcud"].iter().any(|name| library.starts_with(name))
}

#[test]
fn sluice_needs_no_torch_and_sluice_compute_does() {
    let light = needed(SLUICE);
    let torch: Vec<&String> = light.iter().filter(|library| is_torch(library)).collect();
    assert!(
        torch.is_empty(),
        "sluice needs {torch:?}: a command of its own reaches code that computes, or a catch clause of the C++ bridge \
         names a type of torch's; `-Wl,--why-live=SYMBOL` says which"
    );
    assert!(needed(COMPUTE).iter().any(|library| is_torch(library)));
}

/// `sluice` where it finds no other program of ours.
fn alone(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let sluice = folder.path().join("sluice");
    fs::copy(SLUICE, &sluice).unwrap();
    Command::new(sluice).args(arguments).output().unwrap()
}

#[test]
fn what_does_not_compute_starts_no_other_program() {
    for arguments in [&["--help"][..], &["generate", "--help"], &["--version"]] {
        assert!(alone(arguments).status.success(), "{arguments:?}");
    }
    // Bad usage is found before anything is started.
    assert_eq!(alone(&["score", "--model"]).status.code(), Some(2));
}

#[test]
fn what_computes_says_which_program_is_missing() {
    let output = alone(&["score", "--model", "m", "--input", "i", "--output", "o"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("sluice-compute is missing"), "{said}");
}

#[test]
fn a_command_that_computes_keeps_its_name_and_exit_code() {
    let arguments = ["score", "--model", "/nowhere/model", "--input", "/nowhere/i", "--output", "/nowhere/o"];
    let output = Command::new(SLUICE).args(arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("sluice: ") && said.contains("/nowhere/model"), "{said}");
}

#[test]
fn what_tokens_and_certificates_are_written_a_process_can_use() {
    use service::{Security, SecurityConfig};

    let folder = tempfile::tempdir().unwrap();
    let sluice = |arguments: &[&str]| {
        let output = Command::new(SLUICE).args(arguments).current_dir(folder.path()).output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), said)
    };
    assert_eq!(sluice(&["token", "new", "run.token"]).0, Some(0));
    assert_eq!(sluice(&["token", "roles", "run.token", "tokens"]).0, Some(0));
    assert_eq!(sluice(&["certs", "certs"]).0, Some(0));
    let (code, [_, said]) = sluice(&["token", "new", "run.token"]);
    assert!(code == Some(2) && said.contains("is there already"), "{said}");
    for file in ["run.token", "tokens/actor", "certs/actor.key", "certs/ca.key"] {
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(folder.path().join(file)).unwrap());
        assert_eq!(mode & 0o077, 0, "others read {file}");
    }
    let (_, [shown, _]) = sluice(&["token", "show", "run.token", "actor"]);
    for role in ["coordinator", "reward-server", "learner", "actor", "observer", "operator", "client"] {
        let config = SecurityConfig {
            token_file: Some(folder.path().join("tokens").join(role)),
            certificates: Some(folder.path().join("certs")),
            ..SecurityConfig::default()
        };
        let security = Security::load(role, &config).unwrap();
        let own = security.token_of("actor").filter(|_| role == "actor");
        assert!(role != "actor" || own.as_deref() == Some(shown.trim()), "{role}");
    }
    // Neither opens itself to strangers, unless it is told to.
    std::fs::create_dir_all(folder.path().join("run/ring/config")).unwrap();
    std::fs::write(folder.path().join("run/ring/steps.jsonl"), "").unwrap();
    for command in [
        ["dashboard", "run", "--host", "0.0.0.0"].as_slice(),
        &["serve", "--model", "run", "--host", "0.0.0.0"],
    ] {
        let (code, [_, said]) = sluice(command);
        assert!(code == Some(2) && said.contains("--insecure"), "{command:?}: {said}");
    }
}
