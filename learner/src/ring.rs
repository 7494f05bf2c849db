//! The learner as a member of a ring: batches in, weights out.
//!
//! ```text
//!  coordinator --commands--> link --> ring loop --commands--> rank 0 (a thread) --passed on--> other ranks
//!       ^                     |          ^  ^                     |                         (processes)
//!       +------ reports ------+          |  +------ events -------+
//!                                        |                        v weights
//!                                        +---- events ---- publisher (a thread) --broadcast--> actors
//!                                                                 |
//!                                           weight service (gRPC) +--pull--> actors that join late
//! ```
//!
//! | waits for     | unblocked by                        | bound                               |
//! |---------------|-------------------------------------|-------------------------------------|
//! | a batch       | the coordinator                     | two batches ahead                   |
//! | a step        | the ranks                           | `rank_timeout`                      |
//! | a broadcast   | the actors, beside the next step    | `broadcast_timeout`; then they pull |
//!
//! Publisher and weight service are the crate `weights`.

mod command;
mod config;
mod coordinator_client;
mod final_error;
mod progress;
mod rank;
mod ring_loop;
mod server;

pub use config::Config;
pub use server::build;
