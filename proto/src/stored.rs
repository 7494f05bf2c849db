//! Scored rollouts at rest: the same bytes as on the wire.

use prost::Message;
use types::ScoredRollout;

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
