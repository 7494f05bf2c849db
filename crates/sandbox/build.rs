//! Builds the native half of the zygote (`native/`) as a shared object that `sluice-sandbox-init` embeds.
//!
//! It has to be a shared object because an interpreter loads it, and it has to be inside the helper because a set-up that
//! depends on a second file being in place can be broken by moving one of them.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let variable =
        |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"));
    let output = PathBuf::from(variable("OUT_DIR")).join("sluice_native.so");
    println!("cargo::rerun-if-changed=native");
    println!("cargo::rerun-if-changed=src/wire.rs");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--crate-name=sluice_native", "--crate-type=cdylib", "--edition=2024", "native/lib.rs"]);
    rustc.args(["-Copt-level=2", "-Cpanic=abort", "-Cstrip=symbols", "-Crelocation-model=pic"]);
    rustc.arg("--target").arg(variable("TARGET")).arg("-o").arg(&output);
    if let Some(linker) = std::env::var_os("RUSTC_LINKER") {
        rustc.arg("-C").arg({
            let mut option = std::ffi::OsString::from("linker=");
            option.push(linker);
            option
        });
    }
    let status = rustc.status().expect("the compiler that runs this script can be started");
    assert!(status.success(), "native/lib.rs did not compile: {status}");
}
