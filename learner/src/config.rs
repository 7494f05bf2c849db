//! Configuration of training: the pieces that every objective shares.
//!
//! [`PpoConfig`](crate::PpoConfig) is flat, because its keys are those of a recipe; the supervised objectives nest
//! [`OptimizerConfig`] and [`ExecutionConfig`] as sections. What cannot be right is listed by `problems()`, all of it at
//! once, each as one sentence that names the key.

mod bound;
mod execution;
mod optimizer;
mod ppo;
mod settings;

pub use bound::Bound;
pub use execution::{ExecutionConfig, LoraConfig, LoraTarget, Precision, ZeroStage};
pub use optimizer::{DecayOn, OptimizerConfig};
pub use ppo::{KlIn, Overlong, PpoConfig, RolloutSupport, SamplesOn, Whiten};
pub(crate) use settings::Settings;

/// The problems of a configuration, gathered one after the other.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<String>);

impl Problems {
    /// Notes the problem unless the value is sound.
    pub(crate) fn check(&mut self, sound: bool, problem: impl FnOnce() -> String) {
        if !sound {
            self.0.push(problem());
        }
    }

    /// A number that must be finite and at least 0.
    pub(crate) fn not_negative(&mut self, key: &str, value: f64) {
        self.check(value.is_finite() && value >= 0.0, || {
            format!("{key} is {value}, must be a finite number of at least 0")
        });
    }

    /// A number in 0..=1.
    pub(crate) fn share(&mut self, key: &str, value: f64) {
        self.check((0.0..=1.0).contains(&value), || format!("{key} is {value}, must be from 0 to 1"));
    }

    /// A count of at least 1.
    pub(crate) fn positive(&mut self, key: &str, value: usize) {
        self.check(value > 0, || format!("{key} is 0, must be at least 1"));
    }

    /// Takes over the problems of a section.
    pub(crate) fn section(&mut self, name: &str, problems: Vec<String>) {
        self.0.extend(problems.into_iter().map(|problem| format!("{name}.{problem}")));
    }

    /// All of them.
    pub(crate) fn into_list(self) -> Vec<String> {
        self.0
    }
}
