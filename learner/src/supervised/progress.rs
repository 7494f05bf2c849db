//! Where training stands, told to the caller while the ranks train on other threads.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;

use serde::Serialize;

use crate::config::ExecutionConfig;
use crate::error::{Error, Result};
use crate::ranks::Ranks;
use crate::threads::{on_ranks, share_processors};

/// Progress that may wait for whoever listens.
const PROGRESS_CAPACITY: usize = 64;

/// Where training stands after an optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps in all.
    pub steps: u64,
    /// The pass over the data, from 1.
    pub epoch: usize,
    /// Loss of this step's minibatch.
    pub loss: f64,
    /// Share of its pairs (or labelled responses) on the right side, for objectives that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean of how far the right side is ahead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Mean reward of chosen responses of pairs: their scores, or their log-ratios to the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_chosen: Option<f64>,
    /// The same of rejected ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_rejected: Option<f64>,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Tokens a second since training began.
    pub tokens_per_second: f64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}, loss {:.4}", self.epoch, self.loss)?;
        if let Some(accuracy) = self.accuracy {
            write!(f, ", accuracy {:.1} %", 100.0 * accuracy)?;
        }
        if let Some(margin) = self.margin {
            write!(f, ", margin {margin:.3}")?;
        }
        write!(f, ", lr {:.1e}, {:.0} tokens/s", self.lr, self.tokens_per_second)
    }
}

/// What training tells its progress to, which says whether to go on; only rank 0 is heard.
pub(crate) type ProgressSink<'a> = &'a dyn Fn(Progress) -> ControlFlow<()>;

/// Who is told of the progress, and says whether to go on.
pub(crate) type ProgressListener<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// Runs `work` on the ranks that the configuration asks for and returns what rank 0 came to, passing its
/// progress on to this thread.
///
/// # Errors
/// The error of the rank that failed first.
pub(crate) fn on_ranks_with_progress<T: Send>(
    execution: &ExecutionConfig,
    progress: ProgressListener<'_>,
    work: impl Fn(&Ranks, ProgressSink<'_>) -> Result<T> + Sync,
) -> Result<T> {
    share_processors(execution.ranks, execution.threads);
    let (sender, receiver) = sync_channel(PROGRESS_CAPACITY);
    let work = &work;
    let is_told_to_stop = &AtomicBool::new(false);
    let results = thread::scope(|scope| {
        let training = scope.spawn(move || {
            on_ranks(execution.ranks, execution.device, |group| {
                let ranks = Ranks::of(group);
                let is_first = ranks.rank() == 0;
                work(&ranks, &|progress| {
                    if is_first {
                        // Nobody listening is no reason not to train.
                        let _ = sender.send(progress);
                    }
                    if is_told_to_stop.load(Ordering::Relaxed) {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })
            })
        });
        for step in receiver {
            if progress(step).is_break() {
                is_told_to_stop.store(true, Ordering::Relaxed);
            }
        }
        training.join().unwrap_or_else(|_| {
            Err(Error::Panicked { rank: 0, reason: "its message is on stderr".to_owned() })
        })
    })?;
    Ok(results.into_iter().next().expect("one result for each of at least one rank"))
}
