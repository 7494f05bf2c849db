//! The actor: generation engine, rollout loop, weight receiver.
