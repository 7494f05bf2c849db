//! The filtration of a complete group (PF-PPO, arXiv 2409.06957, section 4), and what it keeps for a batch.

use algo::filtration::{Candidate, Choice, Filtration, Group, GroupDecision, filter_buffer, filter_group};
use serde::{Deserialize, Serialize};
use types::{BatchId, DropReason, Ending, FilterReason, GroupScore, PolicyVersion, PromptId, RolloutId};

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
    /// Where its batch as a whole decides what trains of it: until then every response is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    undecided: Option<Undecided>,
}

/// What a batch has to know of a group to decide on it together with others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Undecided {
    /// In force when the group was complete.
    filtration: Filtration,
    /// In the order of siblings.
    scored: Vec<ScoreSummary>,
}

/// What a batch as a whole has decided on one of its groups.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) prompt: PromptId,
    /// In the order of siblings.
    pub(super) scored: Vec<ScoreSummary>,
    /// One for each of them.
    pub(super) weights: Vec<f32>,
    /// How many do not train.
    pub(super) ended: u64,
    /// Responses whose tokens are needed no more.
    pub(super) forgotten: Vec<RolloutId>,
}

impl ReadyGroup {
    /// Responses that the policy would train on.
    pub(super) fn in_flight(&self) -> u64 {
        self.samples.iter().filter(|sample| sample.trains()).count() as u64
    }

    /// Whether its batch decides what trains of it.
    pub(super) fn is_undecided(&self) -> bool {
        self.undecided.is_some()
    }

    /// Its batch will not decide on it: nothing of it trains.
    pub(super) fn give_up(&mut self) -> Option<Decided> {
        let Undecided { scored, .. } = self.undecided.take()?;
        let (weights, ended) = (vec![0.0; scored.len()], scored.len() as u64);
        Some(Decided { prompt: self.group.prompt, scored, weights, ended, forgotten: Vec::new() })
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
    /// Chooses the responses of a group that train, by the filtration in force.
    pub(super) fn of(plan: &RunPlan, filtration: &Filtration, group: &CompleteGroup) -> Self {
        if !group.has_enough(plan.min_group) {
            return Self::nothing_kept(group, Ending::Dropped(DropReason::GroupIncomplete));
        }
        match decide(plan.seed, filtration, group) {
            GroupDecision::NoSignal => {
                let mut nothing = Self::nothing_kept(group, Ending::Filtered(FilterReason::NoSignal));
                nothing.unselected.groups_without_signal = 1;
                nothing
            }
            GroupDecision::Choices(choices) => {
                let weights = weights(&choices);
                let something_trains = weights.iter().any(|weight| *weight > 0.0);
                if filtration.is_buffer_wide() && something_trains {
                    return Self::until_the_batch_decides(plan, filtration, group);
                }
                Self::by_weight(plan, group, &weights)
            }
        }
    }

    /// Keeps the whole group until its batch is formed.
    fn until_the_batch_decides(plan: &RunPlan, filtration: &Filtration, group: &CompleteGroup) -> Self {
        let mut filtered = Self::by_weight(plan, group, &vec![1.0; group.scored.len()]);
        if let Some(ready) = &mut filtered.ready {
            ready.undecided = Some(Undecided { filtration: *filtration, scored: group.scored.clone() });
        }
        filtered
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
        let group = PlannedGroup::of(group);
        let ready = Some(ReadyGroup { group, samples, oldest, sums, undecided: None });
        Self { ready, unselected: GroupSums::default(), ending, ended, forgotten }
    }
}

/// Decides on the groups of a batch that wait for it, those together that have one filtration.
pub(super) fn decide_together(plan: &RunPlan, batch: BatchId, groups: &mut [ReadyGroup]) -> Vec<Decided> {
    let mut waiting: Vec<(usize, Undecided)> = Vec::new();
    for (at, group) in groups.iter_mut().enumerate() {
        waiting.extend(group.undecided.take().map(|undecided| (at, undecided)));
    }
    let mut decided = Vec::with_capacity(waiting.len());
    while let Some(filtration) = waiting.first().map(|(_, undecided)| undecided.filtration) {
        let buffer = waiting.extract_if(.., |(_, undecided)| undecided.filtration == filtration);
        let (places, buffer): (Vec<usize>, Vec<Undecided>) = buffer.unzip();
        let all = buffer_weights(plan.seed, &filtration, batch, &buffer);
        for ((place, Undecided { scored, .. }), weights) in places.into_iter().zip(buffer).zip(all) {
            decided.push(groups[place].decide(plan, scored, weights));
        }
    }
    decided
}

impl ReadyGroup {
    /// Its batch has decided on it.
    fn decide(&mut self, plan: &RunPlan, scored: Vec<ScoreSummary>, weights: Vec<f32>) -> Decided {
        let prompt = self.group.prompt;
        let (mut ended, mut forgotten) = (0, Vec::new());
        self.samples.clear();
        for (summary, weight) in scored.iter().zip(&weights) {
            let sample = PlannedSample { id: summary.id, weight: *weight };
            ended += u64::from(!sample.trains());
            if sample.trains() || plan.send_filtered {
                self.samples.push(sample);
            } else {
                forgotten.push(summary.id);
            }
        }
        Decided { prompt, scored, weights, ended, forgotten }
    }
}

fn weights(choices: &[Choice]) -> Vec<f32> {
    choices.iter().map(|choice| choice.weight as f32).collect()
}

/// The ids and scores of a group, as the filtration takes them.
struct Named<'a> {
    prompt: String,
    siblings: Vec<String>,
    scored: &'a [ScoreSummary],
}

impl<'a> Named<'a> {
    fn of(prompt: PromptId, scored: &'a [ScoreSummary]) -> Self {
        let siblings = scored.iter().map(|summary| summary.id.sibling.to_string()).collect();
        Self { prompt: prompt.to_string(), siblings, scored }
    }

    fn candidates(&self) -> Vec<Candidate<'_>> {
        let mut candidates = Vec::with_capacity(self.siblings.len());
        for (summary, name) in self.scored.iter().zip(&self.siblings) {
            candidates.push(Candidate { rollout_id: name, score: f64::from(summary.score) });
        }
        candidates
    }
}

fn decide(seed: u64, filtration: &Filtration, group: &CompleteGroup) -> GroupDecision {
    let named = Named::of(group.prompt, &group.scored);
    let group = Group { prompt_id: &named.prompt, rollouts: &named.candidates() };
    filter_group(filtration, seed, &group)
        .expect("the plan was validated, scores are finite and siblings differ")
}

/// The weights of all responses of a buffer, group by group.
fn buffer_weights(seed: u64, filtration: &Filtration, batch: BatchId, buffer: &[Undecided]) -> Vec<Vec<f32>> {
    let mut named = Vec::with_capacity(buffer.len());
    for undecided in buffer {
        let prompt = undecided.scored.first().map(|summary| summary.id.prompt);
        named.extend(prompt.map(|prompt| Named::of(prompt, &undecided.scored)));
    }
    let candidates: Vec<Vec<Candidate<'_>>> = named.iter().map(Named::candidates).collect();
    let groups = named.iter().zip(&candidates);
    let groups: Vec<Group<'_>> =
        groups.map(|(named, rollouts)| Group { prompt_id: &named.prompt, rollouts }).collect();
    let decisions = filter_buffer(filtration, seed, &batch.to_string(), &groups)
        .expect("the plan was validated, scores are finite and siblings differ");
    let mut all = Vec::with_capacity(decisions.len());
    for (decision, group) in decisions.iter().zip(&groups) {
        all.push(match decision {
            GroupDecision::Choices(choices) => weights(choices),
            GroupDecision::NoSignal => vec![0.0; group.rollouts.len()],
        });
    }
    all
}
