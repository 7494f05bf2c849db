//! Samples recorded as lines of JSON, as the batch that a coordinator would send.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use service::jsonl::{self, WrongLines};
use types::{
    Batch, BatchId, FinishReason, GroupScore, PolicyVersion, PromptId, Rollout, RolloutId, RolloutParts,
    Sample, ScoredRollout, Scores, Span,
};

use crate::error::{Error, Result};

/// One line of a batch.
#[derive(Debug, Deserialize)]
struct RecordedSample {
    prompt_id: Option<serde_json::Value>,
    id: Option<serde_json::Value>,
    prompt_tokens: Vec<u32>,
    response_tokens: Vec<u32>,
    /// 1 for a response token that was drawn, 0 for one that was given.
    response_mask: Option<Vec<u8>>,
    /// Places among the response tokens with which further sequences begin.
    #[serde(default)]
    sequence_begins: Vec<usize>,
    rollout_logprobs: Option<Vec<f32>>,
    /// What `sluice generate` calls them.
    logprobs: Option<Vec<f32>>,
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
    /// Nobody says how likely its tokens were.
    #[error("has no rollout_logprobs, nor logprobs as sluice generate writes them")]
    NoLogprobs,
    /// Siblings are numbered by 16 bits.
    #[error("is more than the 65535th sample of its prompt")]
    TooManySiblings,
    /// The mask holds other numbers.
    #[error("response_mask holds {0}, must be 1 for a token that was drawn and 0 for one that was given")]
    Mask(u8),
    /// The weight is none.
    #[error("weight is {0}, must be at least 0")]
    Weight(f32),
    /// Numbers are missing, out of range, or are none.
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
/// one group, whose baseline is taken over all its lines, those of weight 0 included; where it is absent
/// `id`, else the prompt's tokens), `prompt_tokens`, `response_tokens`, `rollout_logprobs` (or `logprobs`),
/// `ref_logprobs` (may be absent), `score`, `weight` (1 where absent), and where they are known
/// `surviving_mass` and `finish_reason`. Other fields are ignored. `-` is standard input.
///
/// An episode of several turns has all tokens behind the prompt in `response_tokens`, and a `response_mask`
/// that is 1 for those that the policy drew and 0 for those that it was given; `sequence_begins` has the
/// places of those with which further sequences begin, if there are any. Its log-probs and masses are
/// one for each drawn token, or one for each response token, of which those of given ones are not read.
///
/// # Errors
/// The file and the line of what is missing, of another length or no number, unless such lines are passed
/// over.
pub fn read_batch(path: &Path, wrong: &WrongLines) -> Result<Batch> {
    let mut prompts: HashMap<String, RecordedPrompt> = HashMap::new();
    let mut groups: HashMap<PromptId, Vec<GroupScore>> = HashMap::new();
    let mut weighted = Vec::new();
    for line in jsonl::read(path)? {
        let taken = line.and_then(|line| {
            let recorded: RecordedSample = line.parse()?;
            let key = recorded.group_key();
            let next = RecordedPrompt { ordinal: prompts.len() as u64, siblings: 0 };
            let prompt = prompts.get(&key).copied().unwrap_or(next);
            let sample = recorded.numbered(prompt).map_err(|problem| line.wrong(&problem.to_string()))?;
            // Counted only when all of the line is right: one that is passed over leaves no trace.
            prompts.insert(key, RecordedPrompt { siblings: prompt.siblings + 1, ..prompt });
            groups.entry(sample.0.rollout().id().prompt).or_default().push(GroupScore::of(&sample.0));
            weighted.push(sample);
            Ok(())
        });
        wrong.sift(taken).transpose()?;
    }
    if weighted.is_empty() {
        return Err(Error::line(path, 1, "the file has no samples"));
    }
    let groups: HashMap<PromptId, Arc<[GroupScore]>> =
        groups.into_iter().map(|(prompt, scores)| (prompt, scores.into())).collect();
    let mut samples = Vec::with_capacity(weighted.len());
    for (scored, weight) in weighted {
        let group = groups[&scored.rollout().id().prompt].clone();
        samples.push(Sample::new(scored, weight, group).expect("its parts are checked"));
    }
    Ok(Batch::in_recorded_order(BatchId(1), samples).expect("each sample has an id of its own"))
}

/// The numbers of the tokens that were drawn, of numbers of all tokens; what has another length stays as it
/// is.
fn of_drawn(numbers: Vec<f32>, drawn: &[bool]) -> Vec<f32> {
    if numbers.len() != drawn.len() {
        return numbers;
    }
    numbers.into_iter().zip(drawn).filter(|(_, is_drawn)| **is_drawn).map(|(number, _)| number).collect()
}

fn checked(weight: f32) -> std::result::Result<f32, SampleError> {
    if weight.is_finite() && weight >= 0.0 { Ok(weight) } else { Err(SampleError::Weight(weight)) }
}

impl RecordedSample {
    /// What its siblings have in common with it.
    fn group_key(&self) -> String {
        let id = self.prompt_id.as_ref().or(self.id.as_ref());
        id.map_or_else(|| format!("{:?}", self.prompt_tokens), serde_json::Value::to_string)
    }

    /// As the next sample of its prompt, with its weight.
    fn numbered(self, prompt: RecordedPrompt) -> std::result::Result<(ScoredRollout, f32), SampleError> {
        if prompt.siblings == u16::MAX {
            return Err(SampleError::TooManySiblings);
        }
        let weight = checked(self.weight)?;
        let id = RolloutId {
            prompt: PromptId { epoch: 0, ordinal: prompt.ordinal },
            sibling: prompt.siblings,
            attempt: 0,
        };
        Ok((self.into_scored(id)?, weight))
    }

    fn into_scored(self, id: RolloutId) -> std::result::Result<ScoredRollout, SampleError> {
        let mask = self.response_mask.unwrap_or_else(|| vec![1; self.response_tokens.len()]);
        if let Some(other) = mask.iter().find(|bit| **bit > 1) {
            return Err(SampleError::Mask(*other));
        }
        let drawn: Vec<bool> = mask.iter().map(|bit| *bit == 1).collect();
        let (response_tokens, observations) =
            types::split_by_mask(&self.response_tokens, &drawn, &self.sequence_begins)?;
        let numbers = |numbers: Vec<f32>| of_drawn(numbers, &drawn);
        // A response without tokens has no span; one that is too long is refused for its length.
        let tokens = NonZeroU32::new(u32::try_from(response_tokens.len()).unwrap_or(u32::MAX));
        let span = tokens.map(|tokens| Span { version: PolicyVersion(0), tokens });
        let rollout = Rollout::new(RolloutParts {
            id,
            prompt_tokens: self.prompt_tokens.into(),
            spans: span.into_iter().collect(),
            response_tokens,
            observations,
            reward: None,
            rollout_logprobs: numbers(
                self.rollout_logprobs.or(self.logprobs).ok_or(SampleError::NoLogprobs)?,
            ),
            surviving_mass: self.surviving_mass.map(numbers),
            finish_reason: self.finish_reason.unwrap_or(FinishReason::Stop),
            fields: "{}".into(),
        })?;
        let scores = Scores { score: self.score, ref_logprobs: numbers(self.ref_logprobs), outcome: None };
        Ok(ScoredRollout::new(rollout, scores)?)
    }
}
