//! The learner as a member of a ring: batches in, weights out.
//!
//! ```text
//!  coordinator --commands--> link --> ring loop --orders--> rank 0 (a thread) --passed on--> other ranks (processes)
//!       ^                     |          ^  ^                    |
//!       +------ reports ------+          |  +---- outcomes ------+
//!                                        |                       v weights
//!                                        +---- events ---- publisher (a thread) --broadcast--> actors
//!                                                                |
//!                                          weight service (gRPC) +--pull--> actors that join late
//! ```
//!
//! | waits for          | unblocked by                          | bound                                           |
//! |--------------------|---------------------------------------|-------------------------------------------------|
//! | a batch            | the coordinator                       | two batches ahead                               |
//! | a step             | the ranks                             | `rank_time_limit`                               |
//! | a broadcast        | the actors, beside the next step      | `broadcast_time_limit`; then they pull          |

mod config;
mod coordinator_client;
mod grpc;
mod publisher;
mod rank;
mod ring_loop;
mod server;
mod snapshots;

pub use config::Config;
pub use server::build;
