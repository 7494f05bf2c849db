//! Where a network is computed, as configurations write it.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

    /// Why this device and those of so many ranks in all cannot be used here, if they cannot.
    pub fn problem(self, ranks: usize) -> Option<String> {
        let Self::Cuda(first) = self else { return None };
        let there = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        (first.saturating_add(ranks) > there).then(|| {
            let of_ranks = if ranks > 1 { format!(" with {ranks} ranks") } else { String::new() };
            format!(
                "device is {self}{of_ranks}, but torch sees {there} GPUs here; set device = \"cpu\" or another index, \
                 or use a build with --features cuda on a machine with a GPU"
            )
        })
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
    use super::Device;

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
    fn a_device_that_is_not_there_says_so() {
        assert_eq!(Device::Cpu.problem(4), None);
        // No machine has a thousand GPUs.
        let problem = Device::Cuda(999).problem(2).unwrap();
        assert!(problem.starts_with("device is cuda:999 with 2 ranks, but torch sees "), "{problem}");
    }
}
