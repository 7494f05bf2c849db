//! The `sluice-sandbox-init` binary.

fn main() {}
