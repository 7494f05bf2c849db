//! The filtration of a complete group (PF-PPO, arXiv 2409.06957, section 4), and what it keeps for a batch.

use algo::filtration::{Candidate, Group, GroupDecision, filter_group};
use serde::{Deserialize, Serialize};
use types::{DropReason, Ending, FilterReason, GroupScore, PolicyVersion, PromptId, RolloutId};

use super::fact::ScoreSummary;
use super::groups::CompleteGroup;
use super::plan::RunPlan;
use super::sums::GroupSums;

/// A response that a batch trains, and with which weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PlannedSample {
    /// The response.
    pub id: RolloutId,
    /// Its weight in the policy loss; 0 for one that only the critic or the whitening sees.
    pub weight: f32,
}

impl PlannedSample {
    /// Whether the policy trains on it: only then is it still in flight.
    pub(super) fn trains(&self) -> bool {
        self.weight > 0.0
    }
}

/// The scores of all responses to a prompt of a batch: what baselines are taken over, whatever was kept
/// (`docs/decisions.md`, D19).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedGroup {
    /// The prompt.
    pub prompt: PromptId,
    /// In the order of siblings.
    pub scores: Vec<GroupScore>,
}

impl PlannedGroup {
    fn of(group: &CompleteGroup) -> Self {
        let mut scores = Vec::with_capacity(group.scored.len());
        for ScoreSummary { id, score, tokens, truncated, .. } in &group.scored {
            let (score, tokens, truncated) = (*score, *tokens, *truncated);
            scores.push(GroupScore { sibling: id.sibling, score, tokens, truncated });
        }
        Self { prompt: group.prompt, scores }
    }
}

/// What the filtration kept of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ReadyGroup {
    pub(super) group: PlannedGroup,
    pub(super) samples: Vec<PlannedSample>,
    /// The oldest version that drew a token of a kept response.
    pub(super) oldest: PolicyVersion,
    pub(super) sums: GroupSums,
}

impl ReadyGroup {
    /// Responses that the policy would train on.
    pub(super) fn in_flight(&self) -> u64 {
        self.samples.iter().filter(|sample| sample.trains()).count() as u64
    }

    /// Every response whose tokens are kept for it.
    pub(super) fn responses(&self) -> impl Iterator<Item = RolloutId> {
        self.samples.iter().map(|sample| sample.id)
    }
}

/// What became of a complete group.
#[derive(Debug, PartialEq)]
pub(super) struct Filtered {
    /// What waits for a batch, if anything trains.
    pub(super) ready: Option<ReadyGroup>,
    /// What the unfiltered policy did, where nothing trains.
    pub(super) unselected: GroupSums,
    /// How those responses ended that do not train.
    pub(super) ending: Ending,
    /// How many they are.
    pub(super) ended: u64,
    /// Responses whose tokens are needed no more.
    pub(super) forgotten: Vec<RolloutId>,
}

impl Filtered {
    /// Chooses the responses of a group that train.
    pub(super) fn of(plan: &RunPlan, group: &CompleteGroup) -> Self {
        if !group.has_enough(plan.min_group) {
            return Self::nothing_kept(group, Ending::Dropped(DropReason::GroupIncomplete));
        }
        match decide(plan, group) {
            GroupDecision::NoSignal => {
                let mut nothing = Self::nothing_kept(group, Ending::Filtered(FilterReason::NoSignal));
                nothing.unselected.groups_without_signal = 1;
                nothing
            }
            GroupDecision::Choices(choices) => {
                let weights: Vec<f32> = choices.iter().map(|choice| choice.weight as f32).collect();
                Self::by_weight(plan, group, &weights)
            }
        }
    }

    /// The weight with which a response of it trains; 0 where it does not.
    pub(super) fn weight(&self, id: RolloutId) -> f32 {
        let Some(ReadyGroup { samples, .. }) = &self.ready else { return 0.0 };
        // They are in the order of siblings, as the responses that they were chosen from.
        samples.binary_search_by_key(&id, |sample| sample.id).map_or(0.0, |at| samples[at].weight)
    }

    fn nothing_kept(group: &CompleteGroup, ending: Ending) -> Self {
        let forgotten = group.responses();
        let unselected = GroupSums::of(&group.scored);
        Self { ready: None, unselected, ending, ended: forgotten.len() as u64, forgotten }
    }

    /// Splits a group; `weights` is one for each scored response, in order.
    fn by_weight(plan: &RunPlan, group: &CompleteGroup, weights: &[f32]) -> Self {
        let (mut samples, mut forgotten) = (Vec::new(), Vec::new());
        let mut ended = 0;
        let mut oldest: Option<PolicyVersion> = None;
        for (summary, weight) in group.scored.iter().zip(weights) {
            let sample = PlannedSample { id: summary.id, weight: *weight };
            if sample.trains() {
                oldest = oldest.into_iter().chain([summary.oldest]).min();
            } else {
                ended += 1;
            }
            if sample.trains() || plan.send_filtered {
                samples.push(sample);
            } else {
                forgotten.push(summary.id);
            }
        }
        let ending = Ending::Filtered(FilterReason::Strategy);
        let Some(oldest) = oldest else {
            return Self::nothing_kept(group, ending);
        };
        let sums = GroupSums::of(&group.scored);
        let ready = Some(ReadyGroup { group: PlannedGroup::of(group), samples, oldest, sums });
        Self { ready, unselected: GroupSums::default(), ending, ended, forgotten }
    }
}

fn decide(plan: &RunPlan, group: &CompleteGroup) -> GroupDecision {
    let names: Vec<String> = group.scored.iter().map(|summary| summary.id.sibling.to_string()).collect();
    let mut candidates = Vec::with_capacity(names.len());
    for (summary, name) in group.scored.iter().zip(&names) {
        candidates.push(Candidate { rollout_id: name, score: f64::from(summary.score) });
    }
    let group = Group { prompt_id: &group.prompt.to_string(), rollouts: &candidates };
    filter_group(&plan.filtration, plan.seed, &group)
        .expect("the plan was validated, scores are finite and siblings differ")
}
