//! Ids, prompts, rollouts, weights.

use std::sync::Arc;

use types::{
    DType, FailReason, FinishReason, Manifest, ModelDescription, ModelFile, PolicyVersion, Prompt,
    PromptContent, PromptId, Rollout, RolloutFailure, RolloutId, Sampling, ScoredRollout, Span, TensorEntry,
    WeightHash,
};

use crate::error::required;
use crate::{ProtocolError, pb};

/// Longest detail of a failure that is kept, in characters.
const MAX_DETAIL_CHARS: usize = 400;

/// Free text from a peer: bounded, and without control characters that would forge log lines.
pub(crate) fn plain_text(text: &str) -> String {
    text.chars().take(MAX_DETAIL_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn small(field: &'static str, value: u32) -> Result<u16, ProtocolError> {
    u16::try_from(value).map_err(|_| ProtocolError::field(field, format!("is {value}, at most {}", u16::MAX)))
}

impl From<RolloutId> for pb::RolloutId {
    fn from(id: RolloutId) -> Self {
        Self {
            epoch: id.prompt.epoch,
            ordinal: id.prompt.ordinal,
            sibling: id.sibling.into(),
            attempt: id.attempt.into(),
        }
    }
}

impl TryFrom<pb::RolloutId> for RolloutId {
    type Error = ProtocolError;

    fn try_from(id: pb::RolloutId) -> Result<Self, ProtocolError> {
        Ok(Self {
            prompt: PromptId { epoch: id.epoch, ordinal: id.ordinal },
            sibling: small("sibling", id.sibling)?,
            attempt: small("attempt", id.attempt)?,
        })
    }
}

impl From<Prompt> for pb::Prompt {
    fn from(prompt: Prompt) -> Self {
        let content = match prompt.content {
            PromptContent::Text(text) => pb::prompt::Content::Text(text),
            PromptContent::Tokens(ids) => pb::prompt::Content::Tokens(pb::TokenIds { ids }),
            PromptContent::Messages(json) => pb::prompt::Content::Messages(json),
        };
        Self {
            epoch: prompt.id.epoch,
            ordinal: prompt.id.ordinal,
            content: Some(content),
            fields: prompt.fields.as_ref().to_owned(),
        }
    }
}

impl TryFrom<pb::Prompt> for Prompt {
    type Error = ProtocolError;

    fn try_from(prompt: pb::Prompt) -> Result<Self, ProtocolError> {
        let id = PromptId { epoch: prompt.epoch, ordinal: prompt.ordinal };
        let content = match required("prompt.content", prompt.content)? {
            pb::prompt::Content::Text(text) => PromptContent::Text(text),
            pb::prompt::Content::Tokens(tokens) => PromptContent::Tokens(tokens.ids),
            pb::prompt::Content::Messages(json) => PromptContent::Messages(json),
        };
        Ok(Prompt::new(id, content, prompt.fields.into())?)
    }
}

impl From<Rollout> for pb::Rollout {
    fn from(rollout: Rollout) -> Self {
        let finish_reason = match rollout.finish_reason {
            FinishReason::Stop => pb::FinishReason::Stop,
            FinishReason::Length => pb::FinishReason::Length,
        };
        let span = |span: Span| pb::Span { version: span.version.0, tokens: span.tokens };
        Self {
            id: Some(rollout.id.into()),
            prompt_tokens: rollout.prompt_tokens.to_vec(),
            response_tokens: rollout.response_tokens,
            rollout_logprobs: rollout.rollout_logprobs,
            surviving_mass: rollout.surviving_mass.unwrap_or_default(),
            spans: rollout.spans.into_iter().map(span).collect(),
            finish_reason: finish_reason.into(),
            fields: rollout.fields.as_ref().to_owned(),
        }
    }
}

impl TryFrom<pb::Rollout> for Rollout {
    type Error = ProtocolError;

    fn try_from(rollout: pb::Rollout) -> Result<Self, ProtocolError> {
        let finish_reason = match rollout.finish_reason() {
            pb::FinishReason::Stop => FinishReason::Stop,
            pb::FinishReason::Length => FinishReason::Length,
            pb::FinishReason::Unspecified => return Err(ProtocolError::Missing("rollout.finish_reason")),
        };
        if rollout.fields.len() > types::MAX_FIELDS_BYTES {
            return Err(ProtocolError::field(
                "rollout.fields",
                format!("has {} bytes", rollout.fields.len()),
            ));
        }
        let span = |span: pb::Span| Span { version: PolicyVersion(span.version), tokens: span.tokens };
        let rollout = Rollout {
            id: required("rollout.id", rollout.id)?.try_into()?,
            prompt_tokens: rollout.prompt_tokens.into(),
            response_tokens: rollout.response_tokens,
            rollout_logprobs: rollout.rollout_logprobs,
            surviving_mass: Some(rollout.surviving_mass).filter(|mass| !mass.is_empty()),
            spans: rollout.spans.into_iter().map(span).collect(),
            finish_reason,
            fields: Arc::from(rollout.fields),
        };
        Ok(rollout.validated()?)
    }
}

impl From<ScoredRollout> for pb::ScoredRollout {
    fn from(scored: ScoredRollout) -> Self {
        Self {
            rollout: Some(scored.rollout.into()),
            score: scored.score,
            ref_logprobs: scored.ref_logprobs,
            outcome: scored.outcome,
        }
    }
}

impl TryFrom<pb::ScoredRollout> for ScoredRollout {
    type Error = ProtocolError;

    fn try_from(scored: pb::ScoredRollout) -> Result<Self, ProtocolError> {
        let scored = ScoredRollout {
            rollout: required("scored.rollout", scored.rollout)?.try_into()?,
            score: scored.score,
            ref_logprobs: scored.ref_logprobs,
            outcome: scored.outcome,
        };
        Ok(scored.validated()?)
    }
}

fn fail_reason_to_pb(reason: FailReason) -> pb::FailReason {
    match reason {
        FailReason::LeaseExpired => pb::FailReason::LeaseExpired,
        FailReason::ActorLost => pb::FailReason::ActorLost,
        FailReason::Returned => pb::FailReason::Returned,
        FailReason::Generation => pb::FailReason::Generation,
        FailReason::Invalid => pb::FailReason::Invalid,
        FailReason::RewardTimeout => pb::FailReason::RewardTimeout,
        FailReason::RewardError => pb::FailReason::RewardError,
        FailReason::Unsupported => pb::FailReason::Unsupported,
    }
}

fn fail_reason_from_pb(reason: pb::FailReason) -> Result<FailReason, ProtocolError> {
    Ok(match reason {
        pb::FailReason::Unspecified => return Err(ProtocolError::Missing("failure.reason")),
        pb::FailReason::LeaseExpired => FailReason::LeaseExpired,
        pb::FailReason::ActorLost => FailReason::ActorLost,
        pb::FailReason::Returned => FailReason::Returned,
        pb::FailReason::Generation => FailReason::Generation,
        pb::FailReason::Invalid => FailReason::Invalid,
        pb::FailReason::RewardTimeout => FailReason::RewardTimeout,
        pb::FailReason::RewardError => FailReason::RewardError,
        pb::FailReason::Unsupported => FailReason::Unsupported,
    })
}

impl From<RolloutFailure> for pb::RolloutFailure {
    fn from(failure: RolloutFailure) -> Self {
        Self {
            id: Some(failure.id.into()),
            reason: fail_reason_to_pb(failure.reason).into(),
            detail: failure.detail,
            response_tokens: failure.response_tokens,
        }
    }
}

impl TryFrom<pb::RolloutFailure> for RolloutFailure {
    type Error = ProtocolError;

    fn try_from(failure: pb::RolloutFailure) -> Result<Self, ProtocolError> {
        Ok(Self {
            reason: fail_reason_from_pb(failure.reason())?,
            id: required("failure.id", failure.id)?.try_into()?,
            detail: plain_text(&failure.detail),
            response_tokens: failure.response_tokens,
        })
    }
}

impl From<Sampling> for pb::Sampling {
    fn from(sampling: Sampling) -> Self {
        Self {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            max_new_tokens: sampling.max_new_tokens,
            stop: sampling.stop,
            stop_token_ids: sampling.stop_token_ids,
            ignore_eos: sampling.ignore_eos,
        }
    }
}

impl TryFrom<pb::Sampling> for Sampling {
    type Error = ProtocolError;

    fn try_from(sampling: pb::Sampling) -> Result<Self, ProtocolError> {
        let sampling = Self {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            max_new_tokens: sampling.max_new_tokens,
            stop: sampling.stop,
            stop_token_ids: sampling.stop_token_ids,
            ignore_eos: sampling.ignore_eos,
        };
        sampling.validate()?;
        Ok(sampling)
    }
}

/// A hash field: 32 bytes.
pub(crate) fn hash(field: &'static str, bytes: &[u8]) -> Result<WeightHash, ProtocolError> {
    let bytes = <[u8; 32]>::try_from(bytes);
    bytes.map(WeightHash).map_err(|_| ProtocolError::field(field, "must have 32 bytes"))
}

impl From<Manifest> for pb::Manifest {
    fn from(manifest: Manifest) -> Self {
        let dtype = |dtype| match dtype {
            DType::F32 => pb::DType::F32,
            DType::Bf16 => pb::DType::Bf16,
            DType::F16 => pb::DType::F16,
        };
        let entry = |entry: TensorEntry| pb::TensorEntry {
            name: entry.name,
            shape: entry.shape,
            dtype: dtype(entry.dtype).into(),
            hash: entry.hash.0.to_vec(),
        };
        Self {
            version: manifest.version.0,
            tensors: manifest.tensors.into_iter().map(entry).collect(),
            hash: manifest.hash.0.to_vec(),
        }
    }
}

impl TryFrom<pb::TensorEntry> for TensorEntry {
    type Error = ProtocolError;

    fn try_from(entry: pb::TensorEntry) -> Result<Self, ProtocolError> {
        let dtype = match entry.dtype() {
            pb::DType::F32 => DType::F32,
            pb::DType::Bf16 => DType::Bf16,
            pb::DType::F16 => DType::F16,
            pb::DType::Unspecified => return Err(ProtocolError::Missing("tensor.dtype")),
        };
        if entry.name.is_empty() || entry.name.len() > 512 || entry.shape.len() > 8 {
            return Err(ProtocolError::field("tensor", "must have a name and at most 8 dimensions"));
        }
        Ok(Self { hash: hash("tensor.hash", &entry.hash)?, name: entry.name, shape: entry.shape, dtype })
    }
}

impl TryFrom<pb::Manifest> for Manifest {
    type Error = ProtocolError;

    fn try_from(manifest: pb::Manifest) -> Result<Self, ProtocolError> {
        let tensors = manifest.tensors.into_iter().map(TensorEntry::try_from).collect::<Result<_, _>>()?;
        let manifest = Self {
            version: PolicyVersion(manifest.version),
            tensors,
            hash: hash("manifest.hash", &manifest.hash)?,
        };
        manifest.total_bytes()?;
        Ok(manifest)
    }
}

impl From<ModelDescription> for pb::ModelDescription {
    fn from(description: ModelDescription) -> Self {
        let file = |file: ModelFile| pb::ModelFile { name: file.name, content: file.content };
        Self {
            files: description.files.into_iter().map(file).collect(),
            manifest: Some(description.manifest.into()),
        }
    }
}

impl TryFrom<pb::ModelDescription> for ModelDescription {
    type Error = ProtocolError;

    fn try_from(description: pb::ModelDescription) -> Result<Self, ProtocolError> {
        let file = |file: pb::ModelFile| ModelFile::new(file.name, file.content);
        Ok(Self {
            files: description.files.into_iter().map(file).collect::<Result<_, _>>()?,
            manifest: required("description.manifest", description.manifest)?.try_into()?,
        })
    }
}
