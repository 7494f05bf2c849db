//! The reward server: everything frozen that says something about a response. Scorers, reference log-probs,
//! sandboxed tests; stateless.
//!
//! ```text
//! actors --rollouts--> grpc --> registry (inflight) --> scoring --> scorers: networks, sandbox, rules, python, http
//!                                |     ^                                   |
//!                                |     '------------ result ---------------'
//!                                '--> coordinator_client --> coordinator's journal
//! actors --turns of episodes--> grpc --> environment --> interpreters in the sandbox
//! ```
//!
//! Invariants:
//! 1. An actor is told `recorded` only after the coordinator's journal has the rollout's fate.
//! 2. A failure, a time-out or an overload is never a score: it is a failure with its reason, or a refusal
//!    after which the actor still has its rollout.
//! 3. A rollout that is in work is not scored twice.
//! 4. In deterministic mode a rollout's numbers depend on nothing but the rollout (`docs/decisions.md`, D7).

pub mod config;
pub mod files;

mod batch_queue;
mod breaker;
mod combine;
mod coordinator_client;
mod endpoint;
mod environment;
mod failures;
mod fields_client;
mod grpc;
mod http;
mod inflight;
mod metrics;
mod models;
mod network;
mod number;
mod offline;
mod pace;
mod problem;
mod python;
mod registry;
mod rules;
mod score_error;
mod scorer_input;
mod scorer_set;
mod scoring;
mod server;
mod temperature;
mod unit_tests;
mod worker_process;

pub use config::Config;
pub use environment::{KnownFields, OfflineEpisodes};
pub use files::{FileOptions, Progress, logprobs_file, score_file};
pub use metrics::METRICS;
pub use network::Error as ModelError;
pub use number::same_number;
pub use offline::{NotScored, score_rollouts};
pub use python::try_reward;
pub use server::build;
