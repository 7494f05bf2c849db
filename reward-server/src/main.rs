//! The `sluice-reward-server` binary.

fn main() {}
