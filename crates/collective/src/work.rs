//! An operation under way, and waiting for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tch::{Kind, TchError, Tensor};

use crate::deadline::Deadline;
use crate::diagnosis::{Failure, Note};
use crate::error::{Error, Result};
use crate::ffi::RawWork;
use crate::membership::Inner;
use crate::reduce::Reduce;

/// After how long in an operation a rank first looks after the others; then after twice as long, and so on.
const FIRST_CHECK_DELAY: Duration = Duration::from_millis(250);

/// How long at most between two looks at the connections, and so how long a death may go unnoticed by an
/// operation that is not told of it, or waits for another rank.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// How often a wait that does not notice the end of the group by itself looks for it.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// An operation that was launched and may still be under way.
///
/// Until [`wait`](Work::wait) has returned, leave the tensors of the operation alone: they are being read and
/// written. They may be dropped. A `Work` that is dropped goes on; dropping its group ends it.
#[derive(Debug)]
#[must_use = "the result is there only after `wait`"]
pub struct Work {
    group: Arc<Inner>,
    note: Note,
    pending: Pending,
    finish: Finish,
}

/// Where an operation under way can be waited for.
#[derive(Debug)]
pub(crate) enum Pending {
    /// Nowhere: there was nothing to do.
    Nothing,
    InC10d(RawWork),
}

/// What is left to do on this rank when the data is there.
#[derive(Debug)]
pub(crate) enum Finish {
    Nothing,
    /// Reduce `parts` [world_size, elements], one row from each rank, to `output` [elements].
    Reduce {
        parts: Tensor,
        output: Tensor,
        reduce: Reduce,
    },
}

impl Finish {
    /// The sum goes through the rows in order of rank, in f32 for the half precisions, and is rounded once at
    /// the end.
    fn run(&self) -> std::result::Result<(), TchError> {
        let Self::Reduce { parts, output, reduce } = self else { return Ok(()) };
        let _guard = tch::no_grad_guard();
        let wide = matches!(parts.f_kind()?, Kind::Half | Kind::BFloat16);
        // In place: `parts` is nobody else's.
        let mut reduced = parts.f_get(0)?;
        if wide {
            reduced = reduced.f_to_kind(Kind::Float)?;
        }
        let world_size = parts.size()[0];
        for rank in 1..world_size {
            // Torch widens the second operand to the kind of the first.
            let row = parts.f_get(rank)?;
            reduced = match reduce {
                Reduce::Sum | Reduce::Mean => reduced.f_add_(&row)?,
                Reduce::Max => reduced.f_maximum(&row)?,
                Reduce::Min => reduced.f_minimum(&row)?,
            };
        }
        if *reduce == Reduce::Mean {
            reduced = reduced.f_div_scalar_(world_size)?;
        }
        let mut output = output.f_view([-1])?;
        output.f_copy_(&reduced)
    }
}

impl Work {
    pub(crate) fn new(group: &Arc<Inner>, note: Note, pending: Pending, finish: Finish) -> Self {
        group.under_way.fetch_add(1, Ordering::AcqRel);
        Self { group: Arc::clone(group), note, pending, finish }
    }

    /// Whether the data has come, or the operation has failed. Results are complete only after
    /// [`wait`](Work::wait), which will not block then.
    pub fn is_done(&self) -> bool {
        let over = match &self.pending {
            Pending::Nothing => true,
            Pending::InC10d(work) => work.is_done(),
        };
        over || self.group.ending().is_some()
    }

    /// Blocks until the operation is done: at most `timeout`, and not beyond the group's own deadline, which
    /// runs from when the operation was launched. With NCCL, what the thread launches on its current stream
    /// afterwards sees the result.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Lost`] or [`Error::Aborted`]. Each ends the group; what the tensors that
    /// were to be written hold then is not specified.
    pub fn wait(self, timeout: Duration) -> Result<()> {
        let limit = Deadline::after(timeout.min(self.note.deadline.left()));
        let over = self.wait_until(&limit);
        let finished = over.and_then(|()| {
            self.finish.run().map_err(|error| Failure::Broken(format!("cannot reduce what came: {error}")))
        });
        finished.map_err(|failure| self.group.fail(&self.note, failure))
    }

    /// Waits in slices; between them it looks whether the group has ended, whether the connections are whole,
    /// and whether all ranks do the same.
    fn wait_until(&self, limit: &Deadline) -> std::result::Result<(), Failure> {
        let mut next_check = FIRST_CHECK_DELAY;
        let mut next_comparison = FIRST_CHECK_DELAY;
        loop {
            let until_check = next_check.saturating_sub(self.note.deadline.waited());
            let slice = if self.group.polls { POLL_INTERVAL.min(until_check) } else { until_check };
            if self.is_over(slice.min(limit.left()), limit)? {
                return Ok(());
            }
            if limit.left().is_zero() {
                return Err(Failure::Late);
            }
            if self.group.ending().is_some() {
                return Err(Failure::Ended);
            }
            let waited = self.note.deadline.waited();
            if waited >= next_check {
                next_check = waited + waited.min(CHECK_INTERVAL);
                self.group.raw.check().map_err(|thrown| Failure::Broken(thrown.to_string()))?;
            }
            if waited >= next_comparison {
                next_comparison = 2 * waited;
                if let Some(how) = self.group.disagreement(&self.note) {
                    return Err(Failure::Broken(how));
                }
            }
        }
    }

    /// Whether the operation is done within `slice`.
    fn is_over(&self, slice: Duration, limit: &Deadline) -> std::result::Result<bool, Failure> {
        let Pending::InC10d(work) = &self.pending else { return Ok(true) };
        match self.group.raw.wait(work, slice) {
            // An operation that was aborted looks done to NCCL.
            Ok(done) => Ok(done && (!self.group.polls || self.group.ending().is_none())),
            Err(_) if limit.left().is_zero() => Err(Failure::Late),
            Err(thrown) => Err(Failure::Broken(thrown.to_string())),
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.is_done() {
            self.group.under_way.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Waits for what was launched, as long as the group's deadline allows.
pub(crate) fn complete(started: Result<Work>) -> std::result::Result<(), Error> {
    started?.wait(Duration::MAX)
}
