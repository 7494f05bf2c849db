//! The scorers without a ring, for a program that holds rollouts (`sluice eval`): each is scored as the ring
//! would score it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use service::{CancellationToken, TaskSet};
use tokio::time::Instant;
use types::{FailReason, Rollout, ScoredRollout};

use crate::config::Config;
use crate::scorer_set::ScorerSet;
use crate::scoring::score_rollout;

/// Rollouts that are scored at a time.
const AT_ONCE: usize = 64;
/// How long the scorers' workers may take to leave.
const GRACE_PERIOD: Duration = Duration::from_secs(10);

/// Why a rollout has no score.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct NotScored {
    /// The kind of reason.
    pub reason: FailReason,
    /// What happened.
    pub detail: String,
}

/// Scores rollouts by a reward server's scorers, several at a time, and calls `scored` with what came of each
/// in their order.
///
/// # Errors
/// When a model, file, sandbox or function cannot be used, or their workers end.
pub async fn score_rollouts(
    config: &Config,
    rollouts: impl Iterator<Item = Rollout>,
    mut scored: impl FnMut(Result<ScoredRollout, NotScored>),
) -> anyhow::Result<()> {
    let (token, done, mut tasks) = (CancellationToken::new(), CancellationToken::new(), TaskSet::default());
    let scorers = Arc::new(ScorerSet::start(config, &mut tasks, &done).await?);
    let each = rollouts.map(|rollout| {
        let scorers = Arc::clone(&scorers);
        async move {
            let deadline = Instant::now() + scorers.timeout();
            let result = score_rollout(&scorers, rollout, deadline).await;
            result.map_err(|error| NotScored { reason: error.reason, detail: error.detail })
        }
    });
    let work = async {
        let mut results = std::pin::pin!(futures::stream::iter(each).buffered(AT_ONCE));
        let all = async {
            while let Some(result) = results.next().await {
                scored(result);
            }
        };
        tokio::select! {
            () = all => {}
            // A worker has failed: the set of tasks says which.
            () = token.cancelled() => {}
        }
        done.cancel();
        token.cancel();
    };
    let (ended, ()) = tokio::join!(tasks.run(token.clone(), GRACE_PERIOD), work);
    ended
}
