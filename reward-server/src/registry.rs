//! The registry of rollouts: where actors' streams, the scoring tasks and the coordinator's stream meet.
//!
//! ```text
//! actor streams --receive--> inflight --arrivals--> scoring tasks
//!       ^                       |  ^                   |
//!       '------ recorded -------'  '----- finished ----'
//!                               |
//!                               '-- unsent --> coordinator's stream --> recorded
//! ```
//!
//! Back-pressure: an actor's stream is read no further while all its answers' places are taken; beyond the
//! bounds of what is in work it is told to come back; the coordinator's stream takes results at its own
//! speed, and what waits for it is still in work.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use service::CancellationToken;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use types::link::reward::{RewardReport, ScoreReply};
use types::{FailReason, MemberId, Rollout, RolloutFailure, RolloutId, RunId};

use crate::inflight::{Admission, Bounds, Inflight, Offer, bytes_of};
use crate::metrics::{self, OfferAnswer};
use crate::scorer_set::ScorerSet;

/// When an actor may offer a rollout again to a server that is leaving: by then it knows of others.
const DRAINING_RETRY_DELAY: Duration = Duration::from_secs(1);

/// What an actor's stream carries; the error ends it.
pub(crate) type Reply = Result<ScoreReply, Misbehaved>;

/// An actor sent what no correct actor sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misbehaved(pub(crate) String);

/// The reserved place of one answer in an actor's stream, so that answering never waits.
pub(crate) type ReplyPermit = mpsc::OwnedPermit<Reply>;

/// A rollout that is to be scored.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) rollout: Rollout,
    /// Later than this nobody wants the score.
    pub(crate) deadline: Instant,
}

/// What is known of a rollout that breaks an invariant.
#[derive(Debug)]
pub(crate) struct InvalidRollout {
    pub(crate) id: RolloutId,
    pub(crate) response_tokens: usize,
    pub(crate) problem: String,
}

/// The shared registry. A cheap clone.
#[derive(Debug, Clone)]
pub(crate) struct RolloutRegistry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    inflight: Mutex<Inflight<ReplyPermit>>,
    /// To the scoring tasks; as many places as there may be rollouts in work.
    arrivals: mpsc::Sender<Arrival>,
    /// A result waits to be sent.
    unsent: Notify,
    /// A rollout is in work no more.
    left: Notify,
    /// The run, once the coordinator has said it.
    run: watch::Sender<Option<RunId>>,
    /// Cancelled when no new rollout is to be accepted.
    draining: CancellationToken,
    scorers: Arc<ScorerSet>,
}

impl RolloutRegistry {
    /// An empty registry, and the rollouts that arrive at it.
    pub(crate) fn new(
        bounds: Bounds,
        scorers: Arc<ScorerSet>,
        draining: CancellationToken,
    ) -> (Self, mpsc::Receiver<Arrival>) {
        let (arrivals, inbox) = mpsc::channel(bounds.rollouts);
        let inner = Inner {
            inflight: Mutex::new(Inflight::new(bounds)),
            arrivals,
            unsent: Notify::new(),
            left: Notify::new(),
            run: watch::Sender::new(None),
            draining,
            scorers,
        };
        (Self(Arc::new(inner)), inbox)
    }

    /// An actor offers a rollout that its lease wants for `time_left` still; `permit` is used now if there is
    /// no room, otherwise when its fate is recorded.
    pub(crate) async fn receive(
        &self,
        rollout: Rollout,
        time_left: Duration,
        actor: &MemberId,
        permit: ReplyPermit,
    ) {
        let now = Instant::now();
        let deadline = now + time_left.min(self.0.scorers.timeout());
        let offer =
            Offer { id: rollout.id(), bytes: bytes_of(&rollout), actor: actor.clone(), answer: permit };
        let answer = self.admit(now, offer);
        metrics::offer(answer);
        if matches!(answer, OfferAnswer::Accepted) {
            // Without scoring tasks the process is ending; the actor keeps what it has no answer for.
            let _ = self.0.arrivals.send(Arrival { rollout, deadline }).await;
        }
    }

    /// Takes an offer in, or tells its actor when to come back.
    fn admit(&self, now: Instant, offer: Offer<ReplyPermit>) -> OfferAnswer {
        let mut inflight = self.inflight();
        let id = offer.id;
        if !inflight.holds(id) {
            if self.0.draining.is_cancelled() {
                refuse(id, offer.answer, DRAINING_RETRY_DELAY);
                return OfferAnswer::Draining;
            }
            if let Some(retry_after) = self.0.scorers.paused() {
                refuse(id, offer.answer, retry_after);
                return OfferAnswer::Paused;
            }
        }
        match inflight.offer(now, offer) {
            Admission::Accepted => OfferAnswer::Accepted,
            Admission::Attached => OfferAnswer::Attached,
            Admission::Refused { answer, retry_after } => {
                refuse(id, answer, retry_after);
                OfferAnswer::Overloaded
            }
        }
    }

    /// An actor offers a rollout that breaks an invariant: its attempt has failed, which is recorded like any
    /// result.
    pub(crate) fn receive_invalid(&self, invalid: InvalidRollout, actor: &MemberId, permit: ReplyPermit) {
        let InvalidRollout { id, response_tokens, problem } = invalid;
        let offer = Offer { id, bytes: 0, actor: actor.clone(), answer: permit };
        let admission = self.inflight().offer(Instant::now(), offer);
        match admission {
            Admission::Accepted => {
                self.finished(failure(id, FailReason::Invalid, problem, response_tokens));
            }
            Admission::Attached => {}
            Admission::Refused { answer, retry_after } => refuse(id, answer, retry_after),
        }
    }

    /// A rollout has its result.
    pub(crate) fn finished(&self, report: RewardReport) {
        let id = match &report {
            RewardReport::Scored(scored) => {
                metrics::scored();
                scored.rollout().id()
            }
            RewardReport::Failed(failure) => {
                tracing::debug!(id = %failure.id, reason = %failure.reason, detail = failure.detail, "no score");
                metrics::failed(failure.reason, failure.response_tokens);
                failure.id
            }
            RewardReport::Load { .. } => return,
        };
        self.inflight().finished(id, report);
        self.0.unsent.notify_one();
    }

    /// The next result to send, whenever there is one.
    pub(crate) async fn next_unsent(&self) -> RewardReport {
        loop {
            let next = self.inflight().next_unsent();
            match next {
                Some(report) => return report,
                None => self.0.unsent.notified().await,
            }
        }
    }

    /// The coordinator has welcomed us to this run over a new stream; returns how many results are sent
    /// again.
    pub(crate) fn welcomed(&self, run: RunId) -> usize {
        self.0.run.send_replace(Some(run));
        self.inflight().send_again()
    }

    /// The journal has a result: the actors that wait for it are told.
    pub(crate) fn recorded(&self, id: RolloutId) {
        let recorded = self.inflight().recorded(Instant::now(), id);
        if let Some(recorded) = recorded {
            for permit in recorded.answers {
                permit.send(Ok(ScoreReply::Recorded(id)));
            }
            metrics::recorded(recorded.took);
            self.0.left.notify_one();
        }
    }

    /// Waits until the server is to leave and nothing is in work any more.
    pub(crate) async fn drained(&self) {
        self.0.draining.cancelled().await;
        while self.inflight().len() > 0 {
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
            let inflight = self.inflight();
            (inflight.scoring(), inflight.len(), inflight.bytes())
        };
        metrics::queue(scoring, all - scoring, bytes);
        self.0.scorers.observe();
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    fn inflight(&self) -> MutexGuard<'_, Inflight<ReplyPermit>> {
        self.0.inflight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells an actor to come back, or to go elsewhere.
fn refuse(id: RolloutId, permit: ReplyPermit, retry_after: Duration) {
    permit.send(Ok(ScoreReply::Overloaded { id, retry_after }));
}

/// A failure as it is reported.
pub(crate) fn failure(id: RolloutId, reason: FailReason, detail: String, tokens: usize) -> RewardReport {
    let response_tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    RewardReport::Failed(RolloutFailure { id, reason, detail, response_tokens })
}
