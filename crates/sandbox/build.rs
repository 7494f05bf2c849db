//! Builds the native half of the zygote (`native/`) as a shared object that `sluice-sandbox-init` embeds.
//!
//! It has to be a shared object because an interpreter loads it, and it has to be inside the helper because a
//! set-up that depends on a second file being in place can be broken by moving one of them. Cargo has no
//! ordinary way to embed one target's artefact in another: artefact dependencies are a nightly feature, and a
//! `cdylib` member of the workspace would be built beside the helper, in no order that the helper could rely
//! on. So this script calls the compiler itself, with cargo's target and linker; `cargo build` alone stays
//! enough, and clippy sees the sources through `src/bin/sandbox_init/main.rs`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let output = PathBuf::from(variable("OUT_DIR")).join("sluice_native.so");
    println!("cargo::rerun-if-changed=native");
    println!("cargo::rerun-if-changed=src/wire.rs");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--crate-name=sluice_native", "--crate-type=cdylib", "--edition=2024", "native/lib.rs"]);
    rustc.args(["-Copt-level=2", "-Cpanic=abort", "-Cstrip=symbols", "-Crelocation-model=pic"]);
    rustc.arg("--target").arg(variable("TARGET")).arg("-o").arg(&output);
    if let Some(linker) = std::env::var_os("RUSTC_LINKER") {
        let mut option = OsString::from("linker=");
        option.push(linker);
        rustc.arg("-C").arg(option);
    }
    let status = rustc.status().expect("the compiler that runs this script can be started");
    assert!(status.success(), "native/lib.rs did not compile: {status}");
}

/// What cargo tells a build script.
fn variable(name: &str) -> OsString {
    std::env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"))
}
