//! The actor: generation engine, rollout loop, weight receiver.
//!
//! [`engine`] generates, on the CPU with its own code or with torch's operators on a GPU, and knows nothing of the ring; [`generate`]
//! runs one over prompts of a file; [`build`] wires the role that leases prompts from the coordinator, generates with it,
//! and streams rollouts to the reward servers.

pub mod config;
pub mod engine;
pub mod generate;
pub mod serve;

mod coordinator_client;
mod folder;
mod metrics;
mod policy;
mod prompts;
mod pull_client;
mod reward_client;
mod reward_router;
mod rollout_loop;
mod server;
mod weights;
mod work;

pub use config::Config;
pub use server::build;
