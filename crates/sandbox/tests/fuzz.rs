//! The boundary between tester and candidate under a hostile candidate: random, mutated and
//! well-formed-but-wrong frames against the tester's own modules (`fuzz/boundary.py` says how).
//!
//! Some seconds here; longer by hand, and with another seed: `SLUICE_FUZZ_SECONDS=3600
//! SLUICE_FUZZ_FRAMES=10000000 SLUICE_FUZZ_SEED=2 cargo test -p sandbox --test fuzz -- --nocapture`.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

use std::io::Write as _;
use std::process::{Command, Stdio};

/// The trusted side, in the order in which its modules import each other.
const MODULES: [(&str, &str); 6] = [
    ("remote", include_str!("../src/python/remote.py")),
    ("graph", include_str!("../src/python/graph.py")),
    ("values", include_str!("../src/python/values.py")),
    ("session", include_str!("../src/python/session.py")),
    ("suite", include_str!("../src/python/suite.py")),
    ("tester", include_str!("../src/python/tester.py")),
];

fn setting(name: &str, default: &str) -> String {
    std::env::var_os(name).map_or(default.to_owned(), |text| text.to_string_lossy().into_owned())
}

#[test]
fn no_frame_of_a_hostile_candidate_passes_crashes_or_leaves_judgement() {
    let arguments = [
        setting("SLUICE_FUZZ_SECONDS", "8"),
        setting("SLUICE_FUZZ_FRAMES", "1000000000"),
        setting("SLUICE_FUZZ_SEED", "1"),
    ];
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", include_str!("fuzz/boundary.py")])
        .args(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Sorted by name on the way, so that the order travels apart.
    let modules: Vec<_> = MODULES.iter().map(|(name, text)| serde_json::json!([name, text])).collect();
    python.stdin.take().unwrap().write_all(serde_json::json!(modules).to_string().as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{:?} {said}", output.status);
    println!("{said}");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(said["frames"].as_u64().unwrap() > 1000, "{said}");
}
