//! What streams and observers say to the server loop, and the way there.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use types::ScoredRollout;

use crate::sessions::{Outbox, SessionId};
use crate::stall::Stall;
use crate::state::{Event, StepRecord};
use crate::status::Status;

/// Inputs that may wait.
const INBOX_CAPACITY: usize = 1024;

/// Something for the loop to take in.
#[derive(Debug)]
pub(crate) enum Input {
    /// A member introduced itself on a new stream.
    Joined { session: SessionId, outbox: Outbox, event: Event },
    /// Something came on a member's stream.
    Report(Box<Report>),
    /// A member's stream ended, for a reason that the member is told where there is one.
    Closed { session: SessionId, event: Event, refused: Option<String> },
    /// Somebody asked the run to stop.
    Drain,
    /// Somebody asks how things are, now.
    Status(oneshot::Sender<Arc<Status>>),
    /// Somebody asks who waits for whom.
    Stall(oneshot::Sender<Stall>),
}

/// Something that came on a member's stream.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) session: SessionId,
    pub(crate) event: Event,
    /// The tokens, where the event is a score.
    pub(crate) scored: Option<ScoredRollout>,
    /// What is wrong with what the member said, where the event stands instead of that.
    pub(crate) rejected: Option<String>,
}

/// The way to the loop.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    inbox: mpsc::Sender<Input>,
    steps: RecentSteps,
}

/// The last steps, as the loop publishes them.
pub(crate) type RecentSteps = watch::Receiver<Arc<Vec<Arc<StepRecord>>>>;

/// A way to the loop that publishes these steps, and the loop's end of it.
pub(crate) fn inbox(steps: RecentSteps) -> (Handle, mpsc::Receiver<Input>) {
    let (sender, inbox) = mpsc::channel(INBOX_CAPACITY);
    (Handle { inbox: sender, steps }, inbox)
}

impl Handle {
    /// Puts an input into the inbox, waiting for room.
    ///
    /// # Errors
    /// When the loop has ended.
    pub(crate) async fn send(&self, input: Input) -> Result<(), LoopEnded> {
        self.inbox.send(input).await.map_err(|_| LoopEnded)
    }

    /// How things are.
    ///
    /// # Errors
    /// When the loop has ended.
    pub(crate) async fn status(&self) -> Result<Arc<Status>, LoopEnded> {
        let (reply, status) = oneshot::channel();
        self.send(Input::Status(reply)).await?;
        status.await.map_err(|_| LoopEnded)
    }

    /// The last steps, oldest first.
    pub(crate) fn steps(&self) -> Arc<Vec<Arc<StepRecord>>> {
        Arc::clone(&self.steps.borrow())
    }

    /// Who waits for whom.
    ///
    /// # Errors
    /// When the loop has ended.
    pub(crate) async fn stall(&self) -> Result<Stall, LoopEnded> {
        let (reply, stall) = oneshot::channel();
        self.send(Input::Stall(reply)).await?;
        stall.await.map_err(|_| LoopEnded)
    }
}

/// The loop has ended: the run is over or failed.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator is shutting down")]
pub(crate) struct LoopEnded;
