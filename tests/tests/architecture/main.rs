//! The arrows between crates and files, and the rules of form that no lint knows. ARCHITECTURE.md says why.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod circles;
mod hardware;
mod surface;
mod words;
mod workspace;

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::DependencyKind;

use tests::root;
use workspace::{metadata, sources};

/// Most lines of a source file.
const MAX_FILE_LINES: usize = 500;

/// Who may know whom. Nothing else.
const ARROWS: [(&str, &[&str]); 21] = [
    ("types", &[]),
    ("algo", &[]),
    ("service", &[]),
    ("model", &[]),
    ("collective", &[]),
    ("sandbox", &[]),
    ("extraction", &["sandbox"]),
    ("torch-build", &[]),
    ("fuzz", &[]),
    ("proto", &["types"]),
    ("engine", &["types", "model"]),
    ("openai", &["engine", "types", "model"]),
    ("weights", &["proto", "types", "service", "model", "collective"]),
    ("dashboard", &["service"]),
    ("coordinator", &["proto", "types", "algo", "service", "dashboard"]),
    ("reward-server", &["proto", "types", "service", "model", "sandbox", "extraction"]),
    ("actor", &["proto", "types", "service", "model", "engine", "openai", "weights"]),
    ("learner", &["proto", "types", "algo", "service", "model", "collective", "weights"]),
    (
        "cli",
        &[
            "actor",
            "algo",
            "coordinator",
            "dashboard",
            "engine",
            "extraction",
            "learner",
            "model",
            "openai",
            "proto",
            "reward-server",
            "sandbox",
            "service",
            "types",
        ],
    ),
    ("noise-mask", &["algo"]),
    ("tests", &[]),
];

#[test]
fn crates_know_only_whom_they_may() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let ours: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(ours, allowed.keys().copied().collect(), "every crate has its arrows listed");
    for package in &metadata.packages {
        let known =
            package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
        for dependency in known.filter(|dependency| ours.contains(dependency.name.as_str())) {
            assert!(
                allowed[package.name.as_str()].contains(&dependency.name.as_str()),
                "{} must not know {}",
                package.name,
                dependency.name
            );
        }
    }
}

#[test]
fn only_roles_that_compute_link_torch() {
    let metadata = metadata();
    for name in ["types", "algo", "service", "sandbox", "proto", "dashboard", "coordinator"] {
        let package = metadata.packages.iter().find(|package| package.name.as_str() == name).unwrap();
        let torch = package.dependencies.iter().any(|dependency| dependency.name == "tch");
        assert!(!torch, "{name} must not link torch");
    }
}

#[test]
fn files_are_short_and_named_for_what_they_do() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= MAX_FILE_LINES, "{} has {lines} lines; split it", path.display());
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let empty_words = ["mod", "util", "utils", "common", "helper", "helpers", "misc", "shared"];
        assert!(!empty_words.contains(&name.as_str()), "{}: name it for what it does", path.display());
        assert!(text.trim_start().starts_with("//!"), "{} does not say what it is", path.display());
    }
}

#[test]
fn generated_types_stop_at_the_boundary() {
    for (path, text) in sources() {
        let relative = path.strip_prefix(root()).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let may = relative.starts_with("proto")
            || relative.starts_with("tests")
            || relative
                .components()
                .any(|part| part.as_os_str() == "tests" || part.as_os_str() == "examples")
            || name == "grpc.rs"
            || name.ends_with("_client.rs");
        let names_pb = text.contains("proto::pb") || text.contains("pb::");
        assert!(may || !names_pb, "{} names generated types; use the domain's", relative.display());
    }
}

/// What a step reads of a device is counted (`learner/src/host.rs`), so that a test can bound it.
#[test]
fn the_learner_reads_devices_in_one_file() {
    let readers = [
        ".double_value(",
        ".int64_value(",
        "Vec::try_from(",
        "Vec::<f32>::try_from(",
        "copy_data(",
        "to_device(Device::Cpu",
        "to_device(tch::Device::Cpu",
        "to_device_(",
        ".wait(Duration::MAX)",
    ];
    let mut found_host = false;
    for (path, text) in sources() {
        let relative = path.strip_prefix(root()).unwrap();
        if !relative.starts_with("learner/src") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let reads: Vec<&str> = readers.into_iter().filter(|reader| code.contains(reader)).collect();
        if relative.ends_with("host.rs") {
            found_host = reads.len() == 6;
        } else {
            assert_eq!(reads, Vec::<&str>::new(), "{}: ask host.rs, which counts", relative.display());
        }
    }
    assert!(found_host, "host.rs reads and waits in its six ways");
}

#[test]
fn no_source_is_unfinished() {
    let marks = ["TO", "FIX", "HA", "XX"].iter().zip(["DO", "ME", "CK", "X"]);
    let marks: Vec<String> = marks.map(|(first, second)| format!("{first}{second}")).collect();
    for (path, text) in sources() {
        for mark in &marks {
            let found = text.split(|c: char| !c.is_ascii_alphabetic()).any(|word| word == mark);
            assert!(!found, "{} holds a {mark}", path.display());
        }
        assert!(!text.contains(concat!("#[ign", "ore")), "{} skips a test", path.display());
    }
}
