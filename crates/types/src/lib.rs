//! Domain data of Sluice with their invariants.
//!
//! Everything that travels round the ring is defined here: prompts, rollouts, scored rollouts, samples and
//! batches, the ids that make each response countable, and the closed sets of reasons why one may end other
//! than by training. A value of a type in this crate is valid: the constructors check, nobody behind them
//! checks again. The crate does no I/O and knows no wire format; `proto` converts to and from it.

pub mod link;

mod address;
mod ending;
mod id;
mod prompt;
mod rollout;
mod sample;
mod sampling;
mod time;
mod weights;

pub use address::HostPort;
pub use ending::{DropReason, Ending, FailReason, FilterReason};
pub use id::{
    BatchId, BroadcastGroupId, Incarnation, LeaseId, MemberId, PolicyVersion, PromptId, RolloutId, RunId,
};
pub use prompt::{MAX_FIELDS_BYTES, Prompt, PromptContent};
pub use rollout::{FinishReason, MAX_SEQUENCE_TOKENS, Rollout, RolloutFailure, RolloutParts, Span};
pub use sample::{Batch, Sample, ScoredRollout, Scores};
pub use sampling::{Sampling, SamplingParams};
pub use time::Timestamp;
pub use weights::{
    DType, Manifest, ModelDescription, ModelFile, TensorEntry, TensorLayout,
    WeightHash,
};

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
