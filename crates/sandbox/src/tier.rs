//! The tiers of isolation and what a probe found out about them.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a guest is isolated. `A` is the stronger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Namespaces, a root of its own, Landlock, seccomp, limits.
    A,
    /// Landlock, seccomp, limits in the server's own namespaces.
    B,
}

impl Tier {
    /// Whether this tier isolates at least as well as `minimum`.
    pub(crate) const fn satisfies(self, minimum: Self) -> bool {
        matches!((self, minimum), (Self::A, _) | (Self::B, Self::B))
    }

    /// The name in configuration and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

/// A step of the set-up that does not work here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StepFailure {
    /// What was attempted.
    pub step: String,
    /// `errno`, or 0 where no system call said one.
    pub errno: i32,
    /// What exactly, and the system's words for it.
    pub detail: String,
}

impl StepFailure {
    /// A helper that could not even be started.
    pub(crate) fn not_started(error: &std::io::Error) -> Self {
        Self {
            step: "start sluice-sandbox-init".to_owned(),
            errno: error.raw_os_error().unwrap_or(0),
            detail: error.to_string(),
        }
    }
}

impl fmt::Display for StepFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.step)?;
        if !self.detail.is_empty() {
            write!(formatter, ": {}", self.detail)?;
        }
        if self.errno != 0 && !self.detail.contains("os error") {
            write!(formatter, ": {}", std::io::Error::from_raw_os_error(self.errno))?;
        }
        Ok(())
    }
}

/// What [`probe`](crate::probe) found: each tier was built and a program run in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TierReport {
    /// Tier A; `None` where it works.
    pub a: Option<StepFailure>,
    /// Tier B; `None` where it works.
    pub b: Option<StepFailure>,
}

impl TierReport {
    /// The strongest tier that works.
    pub fn best(&self) -> Option<Tier> {
        match (&self.a, &self.b) {
            (None, _) => Some(Tier::A),
            (_, None) => Some(Tier::B),
            _ => None,
        }
    }

    /// Why a tier does not work.
    pub fn failure(&self, tier: Tier) -> Option<&StepFailure> {
        match tier {
            Tier::A => self.a.as_ref(),
            Tier::B => self.b.as_ref(),
        }
    }
}

impl fmt::Display for TierReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (tier, end) in [(Tier::A, "; "), (Tier::B, "")] {
            match self.failure(tier) {
                None => write!(formatter, "tier {tier} works{end}")?,
                Some(failure) => write!(formatter, "tier {tier} does not work: {failure}{end}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_satisfies_both_and_b_only_itself() {
        assert!(Tier::A.satisfies(Tier::A) && Tier::A.satisfies(Tier::B) && Tier::B.satisfies(Tier::B));
        assert!(!Tier::B.satisfies(Tier::A));
    }

    #[test]
    fn a_report_names_the_step_and_the_systems_words() {
        let failure =
            StepFailure { step: "create namespaces".into(), errno: libc::EPERM, detail: String::new() };
        let report = TierReport { a: Some(failure), b: None };
        assert_eq!(report.best(), Some(Tier::B));
        assert_eq!(
            report.to_string(),
            "tier A does not work: create namespaces: Operation not permitted (os error 1); tier B works"
        );
    }
}
