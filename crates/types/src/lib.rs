//! Domain data of Sluice with their invariants.
//!
//! ```
//! use types::{
//!     BatchId, FinishReason, PolicyVersion, PromptId, Rollout, RolloutId, RolloutParts, Sample, Span,
//! };
//! use types::{Batch, GroupScore, ScoredRollout, Scores};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rollout = Rollout::new(RolloutParts {
//!     id: RolloutId { prompt: PromptId { epoch: 0, ordinal: 17 }, sibling: 0, attempt: 0 },
//!     prompt_tokens: vec![1, 2].into(),
//!     response_tokens: vec![3, 4, 5],
//!     observations: Vec::new(),
//!     reward: None,
//!     rollout_logprobs: vec![-0.5, -0.1, -2.0],
//!     surviving_mass: None,
//!     spans: vec![Span { version: PolicyVersion(4), tokens: 3.try_into()? }],
//!     finish_reason: FinishReason::Stop,
//!     fields: "{}".into(),
//! })?;
//! let scores = Scores { score: 0.7, ref_logprobs: Vec::new(), outcome: Some(1.0), turn_weight: 0.0 };
//! let scored = ScoredRollout::new(rollout, scores)?;
//! let group = [GroupScore::of(&scored)];
//! let sample = Sample::new(scored, 1.0, group)?;
//! let batch = Batch::new(BatchId(1), vec![sample])?;
//! assert_eq!(batch.response_tokens(), 3);
//!
//! // What breaks an invariant cannot be made, and the error says which.
//! let refused = Batch::new(BatchId(2), Vec::new()).map_err(|invalid| invalid.to_string());
//! assert_eq!(refused.unwrap_err(), "batch b2: has no samples");
//! # Ok(())
//! # }
//! ```
//!
//! Everything that travels round the ring is defined here: prompts, rollouts, scored rollouts, samples and
//! batches, the ids that make each response countable, and the closed sets of reasons why one may end other
//! than by training. A value of a type in this crate is valid: the constructors check, nobody behind them
//! checks again. The crate does no I/O and knows no wire format; `proto` converts to and from it.

pub mod link;

mod address;
mod ending;
mod episode;
mod id;
mod prompt;
mod remarks;
mod rollout;
mod sample;
mod sampling;
mod time;
mod turns;
mod vocabulary;
mod weights;

pub use address::HostPort;
pub use ending::{DropReason, Ending, EpisodeEnd, FailReason, FilterReason};
pub use episode::{Observation, split_by_mask};
pub use id::{
    BatchId, BroadcastGroupId, Incarnation, LearnerTerm, LeaseId, MemberId, PolicyVersion, PromptId,
    RolloutId, RunId,
};
pub use prompt::{MAX_FIELDS_BYTES, Prompt, PromptContent};
pub use remarks::{Remarks, Texts};
pub use rollout::{FinishReason, MAX_SEQUENCE_TOKENS, Rollout, RolloutFailure, RolloutParts, Span};
pub use sample::{Batch, GroupScore, Sample, ScoredRollout, Scores};
pub use sampling::{Sampling, SamplingParams};
pub use time::Timestamp;
pub use turns::{DrawnTurn, Turns};
pub use vocabulary::Vocabulary;
pub use weights::{DType, Manifest, ModelDescription, ModelFile, TensorEntry, TensorLayout, WeightHash};

/// A value that breaks an invariant of its type. The message says which value and which bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {problem}")]
pub struct Invalid {
    /// The thing that is invalid, for example `rollout e0-p17-s3-a0`.
    pub what: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl Invalid {
    /// An error about `what`.
    pub fn new(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { what: what.into(), problem: problem.into() }
    }
}
