//! What can be wrong with a message.

use types::Invalid;

/// A message that no correct peer sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A field without which the message means nothing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field whose value is out of range.
    #[error("{field}: {problem}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Fields that are sound alone but break an invariant together.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The other side is of another release.
    #[error("speaks protocol {theirs}, this is {ours}: run the same release everywhere")]
    OtherVersion {
        /// What it speaks; 0 is a release before there were versions.
        theirs: u32,
        /// What this release speaks.
        ours: u32,
    },
    /// A stream that does not begin with a hello, or a second hello on it.
    #[error("the first message of a stream must be a hello, and no other may be")]
    HelloOutOfPlace,
    /// Another message that may not come at this point of a stream.
    #[error("unexpected message: {0}")]
    Unexpected(String),
}

impl ProtocolError {
    /// A field whose value is out of range.
    pub fn field(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Field { field, problem: problem.into() }
    }
}

impl From<ProtocolError> for tonic::Status {
    fn from(error: ProtocolError) -> Self {
        let message = error.to_string();
        match error {
            ProtocolError::OtherVersion { .. } => tonic::Status::failed_precondition(message),
            _ => tonic::Status::invalid_argument(message),
        }
    }
}

/// The value of a field that must be there.
pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Result<T, ProtocolError> {
    value.ok_or(ProtocolError::Missing(field))
}
