//! The `sluice-actor` binary.

fn main() {}
