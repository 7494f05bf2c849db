//! Who may call what (`docs/decisions.md`, D18).

/// For each method, by its path, the roles that may call it. The names are those of the run's tokens
/// (`service::security::ROLES`).
pub const CALLERS: &[(&str, &[&str])] = &[
    ("/sluice.v1.Coordinator/Act", &["actor"]),
    ("/sluice.v1.Coordinator/Reward", &["reward-server"]),
    ("/sluice.v1.Coordinator/Learn", &["learner"]),
    ("/sluice.v1.Coordinator/Fields", &["reward-server"]),
    ("/sluice.v1.Observer/Status", &["observer", "operator"]),
    ("/sluice.v1.Observer/Drain", &["operator"]),
    ("/sluice.v1.RewardServer/Score", &["actor"]),
    ("/sluice.v1.RewardServer/Environment", &["actor"]),
    ("/sluice.v1.WeightSource/Describe", &["actor"]),
    ("/sluice.v1.WeightSource/Pull", &["actor"]),
];
