//! The training core on small models: exactness, algorithms, ranks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

mod exactness;
mod golden;
mod support;
