//! The `sluice-coordinator` binary.

fn main() {}
