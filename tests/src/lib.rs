//! Tests of the whole: architecture, end to end, chaos. What several of them need stands here.
//!
//! A [`TinyRing`] is a real ring of real processes, started by `sluice run` on a model of a few thousand
//! weights. Nothing in it is a double: gRPC, journal, Gloo, checkpoints and the sandbox are those of any run.

mod metrics;
mod program;
mod ring;
mod roles;
mod taught;
mod tree;

pub use metrics::DocumentedMetrics;
pub use program::{binary, read_until};
pub use ring::{Running, TinyRing};
pub use roles::{Checkpoint, RoleProcess, Roles, checkpoint};
pub use taught::TaughtModels;
pub use tree::{files, root};
