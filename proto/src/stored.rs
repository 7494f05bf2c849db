//! Scored rollouts and batches as bytes, the same as on the wire: in a journal, or from one learner rank to
//! the others.

use prost::Message;
use types::{Batch, BatchId, Sample, ScoredRollout};

use crate::{ProtocolError, pb};

/// The bytes under which a journal stores a scored rollout.
pub fn scored_to_bytes(scored: ScoredRollout) -> Vec<u8> {
    pb::ScoredRollout::from(scored).encode_to_vec()
}

/// Reads them back.
///
/// # Errors
/// When the bytes are not a valid scored rollout.
pub fn scored_from_bytes(bytes: &[u8]) -> Result<ScoredRollout, ProtocolError> {
    let message = pb::ScoredRollout::decode(bytes)
        .map_err(|error| ProtocolError::field("stored rollout", error.to_string()))?;
    message.try_into()
}

/// A batch as bytes.
pub fn batch_to_bytes(batch: Batch) -> Vec<u8> {
    let id = batch.id();
    let samples = batch.into_samples().into_iter().map(pb::Sample::from).collect();
    pb::BatchPart { batch: id.0, part: 0, parts: 1, samples }.encode_to_vec()
}

/// Reads it back.
///
/// # Errors
/// When the bytes are not a valid batch.
pub fn batch_from_bytes(bytes: &[u8]) -> Result<Batch, ProtocolError> {
    let part =
        pb::BatchPart::decode(bytes).map_err(|error| ProtocolError::field("batch", error.to_string()))?;
    let samples = part.samples.into_iter().map(Sample::try_from).collect::<Result<_, _>>()?;
    Ok(Batch::new(BatchId(part.batch), samples)?)
}
