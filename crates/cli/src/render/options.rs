//! What every target of `sluice render` is told: the recipe, and what a process of each role may use.

use std::path::PathBuf;
use std::str::FromStr;

use crate::recipe::Role;

/// A value for every role, `VALUE`, or for one, `ROLE=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForRole<T> {
    role: Option<Role>,
    value: T,
}

impl<T: FromStr> FromStr for ForRole<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        let named = text.split_once('=').and_then(|(name, value)| {
            let role = Role::ALL.into_iter().find(|role| role.name() == name)?;
            Some((role, value))
        });
        let (role, text) = named.map_or((None, text), |(role, value)| (Some(role), value));
        Ok(Self { role, value: text.parse()? })
    }
}

/// The values that hold for a role, in the order in which they were given.
pub(crate) fn all_for<T>(values: &[ForRole<T>], role: Role) -> impl Iterator<Item = &T> {
    values.iter().filter(move |value| value.role.is_none_or(|named| named == role)).map(|value| &value.value)
}

/// The value that holds for a role: the last one that names it, else the last one that names none.
pub(crate) fn one_for<T>(values: &[ForRole<T>], role: Role) -> Option<&T> {
    let value = last_of(values, Some(role)).or_else(|| last_of(values, None))?;
    Some(&value.value)
}

fn last_of<T>(values: &[ForRole<T>], role: Option<Role>) -> Option<&ForRole<T>> {
    values.iter().rev().find(|value| value.role == role)
}

/// What a process is given of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
}

impl Resources {
    /// Enough for a model of a few billion parameters; what a larger one needs is for its owner to say.
    pub(crate) fn default_of(role: Role) -> Self {
        let (cpus, gibibytes) = match role {
            Role::Coordinator => (2, 4),
            Role::RewardServer | Role::Actor => (4, 16),
            Role::Learner => (8, 64),
        };
        Self { cpus, memory_mib: gibibytes << 10 }
    }

    /// `CPUS,MEMORY`, where the memory is in `Gi` or `Mi` and neither is 0.
    fn parse(text: &str) -> Option<Self> {
        let (cpus, memory) = text.split_once(',')?;
        let (amount, unit) = memory.split_at_checked(memory.len().checked_sub(2)?)?;
        let amount: u64 = amount.parse().ok()?;
        let memory_mib = match unit {
            "Gi" => amount.checked_mul(1024)?,
            "Mi" => amount,
            _ => return None,
        };
        let cpus: u32 = cpus.parse().ok()?;
        (cpus > 0 && memory_mib > 0).then_some(Self { cpus, memory_mib })
    }
}

/// A text that does not say what a process is given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} must be whole CPUs and memory, such as 8,32Gi (or learner=8,32Gi for one role of {roles})",
    roles = Role::ALL.map(Role::name).join(", ")
)]
pub(crate) struct NoResources {
    text: String,
}

impl FromStr for Resources {
    type Err = NoResources;

    fn from_str(text: &str) -> Result<Self, NoResources> {
        Self::parse(text).ok_or_else(|| NoResources { text: text.to_owned() })
    }
}

/// Options of every target.
#[derive(Debug, clap::Args)]
pub(crate) struct RingOptions {
    /// The recipe (TOML), the same that `sluice run` takes. Only its ring is rendered.
    pub(crate) recipe: PathBuf,
    /// The stage that is rendered, where several are rings.
    #[arg(long, value_name = "STAGE")]
    pub(crate) ring: Option<String>,
    /// Folder that the files are written to; files of an earlier rendering are replaced.
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// CPUs and memory of a process, such as 8,32Gi; may be given several times. A ROLE is coordinator,
    /// reward-server, learner or actor.
    #[arg(long, value_name = "[ROLE=]CPUS,MEMORY")]
    pub(crate) resources: Vec<ForRole<Resources>>,
    /// GPUs of an actor: 1 where actor.engine.device is cuda.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) gpus_per_actor: u32,
    /// GPUs of a reward server: 1 where reward_server.models.device is cuda.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) gpus_per_reward_server: u32,
    /// GPUs of a rank of the learner: 1 where learner.device is cuda.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) gpus_per_learner_rank: u32,
    /// How long a process that is told to stop may drain and write its checkpoint, where the recipe does not
    /// say so (service.grace_period of a role).
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) drain_seconds: u32,
    /// Sets one value over the recipe; may be given several times. Variables of the environment are not
    /// rendered.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) settings: Vec<String>,
}

impl RingOptions {
    pub(crate) fn resources_of(&self, role: Role) -> Resources {
        one_for(&self.resources, role).copied().unwrap_or_else(|| Resources::default_of(role))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_for_all_roles_or_for_one() {
        let values: Vec<ForRole<String>> =
            ["slow", "learner=fast", "--x=y"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(one_for(&values, Role::Learner).unwrap(), "fast");
        assert_eq!(one_for(&values, Role::Actor).unwrap(), "--x=y");
        assert_eq!(all_for(&values, Role::Learner).collect::<Vec<_>>(), ["slow", "fast", "--x=y"]);
        assert_eq!(all_for(&values, Role::Actor).collect::<Vec<_>>(), ["slow", "--x=y"]);
    }

    fn read(text: &str) -> anyhow::Result<Resources> {
        Ok(text.parse()?)
    }

    #[test]
    fn resources_are_whole_and_have_units() {
        assert_eq!(read("8,32Gi").unwrap(), Resources { cpus: 8, memory_mib: 32 << 10 });
        assert_eq!(read("1,512Mi").unwrap(), Resources { cpus: 1, memory_mib: 512 });
        for bad in ["8", "8,32", "8,32GB", "0,1Gi", "1,0Gi", "x,1Gi", "lerner=8,32Gi", "8,é", ""] {
            let problem = read(bad).unwrap_err().to_string();
            assert!(problem.contains("such as 8,32Gi"), "{problem}");
        }
    }
}
