//! Why a member cannot take part in the run.

use std::fmt;

/// What is wrong with a member that cannot take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalCause {
    /// It works for another run.
    Run,
    /// Another process has its name or its role.
    Name,
    /// It has trained what this run never had, or lost what it did.
    Weights,
    /// It reads other tokens than the policy.
    Tokenizer,
}

impl RefusalCause {
    /// Their names.
    pub(crate) const NAMES: [&'static str; 4] = ["run", "name", "weights", "tokenizer"];

    /// Its name in metrics.
    pub(crate) fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// Why a member cannot take part in the run, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong, for counting.
    pub cause: RefusalCause,
    /// For a person.
    pub reason: String,
}

impl Refusal {
    pub(super) fn new(cause: RefusalCause, reason: impl ToString) -> Self {
        Self { cause, reason: reason.to_string() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}
