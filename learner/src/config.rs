//! Configuration of training: the pieces that every objective shares.
//!
//! [`PpoConfig`](crate::PpoConfig) is flat, because its keys are those of a recipe; the supervised objectives
//! nest [`OptimizerConfig`] and [`ExecutionConfig`] as sections. What cannot be right is listed by
//! `problems()`, all of it at once, each as one sentence that names the key.

mod bound;
mod checks;
mod execution;
mod optimizer;
mod ppo;
mod problems;
mod settings;

pub use algo::Whiten;
pub use bound::Bound;
pub use execution::{ExecutionConfig, LoraConfig, LoraTarget, Precision, ZeroStage};
pub use optimizer::{DecayOn, OptimizerConfig};
pub use ppo::{Credit, KlIn, Overlong, PpoConfig, RolloutSupport, SamplesOn, Truncated};
pub(crate) use problems::Problems;
pub(crate) use settings::Settings;
