//! The `sluice-learner` binary.

fn main() {}
