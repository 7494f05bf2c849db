//! A bounded queue from the scoring tasks to the workers of one scorer. A worker takes what waits, up to its
//! batch size, so that batches form by themselves under load and cost no waiting without it.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::score_error::ScoreError;
use crate::scorer_input::ScorerInput;

/// Calls that may wait; a caller beyond waits before the queue.
const QUEUE_CAPACITY: usize = 256;

/// One response to score.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) input: Arc<ScorerInput>,
    reply: oneshot::Sender<Result<f64, ScoreError>>,
}

impl Call {
    /// Whether its caller has given up.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Answers it. A number that is not finite is no score.
    pub(crate) fn answer(self, number: Result<f64, ScoreError>) {
        let number = match number {
            Ok(number) if !number.is_finite() => {
                Err(ScoreError::error(format!("the score is {number}, must be finite")))
            }
            other => other,
        };
        // A caller that does not wait any more has given up at its deadline.
        let _ = self.reply.send(number);
    }
}

/// The callers' end of the queue.
#[derive(Debug, Clone)]
pub(crate) struct BatchQueue {
    calls: mpsc::Sender<Call>,
}

/// The workers' end of the queue. A cheap clone.
#[derive(Debug, Clone)]
pub(crate) struct BatchReceiver(Arc<Mutex<mpsc::Receiver<Call>>>);

/// An empty queue.
pub(crate) fn batch_queue() -> (BatchQueue, BatchReceiver) {
    let (sender, receiver) = mpsc::channel(QUEUE_CAPACITY);
    (BatchQueue { calls: sender }, BatchReceiver(Arc::new(Mutex::new(receiver))))
}

impl BatchQueue {
    /// The number for `input`, whenever a worker has it.
    ///
    /// # Errors
    /// The worker's own, and where all workers have ended.
    pub(crate) async fn score(&self, input: &Arc<ScorerInput>) -> Result<f64, ScoreError> {
        let (reply, answer) = oneshot::channel();
        let call = Call { input: Arc::clone(input), reply };
        if self.calls.send(call).await.is_err() {
            return Err(workers_ended());
        }
        answer.await.unwrap_or_else(|_| Err(workers_ended()))
    }
}

fn workers_ended() -> ScoreError {
    ScoreError::error("the scorer's workers have ended")
}

impl BatchReceiver {
    /// At least one call and at most `max_calls`; none when all callers are gone.
    pub(crate) async fn take(&self, max_calls: usize) -> Vec<Call> {
        let mut taken = Vec::with_capacity(max_calls);
        let mut calls = self.0.lock().await;
        while taken.is_empty() && calls.recv_many(&mut taken, max_calls).await > 0 {
            taken.retain(|call| !call.is_abandoned());
        }
        taken
    }
}
