//! What the filtration kept of a batch, and of the newest ones.

use std::collections::BTreeMap;

use algo::r2::{CalibrationBin, Estimate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::batches::BatchPlan;
use super::filter::PlannedGroup;

/// Ranks that are told apart; of larger groups several ranks count as one, the same number each.
const RANKS_LIMIT: usize = 32;

/// What the filtration kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Selection {
    /// Responses that train.
    pub kept: u64,
    /// Their share among the scored responses of all groups that were complete, those included of which
    /// nothing trains.
    pub kept_fraction: f64,
    /// `(Σ w)² / Σ w²` over the weights of those that train: how many they are where all weigh the same,
    /// fewer where some weigh more.
    pub effective_samples: f64,
    /// How many of them have which rank in their group, by score, 1 the best. Equal scores share their
    /// ranks: each counts for all of them in parts. Of groups larger than 32, 32 classes of ranks.
    #[schemars(with = "BTreeMap<String, f64>")]
    pub kept_by_rank: BTreeMap<usize, f64>,
}

/// What the filtration did, and how far what it goes by can be trusted. Outcomes are those of the hidden
/// tests; where prompts have none, what follows from them is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct FiltrationFigures {
    /// The strategy in force when the step was made.
    pub strategy: String,
    /// Under `auto`, why it stays or which one follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// Of this batch.
    pub batch: Selection,
    /// Of this batch and those before it, as many as `filtration.window_batches` says.
    pub window: Selection,
    /// By strategy, how much of the outcome the score explains among the responses that it would train on:
    /// R² with its 95 % interval over prompts and its ceiling, over the groups of the window in which each
    /// response has an outcome (256 groups and 2048 responses at most).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub r_squared: BTreeMap<String, Estimate>,
    /// Mean outcome by score over all responses of those groups, in at most ten bins of about equal count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub calibration: Vec<CalibrationBin>,
}

/// Sums over the samples of some batches.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SelectionSums {
    /// Scored responses of all groups.
    responses: u64,
    kept: u64,
    weight: f64,
    weight_squares: f64,
    kept_by_rank: BTreeMap<usize, f64>,
}

impl SelectionSums {
    pub(super) fn of(batch: &BatchPlan) -> Self {
        let mut sums = Self { responses: batch.sums.score.count, ..Self::default() };
        for group in &batch.groups {
            for class in 1..=group.scores.len().min(RANKS_LIMIT) {
                sums.kept_by_rank.entry(class).or_default();
            }
        }
        for sample in batch.samples.iter().filter(|sample| sample.trains()) {
            let weight = f64::from(sample.weight);
            sums.kept += 1;
            sums.weight += weight;
            sums.weight_squares += weight * weight;
            let group = batch.groups.binary_search_by_key(&sample.id.prompt, |group| group.prompt);
            if let Ok(group) = group.map(|at| &batch.groups[at]) {
                sums.rank(group, sample.id.sibling);
            }
        }
        sums
    }

    /// A sibling trains: counts its rank.
    fn rank(&mut self, group: &PlannedGroup, sibling: u16) {
        let Some(own) = group.scores.iter().find(|score| score.sibling == sibling) else { return };
        let better = group.scores.iter().filter(|other| other.score > own.score).count();
        let equal = group.scores.iter().filter(|other| other.score == own.score).count();
        let classes = group.scores.len().min(RANKS_LIMIT);
        for rank in better..better + equal {
            let class = rank * classes / group.scores.len() + 1;
            *self.kept_by_rank.entry(class).or_default() += 1.0 / equal as f64;
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.responses += other.responses;
        self.kept += other.kept;
        self.weight += other.weight;
        self.weight_squares += other.weight_squares;
        for (rank, kept) in &other.kept_by_rank {
            *self.kept_by_rank.entry(*rank).or_default() += kept;
        }
    }

    pub(super) fn selection(&self) -> Selection {
        let effective = self.weight * self.weight / self.weight_squares;
        Selection {
            kept: self.kept,
            kept_fraction: self.kept as f64 / self.responses.max(1) as f64,
            effective_samples: if effective.is_finite() { effective } else { 0.0 },
            kept_by_rank: self.kept_by_rank.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use types::{BatchId, GroupScore, PromptId, RolloutId};

    use super::*;
    use crate::state::moments::Moments;
    use crate::state::{GroupSums, PlannedSample};

    fn batch(scores: &[f32], weights: &[f32], responses: u64) -> BatchPlan {
        let prompt = PromptId { epoch: 0, ordinal: 3 };
        let scored = scores.iter().zip(0..).map(|(score, sibling)| GroupScore {
            sibling,
            score: *score,
            tokens: 3,
            truncated: false,
        });
        let samples = weights.iter().zip(0..).map(|(weight, sibling)| PlannedSample {
            id: RolloutId { prompt, sibling, attempt: 0 },
            weight: *weight,
        });
        let score = Moments::of(vec![0.5; usize::try_from(responses).unwrap()]);
        BatchPlan {
            id: BatchId(1),
            samples: samples.collect(),
            groups: vec![PlannedGroup { prompt, scores: scored.collect() }],
            prompts: 1,
            sums: GroupSums { score, ..GroupSums::default() },
            refill: crate::state::Refill::default(),
        }
    }

    #[test]
    fn best_and_worst_of_five_are_ranks_one_and_five() {
        let best_worst = batch(&[0.1, 0.9, -0.7, 0.4, -0.2], &[0.0, 1.0, 1.0, 0.0, 0.0], 10);
        let selection = SelectionSums::of(&best_worst).selection();
        assert_eq!((selection.kept, selection.kept_fraction, selection.effective_samples), (2, 0.2, 2.0));
        assert_eq!(selection.kept_by_rank, [(1, 1.0), (2, 0.0), (3, 0.0), (4, 0.0), (5, 1.0)].into());
    }

    #[test]
    fn equal_scores_share_their_ranks_and_weights_make_fewer_samples_of_many() {
        let tied = batch(&[1.0, 0.0, 1.0, 0.0], &[3.0, 1.0, 0.0, 0.0], 4);
        let mut sums = SelectionSums::of(&tied);
        let selection = sums.selection();
        assert_eq!(selection.effective_samples, 16.0 / 10.0);
        assert_eq!(selection.kept_by_rank, [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5)].into());
        sums.merge(&SelectionSums::of(&tied));
        assert_eq!(sums.selection().kept, 4);
        assert_eq!(sums.selection().kept_fraction, 0.5);
    }

    #[test]
    fn large_groups_have_classes_of_ranks_and_nothing_is_no_division_by_zero() {
        let scores: Vec<f32> = (0..64u8).map(f32::from).collect();
        let sums = SelectionSums::of(&batch(&scores, &[1.0; 64], 64));
        assert_eq!(sums.selection().kept_by_rank.len(), RANKS_LIMIT);
        assert!(sums.selection().kept_by_rank.values().all(|kept| *kept == 2.0));
        assert_eq!(SelectionSums::default().selection(), Selection::default());
    }
}
