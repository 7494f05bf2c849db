//! Why there is no score. It is never turned into a number: it travels on as a failure of the rollout.

use types::FailReason;

/// No score, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct ScoreError {
    /// The reason that the coordinator counts.
    pub(crate) reason: FailReason,
    /// What happened, for a person.
    pub(crate) detail: String,
    /// The scorer that it happened to, as metrics call it; none where no scorer was asked.
    pub(crate) scorer: Option<&'static str>,
}

impl ScoreError {
    /// A scorer failed.
    pub(crate) fn error(detail: impl Into<String>) -> Self {
        Self { reason: FailReason::RewardError, detail: detail.into(), scorer: None }
    }

    /// A scorer took too long.
    pub(crate) fn timeout(detail: impl Into<String>) -> Self {
        Self { reason: FailReason::RewardTimeout, detail: detail.into(), scorer: None }
    }

    /// The machine could not give the response what it needed.
    pub(crate) fn overload(detail: impl Into<String>) -> Self {
        Self { reason: FailReason::Overload, detail: detail.into(), scorer: None }
    }

    /// The problem cannot be graded here, whatever the response.
    pub(crate) fn unsupported(detail: impl Into<String>) -> Self {
        Self { reason: FailReason::Unsupported, detail: detail.into(), scorer: None }
    }

    /// The same, of this scorer unless another one was named before.
    pub(crate) fn of(self, scorer: &'static str) -> Self {
        Self { scorer: self.scorer.or(Some(scorer)), ..self }
    }
}
