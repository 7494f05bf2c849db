//! Where a network is computed, as configurations write it.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::driver;

/// A device, written `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The processor and its memory.
    #[default]
    Cpu,
    /// The GPU with this index.
    Cuda(usize),
}

impl Device {
    /// Torch's name for it.
    pub fn to_torch(self) -> tch::Device {
        self.of_rank(0)
    }

    /// Torch's name for it. Where ranks share a machine, rank `r` takes the `r`-th GPU after this one.
    pub fn of_rank(self, rank: usize) -> tch::Device {
        match self {
            Self::Cpu => tch::Device::Cpu,
            Self::Cuda(first) => tch::Device::Cuda(first + rank),
        }
    }

    /// A name of the GPU that no other has, wherever it is; none of the processor, or where torch does not
    /// see it.
    pub fn gpu_name(self) -> Option<String> {
        match self {
            Self::Cpu => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => crate::cuda::gpu_name(index).ok(),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => None,
        }
    }

    /// What is free of its memory, and all of it, in bytes; none for the processor's.
    ///
    /// # Errors
    /// When torch does not see it.
    pub fn memory(self) -> Result<Option<(u64, u64)>, tch::TchError> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => crate::cuda::memory(index).map(Some),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => Ok(None),
        }
    }

    /// Why this device and those of so many ranks in all cannot be used here, if they cannot.
    pub fn problem(self, ranks: usize) -> Option<String> {
        let Self::Cuda(_) = self else { return None };
        let there =
            Surroundings { driver: driver::driver(), gpus: gpus(), is_cuda_build: cfg!(feature = "cuda") };
        there.problem(self, ranks)
    }
}

/// What a device is asked of.
struct Surroundings {
    is_cuda_build: bool,
    driver: Option<String>,
    /// GPUs that torch sees.
    gpus: usize,
}

impl Surroundings {
    /// What is in the way: the build, the driver, or the number of GPUs.
    fn problem(&self, device: Device, ranks: usize) -> Option<String> {
        let Device::Cuda(first) = device else { return None };
        if first.saturating_add(ranks) <= self.gpus {
            return None;
        }
        let of_ranks = if ranks > 1 { format!(" with {ranks} ranks") } else { String::new() };
        let cause = match &self.driver {
            _ if !self.is_cuda_build => {
                "this build computes on the CPU alone: build with --features cli/cuda (README, GPUs)"
                    .to_owned()
            }
            None => "NVIDIA's driver is not here: install it, or give the container its GPUs (--gpus all, \
                     nvidia.com/gpu)"
                .to_owned(),
            Some(version) if driver::is_too_old(version) => {
                let least = driver::MIN_DRIVER;
                format!("the driver is {version}, and libtorch 2.11 needs CUDA 13: a driver from {least} on")
            }
            Some(_) => format!(
                "torch sees {} GPUs here: take another index, or look at CUDA_VISIBLE_DEVICES and at the container's devices",
                self.gpus
            ),
        };
        Some(format!("device is {device}{of_ranks}, but {cause}; device = \"cpu\" works meanwhile"))
    }
}

fn gpus() -> usize {
    #[cfg(feature = "cuda")]
    return crate::cuda::devices();
    #[cfg(not(feature = "cuda"))]
    0
}

impl From<tch::Device> for Device {
    /// Whatever is no GPU is taken for the processor.
    fn from(device: tch::Device) -> Self {
        match device {
            tch::Device::Cuda(index) => Self::Cuda(index),
            _ => Self::Cpu,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device {0:?} must be cpu, cuda or cuda:N")]
pub struct UnknownDevice(String);

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let index = match text {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            other => other.strip_prefix("cuda:").and_then(|index| index.parse().ok()),
        };
        index.map(Self::Cuda).ok_or_else(|| UnknownDevice(text.to_owned()))
    }
}

impl TryFrom<String> for Device {
    type Error = UnknownDevice;

    fn try_from(text: String) -> Result<Self, UnknownDevice> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::{Device, Surroundings};

    #[test]
    fn devices_are_written_as_torch_writes_them() {
        for (text, device) in [("cpu", Device::Cpu), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for bad in ["", "gpu", "cuda:", "cuda:x", "cpu:0"] {
            assert!(
                bad.parse::<Device>().unwrap_err().to_string().contains("must be cpu, cuda or cuda:N"),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_device_that_is_not_there_says_what_is_in_the_way() {
        assert_eq!(Device::Cpu.problem(4), None);
        // No machine has a thousand GPUs.
        let problem = Device::Cuda(999).problem(2).unwrap();
        assert!(problem.starts_with("device is cuda:999 with 2 ranks, but "), "{problem}");
        let of = |is_cuda_build, driver: Option<&str>, gpus| {
            let there = Surroundings { is_cuda_build, driver: driver.map(str::to_owned), gpus };
            there.problem(Device::Cuda(1), 2)
        };
        assert_eq!(of(true, Some("580.65.06"), 3), None);
        for (is_cuda_build, driver, says) in [
            (false, None, "--features cli/cuda"),
            (false, Some("580.65.06"), "--features cli/cuda"),
            (true, None, "driver is not here"),
            (
                true,
                Some("570.133.20"),
                "the driver is 570.133.20, and libtorch 2.11 needs CUDA 13: a driver from 580 on",
            ),
            (true, Some("580.65.06"), "torch sees 2 GPUs here"),
        ] {
            let problem = of(is_cuda_build, driver, 2).unwrap();
            assert!(
                problem.contains(says) && problem.ends_with("device = \"cpu\" works meanwhile"),
                "{problem}"
            );
        }
    }
}
