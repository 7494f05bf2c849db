//! The learner: PPO, sharding, checkpoints, weight publication, supervised objectives.
