//! The wire format: the schema in `sluice/v1/*.proto`, the code generated from it, and the conversions
//! between the generated types and the domain types of `types`.
//!
//! ```
//! use proto::{ProtocolError, pb};
//! use types::{PromptId, RolloutId};
//!
//! let id = RolloutId { prompt: PromptId { epoch: 0, ordinal: 17 }, sibling: 3, attempt: 0 };
//! let message = pb::RolloutId::from(id);
//! assert_eq!(RolloutId::try_from(message), Ok(id));
//!
//! // The receiving side checks: a sibling is a number of 16 bits.
//! let nonsense = pb::RolloutId { sibling: 70_000, ..message };
//! assert!(matches!(RolloutId::try_from(nonsense), Err(ProtocolError::Field { field: "sibling", .. })));
//! ```
//!
//! This is the only crate that knows both. Outside it, only `grpc.rs` and `*_client.rs` files may name
//! [`pb`]. The receiving side validates: a `TryFrom<pb::X>` either yields a valid domain value or a
//! [`ProtocolError`] that names the field, and that error maps to `INVALID_ARGUMENT`.

mod convert;
mod error;
mod stored;

pub use convert::batch::{LearnerCommands, learner_messages};
pub use error::ProtocolError;
pub use stored::{batch_from_bytes, batch_to_bytes, scored_from_bytes, scored_to_bytes};

/// The types and services generated from `sluice/v1/*.proto`.
#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all, clippy::too_many_lines)]
pub mod pb {
    tonic::include_proto!("sluice.v1");
}

/// What a member and a coordinator have to agree on: both speak this version of the schema. It grows with
/// each change that the other side would misunderstand.
const PROTOCOL_VERSION: u32 = 4;

/// Largest message in either direction, in bytes. Batches and weights are sent in parts well below it.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;
