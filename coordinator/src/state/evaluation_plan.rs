//! What a run is to ask and not to learn from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use types::Sampling;

/// What a run is told about evaluations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationPlan {
    /// Prompts of one.
    pub prompts: u64,
    /// BLAKE3 of the data set's bytes, as text.
    pub data_hash: String,
    /// Versions from one to the next.
    pub every: u64,
    /// Responses to each prompt.
    pub samples: u16,
    /// How they are drawn.
    pub sampling: Sampling,
    /// What the best version is best by.
    pub best_by: BestBy,
    /// So many in a row that are not better end the run; 0: none do.
    pub stop_after: u64,
}

/// What the best version of a run is best by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BestBy {
    /// The mean score.
    #[default]
    Score,
    /// The mean outcome of the hidden tests.
    Outcome,
}
