//! The roles of a ring, and what each is called where.

/// A role of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Coordinator,
    RewardServer,
    Learner,
    Actor,
}

impl Role {
    /// In the order in which they are started.
    pub(crate) const ALL: [Self; 4] = [Self::Coordinator, Self::RewardServer, Self::Learner, Self::Actor];

    /// Its name in options, files and resources.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::RewardServer => "reward-server",
            Self::Learner => "learner",
            Self::Actor => "actor",
        }
    }

    /// Its section of a recipe.
    pub(crate) fn section(self) -> &'static str {
        match self {
            Self::RewardServer => "reward_server",
            other => other.name(),
        }
    }

    /// Its binary.
    pub(crate) fn binary(self) -> String {
        format!("sluice-{}", self.name())
    }
}
