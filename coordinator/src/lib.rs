//! The coordinator: prompts, leases, groups, filtration, batches, versions, membership, journal.
//!
//! Decisions are made by the pure state machine in [`state`]; `server_loop` feeds it events in the order in
//! which the `journal` makes them durable, and performs what it returns. `grpc` translates streams to events
//! and back. Nothing here links torch.

pub mod config;
pub mod data;
pub mod journal;
pub mod state;

mod acknowledgements;
mod dashboard;
mod disk_room;
mod eval_config;
mod grpc;
mod inbox;
mod metrics;
mod notices;
mod samples;
mod samples_file;
mod server;
mod server_loop;
mod sessions;
#[cfg(test)]
#[path = "tests/simulated_network.rs"]
mod simulated_network;
mod stall;
mod status;
mod steps_file;
mod worst;

pub use config::Config;
pub use dashboard::step_fields;
pub use metrics::METRICS;
pub use server::build;
pub use status::{AccountStatus, FailureStatus, Status};
