//! Process chassis: everything that a role's process needs and that is not its work.
//!
//! ```no_run
//! // src/main.rs of a role.
//! use std::process::ExitCode;
//!
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//! use service::{Config, OnError, ServiceConfig};
//!
//! #[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
//! #[serde(default, deny_unknown_fields)]
//! struct EchoConfig {
//!     lines: usize,
//!     service: ServiceConfig,
//! }
//!
//! impl Config for EchoConfig {
//!     fn service(&self) -> &ServiceConfig {
//!         &self.service
//!     }
//!
//!     fn problems(&self) -> Vec<String> {
//!         if self.lines > 0 { Vec::new() } else { vec!["lines must be at least 1".to_owned()] }
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     service::run("echo", |config: EchoConfig, mut context| async move {
//!         let token = context.token.clone();
//!         context.tasks.add("echo", OnError::Shutdown, async move {
//!             tracing::info!(lines = config.lines, "at work");
//!             token.cancelled().await;
//!             Ok(())
//!         });
//!         context.readiness.set(true);
//!         Ok(context)
//!     })
//! }
//! ```
//!
//! A role's `main` is one line over [`run`]: configuration in layers, logging, metrics over HTTP, named tasks
//! whose failure is seen, and a shutdown that drains within a grace period. The crate knows no role.
//!
//! Start order: configuration, logging, the role's `build` (which binds and wires and may fail), then work.
//! Exit codes: 0 done, 1 failed, 2 bad usage or bad input, 130 told twice to stop.

pub mod config;
pub mod grpc;
pub mod jsonl;
pub mod security;

mod backoff;
mod bad_input;
mod bind;
mod clock;
mod connections;
mod coordinator_term;
mod disk;
mod http;
mod incoming;
mod link;
mod metrics;
mod name;
mod origin;
mod pulse;
mod recurring;
mod run;
mod signals;
mod tasks;
mod telemetry;

pub use backoff::Backoff;
pub use bad_input::BadInput;
pub use bind::bind;
pub use clock::{new_incarnation, sleep_until};
pub use config::{Config, ServiceConfig};
pub use coordinator_term::CoordinatorTerm;
pub use disk::{free_bytes, is_disk_full};
pub use http::Readiness;
pub use link::{Connect, Connecting, Link, LinkEvent, Open, Opening};
pub use metrics::{Label, Metric, PROCESS_METRICS, describe as describe_metrics};
pub use name::unique_name;
pub use origin::Origin;
pub use pulse::Pulse;
pub use recurring::{Recurring, Saying};
pub use run::{Context, Hopeless, exit_code, run};
pub use security::{Security, SecurityConfig};
pub use signals::StopSignals;
pub use tasks::{OnError, Spawner, TaskSet};
pub use telemetry::init_logging;

pub use axum;
pub use tokio_util::sync::CancellationToken;
