//! GPUs and their driver against what this build can use.

use std::fs;
use std::process::{Command, Stdio};

use super::Finding;

const WHAT: &str = "GPUs";
/// The oldest driver that runs CUDA 13, which libtorch 2.11 is built with (CUDA's release notes, table 3).
const MIN_DRIVER: u32 = 580;

/// Whether there are some, and whether this build and the driver fit.
pub(super) fn gpus() -> Finding {
    verdict(cfg!(feature = "cuda"), driver().as_deref(), &names())
}

fn verdict(is_cuda_build: bool, driver: Option<&str>, names: &[String]) -> Finding {
    let Some(driver) = driver else {
        return if is_cuda_build {
            let advice = "this build computes on GPUs: install NVIDIA's driver, or give the container its GPUs (--gpus all, nvidia.com/gpu); `device = \"cpu\"` works meanwhile";
            Finding::warn(WHAT, "no driver, no GPU", advice)
        } else {
            Finding::ok(WHAT, "none, and this build computes on the CPU")
        };
    };
    let found = format!(
        "{}, driver {driver}",
        if names.is_empty() { "none seen".to_owned() } else { names.join(", ") }
    );
    let major: Option<u32> = driver.split('.').next().and_then(|major| major.parse().ok());
    if !is_cuda_build {
        let advice = "this build leaves them alone: setup/install.sh cuda, then LIBTORCH=$PWD/.deps/cuda/torch cargo build --release --workspace --features cli/cuda";
        return Finding::warn(WHAT, found, advice);
    }
    if names.is_empty() {
        return Finding::warn(
            WHAT,
            found,
            "nvidia-smi shows no GPU: look at CUDA_VISIBLE_DEVICES and at the container's devices",
        );
    }
    if major.is_some_and(|major| major < MIN_DRIVER) {
        return Finding::fail(
            WHAT,
            found,
            format!("libtorch 2.11 needs CUDA 13: a driver from {MIN_DRIVER} on"),
        );
    }
    Finding::ok(WHAT, found)
}

/// The version of the kernel's driver.
fn driver() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    version_in(&text)
}

/// `580.65.06` of `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun ...`.
fn version_in(text: &str) -> Option<String> {
    text.lines().next()?.split_whitespace().find(|word| is_version(word)).map(str::to_owned)
}

fn is_version(word: &str) -> bool {
    word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.')
}

fn names() -> Vec<String> {
    let asked = Command::new("nvidia-smi")
        .args(["--query-gpu=name,memory.total", "--format=csv,noheader"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let said =
        asked.ok().filter(|output| output.status.success()).map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said)
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn of(cuda: bool, driver: Option<&str>, names: &[String]) -> Level {
        verdict(cuda, driver, names).level
    }

    #[test]
    fn the_build_the_driver_and_the_gpus_have_to_fit() {
        let gpu = ["NVIDIA H200, 143771 MiB".to_owned()];
        assert_eq!(of(false, None, &[]), Level::Ok);
        assert_eq!(of(true, None, &[]), Level::Warn);
        assert_eq!(of(false, Some("580.1"), &gpu), Level::Warn);
        assert_eq!(of(true, Some("580.65.06"), &gpu), Level::Ok);
        assert_eq!(of(true, Some("570.1"), &gpu), Level::Fail);
        assert_eq!(of(true, Some("580.1"), &[]), Level::Warn);
        let line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025\n";
        assert_eq!(version_in(line).as_deref(), Some("580.65.06"));
    }
}
