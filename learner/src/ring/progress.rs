//! Which batch is where on this learner: begun, in the weights, in a checkpoint. Batches come in order,
//! without gaps.

use types::BatchId;
use types::link::learner::{LearnerPhase, MeasuredStep, RecentSteps, StepMetrics};

/// How far training is.
#[derive(Debug)]
pub(crate) struct Progress {
    /// The last batch given to the trainer, in the weights, and in a checkpoint.
    begun: BatchId,
    trained: BatchId,
    checkpointed: BatchId,
    /// What the last steps measured, for a coordinator that has not heard of them.
    steps: RecentSteps,
    /// A checkpoint that is whole and not yet reported.
    to_report: Option<BatchId>,
    phase: LearnerPhase,
}

/// A batch that does not follow the one before.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("batch {found} came, but {expected} is next")]
pub(crate) struct Gap {
    found: BatchId,
    expected: BatchId,
}

impl Progress {
    /// The progress of a trainer whose weights hold `trained`, from a checkpoint or from nothing.
    pub(crate) fn new(trained: BatchId, steps: RecentSteps) -> Self {
        Self {
            begun: trained,
            trained,
            checkpointed: trained,
            steps,
            to_report: None,
            phase: LearnerPhase::Waiting,
        }
    }

    /// The last batch in the weights.
    pub(crate) fn trained(&self) -> BatchId {
        self.trained
    }

    /// The last batch in a checkpoint.
    pub(crate) fn checkpointed(&self) -> BatchId {
        self.checkpointed
    }

    /// What the last steps measured.
    pub(crate) fn steps(&self) -> &RecentSteps {
        &self.steps
    }

    /// What the trainer is doing.
    pub(crate) fn phase(&self) -> LearnerPhase {
        self.phase
    }

    /// Whether the trainer has this batch, or had it.
    pub(crate) fn has_begun(&self, batch: BatchId) -> bool {
        batch <= self.begun
    }

    /// Whether the trainer has no batch.
    pub(crate) fn is_idle(&self) -> bool {
        self.begun == self.trained
    }

    /// Whether everything that was begun is in a checkpoint, and reported.
    pub(crate) fn is_checkpointed(&self) -> bool {
        self.is_idle() && self.checkpointed >= self.trained && self.to_report.is_none()
    }

    /// The trainer is given a batch.
    ///
    /// # Errors
    /// [`Gap`] when it is not the next one.
    pub(crate) fn begin(&mut self, batch: BatchId) -> Result<(), Gap> {
        let expected = self.begun.next();
        if batch != expected {
            return Err(Gap { found: batch, expected });
        }
        self.begun = batch;
        self.phase = LearnerPhase::Training;
        Ok(())
    }

    /// A batch is part of the weights.
    pub(crate) fn trained_batch(&mut self, batch: BatchId, metrics: StepMetrics) {
        self.trained = batch;
        self.steps.push(MeasuredStep { batch, metrics });
        self.end_phase();
    }

    /// A checkpoint is being written, beside the next step where there is one.
    pub(crate) fn begin_checkpoint(&mut self) {
        if self.is_idle() {
            self.phase = LearnerPhase::Checkpointing;
        }
    }

    /// A checkpoint could not be written; it is tried again.
    pub(crate) fn put_off_checkpoint(&mut self) {
        self.end_phase();
    }

    /// A checkpoint that holds `batch` is whole.
    pub(crate) fn wrote_checkpoint(&mut self, batch: BatchId) {
        self.checkpointed = batch;
        self.to_report = Some(batch);
        self.end_phase();
    }

    /// The checkpoint to report now, if there is one and the batches up to `described`, which have been
    /// reported, hold all of it: the publisher may still be describing the newest weights.
    pub(crate) fn take_checkpoint_to_report(&mut self, described: BatchId) -> Option<BatchId> {
        self.to_report.take_if(|batch| *batch <= described)
    }

    fn end_phase(&mut self) {
        self.phase = if self.is_idle() { LearnerPhase::Waiting } else { LearnerPhase::Training };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress::new(BatchId(3), RecentSteps::default())
    }

    #[test]
    fn batches_come_in_order_without_gaps() {
        let mut progress = progress();
        assert!(progress.has_begun(BatchId(3)) && !progress.has_begun(BatchId(4)));
        let gap = progress.begin(BatchId(5)).unwrap_err();
        assert_eq!(gap.to_string(), "batch b5 came, but b4 is next");
        progress.begin(BatchId(4)).unwrap();
        progress.begin(BatchId(5)).unwrap();
        assert!(progress.has_begun(BatchId(5)) && !progress.is_idle());
    }

    #[test]
    fn the_phase_is_what_the_trainer_does() {
        let mut progress = progress();
        assert_eq!(progress.phase(), LearnerPhase::Waiting);
        progress.begin(BatchId(4)).unwrap();
        progress.begin(BatchId(5)).unwrap();
        progress.trained_batch(BatchId(4), StepMetrics::default());
        assert_eq!(progress.phase(), LearnerPhase::Training);
        progress.begin_checkpoint();
        assert_eq!(progress.phase(), LearnerPhase::Training, "it is written beside the next step");
        progress.trained_batch(BatchId(5), StepMetrics::default());
        assert_eq!(progress.phase(), LearnerPhase::Waiting);
        progress.wrote_checkpoint(BatchId(4));
        progress.begin_checkpoint();
        assert_eq!(progress.phase(), LearnerPhase::Checkpointing);
        progress.wrote_checkpoint(BatchId(5));
        assert_eq!(progress.phase(), LearnerPhase::Waiting);
    }

    #[test]
    fn a_checkpoint_is_reported_after_the_batches_in_it_and_once() {
        let mut progress = progress();
        assert!(progress.is_checkpointed());
        progress.begin(BatchId(4)).unwrap();
        progress.trained_batch(BatchId(4), StepMetrics::default());
        assert!(!progress.is_checkpointed());
        progress.wrote_checkpoint(BatchId(4));
        assert_eq!(progress.take_checkpoint_to_report(BatchId(3)), None);
        assert!(!progress.is_checkpointed(), "it is not reported");
        assert_eq!(progress.take_checkpoint_to_report(BatchId(4)), Some(BatchId(4)));
        assert_eq!(progress.take_checkpoint_to_report(BatchId(4)), None);
        assert!(progress.is_checkpointed());
    }
}
