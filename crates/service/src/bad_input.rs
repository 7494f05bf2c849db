//! What the user's input caused.

/// An error that the user's input caused: the process exits with 2 instead of 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);
