//! Which responses are to train: the filtration of the configuration, and how `auto` chooses one.

use std::fmt;

use algo::filtration::{self, Filtration, Mode, NoSignal, Strategy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Strategies that `auto` may choose from, at most.
const CANDIDATES_LIMIT: usize = 8;

/// Which responses train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FiltrationPlan {
    /// `none`, `best-of-n`, `best-random`, `best-worst`, `power:K`, `power-per-prompt:K`, `top:T`,
    /// `top-random:T`, `top-bottom:LOW:HIGH`, or `auto`: the one whose reward is most reliable, by the outcomes
    /// of the hidden tests (docs/filtration.md).
    pub strategy: StrategyChoice,
    /// How the distribution becomes weights: `select`, `resample[:DRAWS]`, `resample-buffer[:DRAWS]`.
    pub mode: Mode,
    /// What to do with equal scores.
    pub no_signal: NoSignal,
    /// The newest batches that live figures and `auto` look at; of their groups at most 256, and of those at
    /// most 2048 responses.
    pub window_batches: usize,
    /// How `auto` chooses.
    pub auto: AutoPlan,
}

/// How `auto` chooses: by the lower end of the 95 % interval of R².
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AutoPlan {
    /// The strategy until another one is chosen.
    pub start: Strategy,
    /// The strategies to choose from.
    pub candidates: Vec<Strategy>,
    /// By how much the lower end has to be above that of the strategy in force.
    pub margin: f64,
    /// For how many windows in a row the same strategy has to be ahead by that much. A window is a new one
    /// when a sixteenth of its groups are new, at most one for each batch.
    pub windows: u64,
    /// Groups with outcomes that a window has to hold.
    pub min_groups: u64,
}

/// A strategy, or that one is chosen while the run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum StrategyChoice {
    /// This one.
    Fixed(Strategy),
    /// The most reliable one.
    Auto,
}

impl Default for FiltrationPlan {
    fn default() -> Self {
        let Filtration { strategy, mode, no_signal } = Filtration::default();
        let strategy = StrategyChoice::Fixed(strategy);
        Self { strategy, mode, no_signal, window_batches: 16, auto: AutoPlan::default() }
    }
}

impl Default for AutoPlan {
    fn default() -> Self {
        Self {
            start: Strategy::BestWorst,
            // Best-of-n is the paper's counter-example; it can be added.
            candidates: vec![
                Strategy::None,
                Strategy::BestRandom,
                Strategy::BestWorst,
                Strategy::Power { k: 2.0 },
            ],
            // About half the width of an interval over 250 prompts.
            margin: 0.05,
            windows: 3,
            min_groups: 128,
        }
    }
}

impl FiltrationPlan {
    /// A filtration that nothing changes.
    pub fn fixed(filtration: Filtration) -> Self {
        let Filtration { strategy, mode, no_signal } = filtration;
        Self { strategy: StrategyChoice::Fixed(strategy), mode, no_signal, ..Self::default() }
    }

    /// The filtration a run begins with.
    pub fn first(&self) -> Filtration {
        self.with(match self.strategy {
            StrategyChoice::Fixed(strategy) => strategy,
            StrategyChoice::Auto => self.auto.start,
        })
    }

    /// The filtration under this strategy.
    pub(super) fn with(&self, strategy: Strategy) -> Filtration {
        Filtration { strategy, mode: self.mode, no_signal: self.no_signal }
    }

    /// Whether a strategy is chosen while the run goes on.
    pub fn is_auto(&self) -> bool {
        self.strategy == StrategyChoice::Auto
    }

    /// The strategies to choose from; none where there is no choice.
    pub(super) fn candidates(&self) -> impl Iterator<Item = Strategy> {
        let candidates = if self.is_auto() { self.auto.candidates.as_slice() } else { &[] };
        candidates.iter().copied()
    }

    /// What is wrong with it.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(self.first().validate().err().map(|error| error.to_string()));
        if self.window_batches == 0 {
            problems.push("filtration.window_batches must be at least 1".to_owned());
        }
        if !self.is_auto() {
            return problems;
        }
        let AutoPlan { candidates, margin, windows, .. } = &self.auto;
        if !(1..=CANDIDATES_LIMIT).contains(&candidates.len()) {
            problems.push(format!(
                "filtration.auto.candidates has {} strategies, must have 1 to {CANDIDATES_LIMIT}",
                candidates.len()
            ));
        }
        for candidate in candidates {
            problems.extend(self.with(*candidate).validate().err().map(|error| error.to_string()));
        }
        if !(0.0..1.0).contains(margin) {
            problems.push(format!("filtration.auto.margin is {margin}, must be 0 or more and below 1"));
        }
        if *windows == 0 {
            problems.push("filtration.auto.windows must be at least 1".to_owned());
        }
        problems
    }
}

impl fmt::Display for StrategyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(strategy) => strategy.fmt(f),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl TryFrom<String> for StrategyChoice {
    type Error = filtration::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Fixed) }
    }
}

impl From<StrategyChoice> for String {
    fn from(choice: StrategyChoice) -> Self {
        choice.to_string()
    }
}
