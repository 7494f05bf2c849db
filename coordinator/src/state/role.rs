//! What members are for.

/// What a member is for. Names are unique among the members of one role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Generates.
    Actor,
    /// Scores.
    RewardServer,
    /// Trains.
    Learner,
}

impl Role {
    /// Its name in metrics and messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Actor => "actor",
            Self::RewardServer => "reward-server",
            Self::Learner => "learner",
        }
    }
}
