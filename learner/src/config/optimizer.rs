//! The optimizer's section.

use algo::Schedule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bound::Bound;
use super::problems::Problems;

/// What weight decay applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DecayOn {
    /// Every weight, as `torch.optim.AdamW(model.parameters())` does.
    #[default]
    All,
    /// Matrices only, not biases and norms, as transformers' `Trainer` does.
    Matrices,
}

/// AdamW and its schedule, `[optimizer]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// β₁ and β₂.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub adam_eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// What it applies to.
    pub weight_decay_on: DecayOn,
    /// Gradients are scaled down to this global norm.
    pub max_grad_norm: Bound,
    /// What the learning rate does after the warm-up.
    pub schedule: Schedule,
    /// Optimizer steps over which the learning rate rises from 0.
    pub warmup_steps: u64,
    /// A step whose loss or gradient is no finite number is skipped; more than so many in a row end training.
    pub max_skipped: u64,
}

/// Steps in a row that may be skipped: a bad batch makes a few, a broken network all of them.
pub(super) const MAX_SKIPPED_STEPS: u64 = 10;

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            lr: 1e-5,
            // Those of OpenRLHF and of the authors' PF-PPO code.
            betas: [0.9, 0.95],
            adam_eps: 1e-8,
            weight_decay: 0.0,
            weight_decay_on: DecayOn::All,
            max_grad_norm: Bound::At(1.0),
            schedule: Schedule::Cosine,
            warmup_steps: 0,
            max_skipped: MAX_SKIPPED_STEPS,
        }
    }
}

impl OptimizerConfig {
    /// Everything that makes the values unusable.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Problems::default();
        problems.not_negative("lr", self.lr);
        for beta in self.betas {
            problems.check((0.0..1.0).contains(&beta), || {
                format!("betas holds {beta}, must be from 0 to below 1")
            });
        }
        problems.not_negative("adam_eps", self.adam_eps);
        problems.not_negative("weight_decay", self.weight_decay);
        if let Some(norm) = self.max_grad_norm.number() {
            problems.check(norm > 0.0, || format!("max_grad_norm is {norm}, must be positive or \"off\""));
        }
        problems.into_list()
    }
}
