//! What goes wrong while responses are scored, said once and then counted.

use std::sync::{Mutex, PoisonError};

use service::{Recurring, Saying};
use tokio::time::Instant;
use types::FailReason;

use crate::score_error::ScoreError;

/// What went wrong so far, by scorer and reason.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<Recurring<(&'static str, FailReason)>>);

impl Failures {
    /// Says the first failure of a scorer for a reason, and once a minute how many more there were;
    /// `missing` is what there is none of because of it.
    pub(crate) fn warn(&self, missing: &'static str, ScoreError { reason, detail, scorer }: &ScoreError) {
        let scorer = scorer.unwrap_or("none");
        let mut recurring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match recurring.happened(Instant::now(), (scorer, *reason)) {
            Saying::First => {
                tracing::warn!(missing, scorer, %reason, detail, "no number; others of its kind are counted");
            }
            Saying::More { count, within } => {
                let seconds = within.as_secs();
                tracing::warn!(missing, scorer, %reason, count, seconds, "no number, again");
            }
            Saying::Nothing => {}
        }
    }
}
