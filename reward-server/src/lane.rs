//! A bounded queue from the scoring tasks to the workers of one scorer. A worker takes what waits, up to its batch size,
//! so that batches form by themselves under load and cost no waiting without it.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::fault::Fault;
use crate::item::Item;

/// Calls that may wait; a caller beyond waits before the queue.
const CAPACITY: usize = 256;

/// One response to score.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) item: Arc<Item>,
    reply: oneshot::Sender<Result<f64, Fault>>,
}

impl Call {
    /// Whether its caller has given up.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Answers it. A number that is not finite is no score.
    pub(crate) fn answer(self, number: Result<f64, Fault>) {
        let number = number.and_then(|number| match number.is_finite() {
            true => Ok(number),
            false => Err(Fault::error(format!("the score is {number}, must be finite"))),
        });
        // Whoever no longer waits has passed its deadline.
        let _ = self.reply.send(number);
    }
}

/// The callers' end.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    calls: mpsc::Sender<Call>,
}

/// The workers' end.
#[derive(Debug, Clone)]
pub(crate) struct Calls(Arc<Mutex<mpsc::Receiver<Call>>>);

/// A queue.
pub(crate) fn lane() -> (Lane, Calls) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (Lane { calls: sender }, Calls(Arc::new(Mutex::new(receiver))))
}

impl Lane {
    /// The number for `item`, whenever a worker has it.
    pub(crate) async fn ask(&self, item: &Arc<Item>) -> Result<f64, Fault> {
        let ended = || Fault::error("the scorer's workers have ended");
        let (reply, answer) = oneshot::channel();
        self.calls.send(Call { item: Arc::clone(item), reply }).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

impl Calls {
    /// At least one call and at most `most`; none when all callers are gone.
    pub(crate) async fn take(&self, most: usize) -> Vec<Call> {
        let mut taken = Vec::with_capacity(most);
        let mut calls = self.0.lock().await;
        while taken.is_empty() && calls.recv_many(&mut taken, most).await > 0 {
            taken.retain(|call| !call.is_abandoned());
        }
        taken
    }
}
