//! GPUs and their driver against what this build can use.

use std::process::{Command, Stdio};

use model::driver::{MIN_DRIVER, driver, is_too_old};

use super::Finding;

const WHAT: &str = "GPUs";

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
    if is_too_old(driver) {
        return Finding::fail(
            WHAT,
            found,
            format!("libtorch 2.11 needs CUDA 13: a driver from {MIN_DRIVER} on"),
        );
    }
    Finding::ok(WHAT, found)
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
    }
}
