//! Ids, prompts, rollouts, weights.

use std::num::NonZeroU32;

use types::{
    DType, FailReason, FinishReason, GroupScore, Manifest, ModelDescription, ModelFile, Observation,
    PolicyVersion, Prompt, PromptContent, PromptId, Remarks, Rollout, RolloutFailure, RolloutId,
    RolloutParts, Sample, Sampling, SamplingParams, ScoredRollout, Scores, Span, TensorEntry, TensorLayout,
    Texts, Vocabulary, WeightHash,
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
        // Its fields stay with the coordinator and the reward servers.
        let id = prompt.id();
        let content = match prompt.into_content() {
            PromptContent::Text(text) => pb::prompt::Content::Text(text),
            PromptContent::Tokens(ids) => pb::prompt::Content::Tokens(pb::TokenIds { ids }),
            PromptContent::Messages(json) => pb::prompt::Content::Messages(json),
        };
        Self { epoch: id.epoch, ordinal: id.ordinal, content: Some(content) }
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
        Ok(Prompt::new(id, content, "".into())?)
    }
}

impl From<Span> for pb::Span {
    fn from(span: Span) -> Self {
        Self { version: span.version.0, tokens: span.tokens.get() }
    }
}

impl TryFrom<pb::Span> for Span {
    type Error = ProtocolError;

    fn try_from(span: pb::Span) -> Result<Self, ProtocolError> {
        let tokens = NonZeroU32::new(span.tokens).ok_or(ProtocolError::Missing("span.tokens"))?;
        Ok(Self { version: PolicyVersion(span.version), tokens })
    }
}

impl From<Observation> for pb::Observation {
    fn from(Observation { after, tokens, begins_sequence, reward }: Observation) -> Self {
        Self { after, tokens, begins_sequence, reward }
    }
}

impl From<pb::Observation> for Observation {
    fn from(pb::Observation { after, tokens, begins_sequence, reward }: pb::Observation) -> Self {
        Self { after, tokens, begins_sequence, reward }
    }
}

impl From<Rollout> for pb::Rollout {
    fn from(rollout: Rollout) -> Self {
        let rollout = rollout.into_parts();
        let finish_reason = match rollout.finish_reason {
            FinishReason::Stop => pb::FinishReason::Stop,
            FinishReason::Length => pb::FinishReason::Length,
        };
        Self {
            id: Some(rollout.id.into()),
            prompt_tokens: rollout.prompt_tokens.to_vec(),
            response_tokens: rollout.response_tokens,
            rollout_logprobs: rollout.rollout_logprobs,
            surviving_mass: rollout.surviving_mass.unwrap_or_default(),
            spans: rollout.spans.into_iter().map(pb::Span::from).collect(),
            finish_reason: finish_reason.into(),
            observations: rollout.observations.into_iter().map(pb::Observation::from).collect(),
            reward: rollout.reward,
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
        Ok(Rollout::new(RolloutParts {
            id: required("rollout.id", rollout.id)?.try_into()?,
            prompt_tokens: rollout.prompt_tokens.into(),
            response_tokens: rollout.response_tokens,
            observations: rollout.observations.into_iter().map(Observation::from).collect(),
            reward: rollout.reward,
            rollout_logprobs: rollout.rollout_logprobs,
            surviving_mass: Some(rollout.surviving_mass).filter(|mass| !mass.is_empty()),
            spans: rollout.spans.into_iter().map(Span::try_from).collect::<Result<_, _>>()?,
            finish_reason,
            fields: "".into(),
        })?)
    }
}

impl From<ScoredRollout> for pb::ScoredRollout {
    fn from(mut scored: ScoredRollout) -> Self {
        let Remarks { numbers, contributions, texts } = scored.take_remarks();
        let numbers = numbers.into_iter().map(|(scorer, number)| {
            let added = contributions.get(&scorer).copied();
            pb::ScorerNumber { scorer, number, added }
        });
        let texts = texts.map(|texts| pb::ScoredTexts {
            prompt: texts.prompt().to_owned(),
            response: texts.response().to_owned(),
        });
        let (rollout, scores) = scored.into_parts();
        Self {
            rollout: Some(rollout.into()),
            score: scores.score,
            ref_logprobs: scores.ref_logprobs,
            outcome: scores.outcome,
            turn_weight: scores.turn_weight,
            numbers: numbers.collect(),
            texts,
        }
    }
}

impl TryFrom<pb::ScoredRollout> for ScoredRollout {
    type Error = ProtocolError;

    fn try_from(scored: pb::ScoredRollout) -> Result<Self, ProtocolError> {
        let rollout = required("scored.rollout", scored.rollout)?.try_into()?;
        let pb::ScoredRollout { score, ref_logprobs, outcome, numbers, texts, turn_weight, .. } = scored;
        let added = numbers.iter().filter_map(|said| Some((said.scorer.clone(), said.added?)));
        let contributions = added.collect();
        let numbers = numbers.into_iter().map(|said| (said.scorer, said.number)).collect();
        let texts = texts.map(|texts| Texts::new(&texts.prompt, &texts.response));
        let scored = Self::new(rollout, Scores { score, ref_logprobs, outcome, turn_weight })?;
        Ok(scored.with_remarks(Remarks { numbers, contributions, texts })?)
    }
}

impl From<GroupScore> for pb::GroupScore {
    fn from(score: GroupScore) -> Self {
        let GroupScore { sibling, score, tokens, truncated } = score;
        Self { sibling: sibling.into(), score, tokens, truncated }
    }
}

impl TryFrom<pb::GroupScore> for GroupScore {
    type Error = ProtocolError;

    fn try_from(score: pb::GroupScore) -> Result<Self, ProtocolError> {
        let pb::GroupScore { sibling, score, tokens, truncated } = score;
        let sibling = u16::try_from(sibling)
            .map_err(|_| ProtocolError::field("group_score.sibling", format!("is {sibling}, above 65535")))?;
        Ok(Self { sibling, score, tokens, truncated })
    }
}

impl From<Sample> for pb::Sample {
    fn from(sample: Sample) -> Self {
        let weight = sample.weight();
        let group = sample.group().iter().copied().map(pb::GroupScore::from).collect();
        Self { scored: Some(sample.into_scored().into()), weight, group }
    }
}

impl TryFrom<pb::Sample> for Sample {
    type Error = ProtocolError;

    fn try_from(sample: pb::Sample) -> Result<Self, ProtocolError> {
        let scored = required("sample.scored", sample.scored)?.try_into()?;
        let group: Vec<GroupScore> =
            sample.group.into_iter().map(GroupScore::try_from).collect::<Result<_, _>>()?;
        Ok(Self::new(scored, sample.weight, group)?)
    }
}

pub(super) fn fail_reason_to_pb(reason: FailReason) -> pb::FailReason {
    match reason {
        FailReason::LeaseExpired => pb::FailReason::LeaseExpired,
        FailReason::ActorLost => pb::FailReason::ActorLost,
        FailReason::Returned => pb::FailReason::Returned,
        FailReason::Generation => pb::FailReason::Generation,
        FailReason::Invalid => pb::FailReason::Invalid,
        FailReason::RewardTimeout => pb::FailReason::RewardTimeout,
        FailReason::RewardError => pb::FailReason::RewardError,
        FailReason::Unsupported => pb::FailReason::Unsupported,
        FailReason::Overload => pb::FailReason::Overload,
        FailReason::Environment => pb::FailReason::Environment,
        FailReason::Agent => pb::FailReason::Agent,
    }
}

pub(super) fn fail_reason_from_pb(reason: pb::FailReason) -> Result<FailReason, ProtocolError> {
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
        pb::FailReason::Overload => FailReason::Overload,
        pb::FailReason::Environment => FailReason::Environment,
        pb::FailReason::Agent => FailReason::Agent,
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
        let params = SamplingParams::from(sampling);
        Self {
            temperature: params.temperature,
            top_p: params.top_p,
            top_k: params.top_k,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            max_new_tokens: params.max_new_tokens,
            stop: params.stop,
            stop_token_ids: params.stop_token_ids,
            ignore_eos: params.ignore_eos,
        }
    }
}

impl TryFrom<pb::Sampling> for Sampling {
    type Error = ProtocolError;

    fn try_from(sampling: pb::Sampling) -> Result<Self, ProtocolError> {
        Ok(Self::new(SamplingParams {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            max_new_tokens: sampling.max_new_tokens,
            stop: sampling.stop,
            stop_token_ids: sampling.stop_token_ids,
            ignore_eos: sampling.ignore_eos,
        })?)
    }
}

/// A hash field: 32 bytes.
pub(crate) fn hash(field: &'static str, bytes: &[u8]) -> Result<WeightHash, ProtocolError> {
    let bytes = <[u8; 32]>::try_from(bytes);
    bytes.map(WeightHash).map_err(|_| ProtocolError::field(field, "must have 32 bytes"))
}

impl From<Vocabulary> for pb::Vocabulary {
    fn from(vocabulary: Vocabulary) -> Self {
        let (hash, shorter) = (vocabulary.hash().to_vec(), vocabulary.shorter().to_vec());
        Self { tokens: vocabulary.tokens(), hash, shorter }
    }
}

impl TryFrom<pb::Vocabulary> for Vocabulary {
    type Error = ProtocolError;

    fn try_from(vocabulary: pb::Vocabulary) -> Result<Self, ProtocolError> {
        let WeightHash(hash) = hash("vocabulary.hash", &vocabulary.hash)?;
        Ok(Self::stated(vocabulary.tokens, hash, vocabulary.shorter)?)
    }
}

impl From<&TensorEntry> for pb::TensorEntry {
    fn from(entry: &TensorEntry) -> Self {
        let dtype = match entry.dtype() {
            DType::F32 => pb::DType::F32,
            DType::Bf16 => pb::DType::Bf16,
            DType::F16 => pb::DType::F16,
        };
        Self {
            name: entry.name().to_owned(),
            shape: entry.shape().to_vec(),
            dtype: dtype.into(),
            hash: entry.hash().0.to_vec(),
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
        let hash = hash("tensor.hash", &entry.hash)?;
        Ok(Self::new(TensorLayout { name: entry.name, shape: entry.shape, dtype }, hash)?)
    }
}

impl From<Manifest> for pb::Manifest {
    fn from(manifest: Manifest) -> Self {
        Self {
            version: manifest.version().0,
            tensors: manifest.tensors().iter().map(Into::into).collect(),
            hash: manifest.hash().0.to_vec(),
        }
    }
}

impl TryFrom<pb::Manifest> for Manifest {
    type Error = ProtocolError;

    fn try_from(manifest: pb::Manifest) -> Result<Self, ProtocolError> {
        let tensors = manifest.tensors.into_iter().map(TensorEntry::try_from).collect::<Result<_, _>>()?;
        let hash = hash("manifest.hash", &manifest.hash)?;
        Ok(Self::stated(PolicyVersion(manifest.version), tensors, hash)?)
    }
}

impl From<&ModelFile> for pb::ModelFile {
    fn from(file: &ModelFile) -> Self {
        Self { name: file.name().to_owned(), content: file.content().to_vec() }
    }
}

impl TryFrom<pb::ModelFile> for ModelFile {
    type Error = ProtocolError;

    fn try_from(file: pb::ModelFile) -> Result<Self, ProtocolError> {
        Ok(Self::new(file.name, file.content)?)
    }
}

impl From<ModelDescription> for pb::ModelDescription {
    fn from(description: ModelDescription) -> Self {
        Self {
            files: description.files.iter().map(Into::into).collect(),
            manifest: Some(description.manifest.into()),
        }
    }
}

impl TryFrom<pb::ModelDescription> for ModelDescription {
    type Error = ProtocolError;

    fn try_from(description: pb::ModelDescription) -> Result<Self, ProtocolError> {
        Ok(Self {
            files: description.files.into_iter().map(ModelFile::try_from).collect::<Result<_, _>>()?,
            manifest: required("description.manifest", description.manifest)?.try_into()?,
        })
    }
}
