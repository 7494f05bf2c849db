//! The reward server: scorers, reference log-probs, sandboxed tests, streams.
