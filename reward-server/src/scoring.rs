//! From an arrived rollout to its report: one task each, bounded by what may be in work.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use service::CancellationToken;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use types::link::reward::RewardReport;
use types::{Rollout, ScoredRollout, Scores};

use crate::failures::Failures;
use crate::fields_client::PromptFields;
use crate::registry::{Arrival, RolloutRegistry, failure};
use crate::score_error::ScoreError;
use crate::scorer_input::ScorerInput;
use crate::scorer_set::ScorerSet;

/// Scores what arrives until `done`.
pub(crate) async fn run(
    scorers: Arc<ScorerSet>,
    fields: Arc<PromptFields>,
    registry: RolloutRegistry,
    mut arrivals: mpsc::Receiver<Arrival>,
    done: CancellationToken,
) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let failures = Arc::new(Failures::default());
    loop {
        tokio::select! {
            arrival = arrivals.recv() => {
                let Some(arrival) = arrival else { return Ok(()) };
                let (scorers, registry) = (Arc::clone(&scorers), registry.clone());
                let (failures, fields) = (Arc::clone(&failures), Arc::clone(&fields));
                tasks.spawn(async move {
                    let Arrival { rollout, deadline } = arrival;
                    let fields = fields.of(registry.run(), rollout.id().prompt, deadline);
                    registry.finished(report(&scorers, fields, &failures, Arrival { rollout, deadline }).await);
                });
            }
            // Frees what an ended task has left; a task does not fail.
            Some(_) = tasks.join_next() => {}
            () = done.cancelled() => return Ok(()),
        }
    }
}

/// The report about a rollout. Even a panic of a scorer becomes one, so that no rollout is left without.
async fn report(
    scorers: &ScorerSet,
    fields: impl Future<Output = Result<Arc<str>, ScoreError>>,
    failures: &Failures,
    Arrival { rollout, deadline }: Arrival,
) -> RewardReport {
    let (id, tokens) = (rollout.id(), rollout.response_tokens().len());
    let scored = async {
        let rollout = rollout.with_fields(fields.await?);
        let rollout = rollout.map_err(|invalid| ScoreError::error(invalid.to_string()))?;
        score_rollout(scorers, rollout, deadline).await
    };
    let scored = AssertUnwindSafe(Box::pin(scored)).catch_unwind().await;
    let error = match scored {
        Ok(Ok(scored)) => return RewardReport::Scored(scored),
        Ok(Err(error)) => error,
        Err(_) => ScoreError::error("a scorer panicked"),
    };
    failures.warn("score", &error);
    failure(id, error.reason, error.detail, tokens)
}

/// A rollout with everything that is said about it.
///
/// # Errors
/// That of the first scorer that has no number, or of the reference.
pub(crate) async fn score_rollout(
    scorers: &ScorerSet,
    rollout: Rollout,
    deadline: Instant,
) -> Result<ScoredRollout, ScoreError> {
    let input = Arc::new(ScorerInput::of_rollout(&rollout, scorers.tokenizer())?);
    let (ref_logprobs, judged) =
        futures::try_join!(scorers.ref_logprobs(&input, deadline), scorers.score(&input, deadline))?;
    let scores = Scores {
        score: judged.score,
        ref_logprobs,
        outcome: judged.outcome,
        turn_weight: judged.turn_weight,
    };
    // The scorers have read the fields; from here on nobody does.
    let scored = ScoredRollout::new(rollout.without_fields(), scores);
    let remarked = scored.and_then(|scored| scored.with_remarks(scorers.remarks(&input, &judged)));
    remarked.map_err(|invalid| ScoreError::error(invalid.to_string()))
}
