//! The training core on small models: exactness, algorithms, ranks, checkpoints, the ring.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

mod checkpoints;
mod crash_points;
mod exactness;
mod figures;
mod golden;
mod resuming;
mod ring;
mod skipping;
mod supervised;
mod support;
mod truncation;
