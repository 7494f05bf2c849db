//! Samples recorded as lines of JSON, as the batch that a coordinator would send.

use std::collections::HashMap;
use std::num::TryFromIntError;
use std::path::Path;

use serde::Deserialize;
use types::{
    Batch, BatchId, FinishReason, PolicyVersion, PromptId, Rollout, RolloutId, Sample, ScoredRollout, Span,
};

use crate::error::{Error, Result};
use crate::lines;

/// One line of a batch.
#[derive(Debug, Deserialize)]
struct RecordedSample {
    prompt_id: serde_json::Value,
    prompt_tokens: Vec<u32>,
    response_tokens: Vec<u32>,
    rollout_logprobs: Vec<f32>,
    #[serde(default)]
    ref_logprobs: Vec<f32>,
    score: f32,
    #[serde(default = "full_weight")]
    weight: f32,
    surviving_mass: Option<Vec<f32>>,
    finish_reason: Option<FinishReason>,
}

fn full_weight() -> f32 {
    1.0
}

/// What is wrong with a recorded sample.
#[derive(Debug, thiserror::Error)]
enum SampleError {
    /// Siblings are numbered by 16 bits.
    #[error("is more than the 65535th sample of its prompt")]
    TooManySiblings,
    /// A weight is a number of at least 0.
    #[error("weight is {0}, must be at least 0")]
    Weight(f32),
    /// A response has more tokens than any model gives.
    #[error(transparent)]
    Length(#[from] TryFromIntError),
    /// Numbers are missing, or are none.
    #[error("{}", .0.problem)]
    Invalid(#[from] types::Invalid),
}

/// A prompt of the file: its number, and how many of its samples have been read.
#[derive(Debug, Clone, Copy)]
struct RecordedPrompt {
    ordinal: u64,
    siblings: u16,
}

/// Reads recorded samples in the order of the file, as batch 1: `prompt_id` (any JSON value; equal ones are
/// one group), `prompt_tokens`, `response_tokens`, `rollout_logprobs`, `ref_logprobs` (may be absent),
/// `score`, `weight` (1 where absent), and where they are known `surviving_mass` and `finish_reason`. Other
/// fields are ignored.
///
/// # Errors
/// The file and the line of what is missing, of another length or no number.
pub fn read_batch(path: &Path) -> Result<Batch> {
    let mut prompts: HashMap<String, RecordedPrompt> = HashMap::new();
    let mut samples = Vec::new();
    lines::read(path, |recorded: RecordedSample| {
        let next = RecordedPrompt { ordinal: prompts.len() as u64, siblings: 0 };
        let prompt = prompts.entry(recorded.prompt_id.to_string()).or_insert(next);
        let id = RolloutId {
            prompt: PromptId { epoch: 0, ordinal: prompt.ordinal },
            sibling: prompt.siblings,
            attempt: 0,
        };
        prompt.siblings = prompt.siblings.checked_add(1).ok_or(SampleError::TooManySiblings)?;
        samples.push(recorded.into_sample(id)?);
        Ok::<(), SampleError>(())
    })?;
    if samples.is_empty() {
        return Err(Error::line(path, 1, "the file has no samples"));
    }
    // Not `Batch::new`, which would put the samples into the order of their ids.
    Ok(Batch { id: BatchId(1), samples })
}

impl RecordedSample {
    fn into_sample(self, id: RolloutId) -> std::result::Result<Sample, SampleError> {
        if !(self.weight.is_finite() && self.weight >= 0.0) {
            return Err(SampleError::Weight(self.weight));
        }
        let tokens = u32::try_from(self.response_tokens.len())?;
        let rollout = Rollout {
            id,
            prompt_tokens: self.prompt_tokens.into(),
            spans: vec![Span { version: PolicyVersion(0), tokens }],
            response_tokens: self.response_tokens,
            rollout_logprobs: self.rollout_logprobs,
            surviving_mass: self.surviving_mass,
            finish_reason: self.finish_reason.unwrap_or(FinishReason::Stop),
            fields: "{}".into(),
        };
        let scored =
            ScoredRollout { rollout, score: self.score, ref_logprobs: self.ref_logprobs, outcome: None };
        Ok(Sample { scored: scored.validated()?, weight: self.weight })
    }
}
