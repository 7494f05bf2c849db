//! The turns of the samples of a batch, and what each brought of the score (`docs/decisions.md`, D24).

use algo::Turns;
use types::Sample;

use crate::error::FormulaResult;

/// The turns of all samples, one sample after the other.
#[derive(Debug, Default)]
pub(crate) struct SampleTurns {
    /// `[turns]` response tokens.
    lengths: Vec<usize>,
    /// By sample: its turns.
    counts: Vec<usize>,
    /// `[turns]` parts of the scores as they were given; of each sample's last turn the rest is meant,
    /// penalties and clip included.
    scores: Vec<f32>,
}

impl SampleTurns {
    /// The turns of some samples.
    pub(crate) fn of(samples: &[&Sample]) -> Self {
        let mut turns = Self::default();
        for sample in samples {
            let before = turns.lengths.len();
            turns.lengths.extend(sample.rollout().turn_lengths());
            turns.counts.push(turns.lengths.len() - before);
            turns.scores.extend(sample.scored().turn_scores());
        }
        turns
    }

    /// For formulas.
    pub(crate) fn turns(&self) -> FormulaResult<Turns<'_>> {
        Turns::new(&self.lengths, &self.counts)
    }

    /// `[turns]` what each brought; of the last of each sample not read.
    pub(crate) fn scores(&self) -> &[f32] {
        &self.scores
    }
}
