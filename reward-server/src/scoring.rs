//! From an arrived rollout to its report: one task each, bounded by the ledger.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use service::CancellationToken;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use types::link::reward::RewardReport;
use types::{FailReason, Rollout, ScoredRollout};

use crate::desk::{Arrival, Desk, failure};
use crate::fault::Fault;
use crate::item::Item;
use crate::panel::Panel;

/// Scores what arrives until `done`.
pub(crate) async fn run(
    panel: Arc<Panel>,
    desk: Desk,
    mut arrivals: mpsc::Receiver<Arrival>,
    done: CancellationToken,
) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            arrival = arrivals.recv() => {
                let Some(arrival) = arrival else { return Ok(()) };
                let (panel, desk) = (Arc::clone(&panel), desk.clone());
                tasks.spawn(async move { desk.finished(report(&panel, arrival).await) });
            }
            // Frees what an ended task has left; a task does not fail.
            Some(_) = tasks.join_next() => {}
            () = done.cancelled() => return Ok(()),
        }
    }
}

/// The report about a rollout. Even a panic of a scorer becomes one, so that no rollout is left without.
async fn report(panel: &Panel, Arrival { rollout, until }: Arrival) -> RewardReport {
    let (id, tokens) = (rollout.id, rollout.response_tokens.len());
    let scored = AssertUnwindSafe(score(panel, rollout, until)).catch_unwind().await;
    match scored {
        Ok(Ok(scored)) => RewardReport::Scored(scored),
        Ok(Err(Fault { reason, detail })) => failure(id, reason, detail, tokens),
        Err(_) => failure(id, FailReason::RewardError, "a scorer panicked".to_owned(), tokens),
    }
}

async fn score(panel: &Panel, rollout: Rollout, until: Instant) -> Result<ScoredRollout, Fault> {
    let item = Arc::new(Item::of_rollout(&rollout, panel.tokenizer())?);
    let (ref_logprobs, judgement) =
        futures::try_join!(panel.ref_logprobs(&item, until), panel.judge(&item, until))?;
    // The scorers have read the fields; from here on nobody does.
    let rollout = Rollout { fields: "".into(), ..rollout };
    let scored = ScoredRollout { rollout, score: judgement.score, ref_logprobs, outcome: judgement.outcome };
    scored.validated().map_err(|invalid| Fault::error(invalid.to_string()))
}
