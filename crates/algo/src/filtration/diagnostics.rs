//! What a filtration did to a batch, as sums.

use super::GroupDecision;

/// Sums over groups. Add decisions with [`record`](Self::record), parts with [`merge`](Self::merge).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Diagnostics {
    /// Groups that were decided on.
    pub groups: u64,
    /// Groups without signal, filtered as a whole.
    pub groups_without_signal: u64,
    /// Rollouts, of all groups.
    pub rollouts: u64,
    /// Rollouts that train: unique ones, however often they were drawn.
    pub kept: u64,
    /// Sum of the weights.
    pub weight: f64,
    /// Sum of `w log w`.
    weight_log_weight: f64,
}

impl Diagnostics {
    /// Adds a group of `rollouts` rollouts.
    pub fn record(&mut self, rollouts: usize, decision: &GroupDecision) {
        self.groups += 1;
        self.rollouts += rollouts as u64;
        match decision {
            GroupDecision::NoSignal => self.groups_without_signal += 1,
            GroupDecision::Choices(choices) => {
                for choice in choices.iter().filter(|choice| choice.kept) {
                    self.kept += 1;
                    self.weight += choice.weight;
                    self.weight_log_weight += choice.weight * choice.weight.ln();
                }
            }
        }
    }

    /// Adds another part.
    pub fn merge(&mut self, other: &Self) {
        self.groups += other.groups;
        self.groups_without_signal += other.groups_without_signal;
        self.rollouts += other.rollouts;
        self.kept += other.kept;
        self.weight += other.weight;
        self.weight_log_weight += other.weight_log_weight;
    }

    /// The share of rollouts that train; `None` of nothing.
    pub fn kept_fraction(&self) -> Option<f64> {
        (self.rollouts > 0).then(|| self.kept as f64 / self.rollouts as f64)
    }

    /// The entropy, in nats, of the distribution the weights put on the kept rollouts: `log kept` where all
    /// weights are equal, less where a few rollouts dominate the batch. `None` where nothing is kept.
    pub fn weight_entropy(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| (self.weight.ln() - self.weight_log_weight / self.weight).max(0.0))
    }
}
