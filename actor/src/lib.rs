//! The actor: the role that leases prompts from the coordinator, generates responses with an [`engine`] and
//! streams the rollouts to the reward servers. [`build`] wires it; it receives the policy's weights as the
//! learner publishes them.

pub mod config;

mod coordinator_client;
mod delivery;
mod environment_client;
mod environments;
mod external;
mod hedge_budget;
mod metrics;
mod policy;
mod policy_engine;
mod policy_model;
mod preparation;
mod reward_client;
mod reward_router;
mod rollout_loop;
mod server;
mod work;

pub use config::Config;
pub use external::external_problems;
pub use metrics::METRICS;
pub use server::build;
