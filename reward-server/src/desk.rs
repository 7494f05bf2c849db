//! Where actors' streams, the scoring tasks and the coordinator's stream meet: the ledger, shared.
//!
//! ```text
//! actor streams --receive--> ledger --arrivals--> scoring tasks
//!       ^                       |  ^                   |
//!       '------ recorded -------'  '----- finished ----'
//!                               |
//!                               '-- unsent --> coordinator's stream --> recorded
//! ```
//!
//! Back-pressure: an actor's stream is read no further while all its answers' places are taken; beyond the ledger's bounds
//! it is told to come back; the coordinator's stream takes results at its own speed, and what waits for it counts in the
//! ledger.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use service::CancellationToken;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use types::link::reward::RewardReport;
use types::{FailReason, MemberId, Rollout, RolloutFailure, RolloutId, RunId};

use crate::ledger::{Answer, Bounds, Ledger, Offer, bytes_of};
use crate::metrics::{self, Offered};
use crate::panel::Panel;

/// Pause before an actor offers a rollout again to a server that is leaving: by then it knows of others.
const DRAINING_PAUSE: Duration = Duration::from_secs(1);

/// A rollout that is to be scored.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) rollout: Rollout,
    /// Later than this nobody wants the score.
    pub(crate) until: Instant,
}

/// The shared ledger. A cheap clone.
#[derive(Debug, Clone)]
pub(crate) struct Desk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ledger: Mutex<Ledger>,
    /// To the scoring tasks; as many places as the ledger has rollouts.
    arrivals: mpsc::Sender<Arrival>,
    /// A result waits to be sent.
    unsent: Notify,
    /// A rollout has left the ledger.
    left: Notify,
    /// The run, once the coordinator has said it.
    run: watch::Sender<Option<RunId>>,
    /// Cancelled when no new rollout is to be accepted.
    draining: CancellationToken,
    panel: Arc<Panel>,
}

impl Desk {
    /// A desk, and the rollouts that arrive at it.
    pub(crate) fn new(
        bounds: Bounds,
        panel: Arc<Panel>,
        draining: CancellationToken,
    ) -> (Self, mpsc::Receiver<Arrival>) {
        let (arrivals, inbox) = mpsc::channel(bounds.rollouts);
        let inner = Inner {
            ledger: Mutex::new(Ledger::new(bounds)),
            arrivals,
            unsent: Notify::new(),
            left: Notify::new(),
            run: watch::Sender::new(None),
            draining,
            panel,
        };
        (Self(Arc::new(inner)), inbox)
    }

    /// An actor offers a rollout that its lease wants for `time_left` still; `answer` is given now if there is no room,
    /// otherwise when its fate is recorded.
    pub(crate) async fn receive(
        &self,
        rollout: Rollout,
        time_left: Duration,
        actor: &MemberId,
        answer: Answer,
    ) {
        let now = Instant::now();
        let until = now + time_left.min(self.0.panel.time_limit());
        let offered = {
            let mut ledger = self.ledger();
            let refusal = match ledger.holds(rollout.id) {
                true => None,
                false if self.0.draining.is_cancelled() => Some((DRAINING_PAUSE, Offered::Draining)),
                false => self.0.panel.paused().map(|pause| (pause, Offered::Paused)),
            };
            match refusal {
                Some((pause, offered)) => {
                    ledger.refuse(rollout.id, answer, pause);
                    offered
                }
                None => match ledger.offer(now, (rollout.id, bytes_of(&rollout)), actor, answer) {
                    Offer::Accepted => Offered::Accepted,
                    Offer::Attached => Offered::Attached,
                    Offer::Refused => Offered::Overloaded,
                },
            }
        };
        metrics::offer(offered);
        if matches!(offered, Offered::Accepted) {
            // Without scoring tasks the process is ending; the actor keeps what it has no answer for.
            let _ = self.0.arrivals.send(Arrival { rollout, until }).await;
        }
    }

    /// An actor offers a rollout that breaks an invariant: its attempt has failed, which is recorded like any result.
    pub(crate) fn refuse_invalid(
        &self,
        (id, tokens): (RolloutId, usize),
        problem: String,
        actor: &MemberId,
        answer: Answer,
    ) {
        if self.ledger().offer(Instant::now(), (id, 0), actor, answer) == Offer::Accepted {
            self.finished(failure(id, FailReason::Invalid, problem, tokens));
        }
    }

    /// A rollout has its result.
    pub(crate) fn finished(&self, report: RewardReport) {
        let id = match &report {
            RewardReport::Scored(scored) => {
                metrics::scored();
                scored.rollout.id
            }
            RewardReport::Failed(failure) => {
                tracing::debug!(id = %failure.id, reason = %failure.reason, detail = failure.detail, "no score");
                metrics::failed(failure.reason, failure.response_tokens);
                failure.id
            }
            RewardReport::Load { .. } => return,
        };
        self.ledger().finished(id, report);
        self.0.unsent.notify_one();
    }

    /// The next result to send, whenever there is one.
    pub(crate) async fn next_unsent(&self) -> RewardReport {
        loop {
            let next = self.ledger().next_unsent();
            match next {
                Some(report) => return report,
                None => self.0.unsent.notified().await,
            }
        }
    }

    /// The coordinator has welcomed us to this run over a new stream; returns how many results are sent again.
    pub(crate) fn welcomed(&self, run: RunId) -> usize {
        self.0.run.send_replace(Some(run));
        self.ledger().send_again()
    }

    /// The journal has a result.
    pub(crate) fn recorded(&self, id: RolloutId) {
        let settled = self.ledger().recorded(Instant::now(), id);
        if let Some(settled) = settled {
            metrics::recorded(settled.took);
            self.0.left.notify_one();
        }
    }

    /// Waits until the server is to leave and nothing is in work any more.
    pub(crate) async fn drained(&self) {
        self.0.draining.cancelled().await;
        while self.ledger().len() > 0 {
            self.0.left.notified().await;
        }
    }

    /// The run, if the coordinator has said it.
    pub(crate) fn run(&self) -> Option<RunId> {
        self.0.run.borrow().clone()
    }

    /// Updates the gauges; returns the number of rollouts in work.
    pub(crate) fn observe(&self) -> u32 {
        let (scoring, all, bytes) = {
            let ledger = self.ledger();
            (ledger.scoring(), ledger.len(), ledger.bytes())
        };
        metrics::queue(scoring, all - scoring, bytes);
        self.0.panel.observe();
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A failure as it is reported.
pub(crate) fn failure(id: RolloutId, reason: FailReason, detail: String, tokens: usize) -> RewardReport {
    let response_tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    RewardReport::Failed(RolloutFailure { id, reason, detail, response_tokens })
}
