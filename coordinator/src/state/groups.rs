//! Groups: the responses of one prompt, from issue to filtration.
//!
//! A group is open while a response is awaited. When the last one is settled the group is filtered, and what the
//! filtration keeps is ready for a batch. A place in the group (a slot) is `Waiting -> Issued -> Scored`, or back to
//! `Waiting` under the next attempt, or `Failed` for good.

use std::collections::{BTreeMap, VecDeque};

use algo::filtration::{Candidate, Group as Candidates, GroupDecision, filter_group};
use serde::{Deserialize, Serialize};
use types::{DropReason, Ending, FailReason, FilterReason, LeaseId, PolicyVersion, PromptId, RolloutId};

use super::batches::PlannedSample;
use super::event::ScoreSummary;
use super::{Effect, State};

/// All groups that are not part of a batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Groups {
    /// Groups with a response awaited.
    open: BTreeMap<PromptId, Group>,
    /// Groups that wait for their batch, in the order of completion.
    pub(super) ready: VecDeque<ReadyGroup>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Group {
    /// By sibling.
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Slot {
    /// To be issued under this attempt.
    Waiting(u16),
    /// Issued under this attempt as part of a lease.
    Issued(u16, LeaseId),
    /// Scored.
    Scored(ScoreSummary),
    /// Given up.
    Failed,
}

/// What the filtration kept of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ReadyGroup {
    pub(super) prompt: PromptId,
    pub(super) samples: Vec<PlannedSample>,
    /// The oldest version that drew a token of a kept response.
    pub(super) oldest: PolicyVersion,
    pub(super) sums: GroupSums,
}

/// Sums over all scored responses of some groups, filtered ones included: what the unfiltered policy does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupSums {
    /// Scored responses.
    pub responses: u64,
    /// Their scores.
    pub score: f64,
    /// Those that carry an outcome.
    pub with_outcome: u64,
    /// Their outcomes.
    pub outcome: f64,
    /// Response tokens.
    pub tokens: u64,
    /// Responses cut off by the length limit.
    pub truncated: u64,
}

impl GroupSums {
    fn add(&mut self, scored: &ScoreSummary) {
        self.responses += 1;
        self.score += f64::from(scored.score);
        self.tokens += u64::from(scored.tokens);
        self.truncated += u64::from(scored.truncated);
        if let Some(outcome) = scored.outcome {
            self.with_outcome += 1;
            self.outcome += f64::from(outcome);
        }
    }

    /// Adds the sums of other groups.
    pub fn merge(&mut self, other: &Self) {
        self.responses += other.responses;
        self.score += other.score;
        self.with_outcome += other.with_outcome;
        self.outcome += other.outcome;
        self.tokens += other.tokens;
        self.truncated += other.truncated;
    }
}

impl Group {
    fn is_settled(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot, Slot::Scored(_) | Slot::Failed))
    }

    fn scored(&self) -> impl Iterator<Item = &ScoreSummary> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Scored(summary) => Some(summary),
            Slot::Waiting(_) | Slot::Issued(..) | Slot::Failed => None,
        })
    }
}

impl Groups {
    /// Opens a group whose responses all wait to be issued.
    pub(super) fn open(&mut self, prompt: PromptId, size: u16) {
        self.open.insert(prompt, Group { slots: vec![Slot::Waiting(0); usize::from(size)] });
    }

    /// Groups with a response awaited.
    pub(super) fn open_count(&self) -> u64 {
        self.open.len() as u64
    }

    /// Attempts issued and not ended: awaited, scored in an open group, or kept and not yet in a batch.
    pub(super) fn in_flight(&self) -> u64 {
        let alive = |slot: &&Slot| matches!(slot, Slot::Issued(..) | Slot::Scored(_));
        let open: usize = self.open.values().map(|group| group.slots.iter().filter(alive).count()).sum();
        let ready = self.ready.iter().flat_map(|group| &group.samples).filter(|sample| sample.weight > 0.0);
        (open + ready.count()) as u64
    }

    /// Whether a response of this prompt waits to be issued.
    pub(super) fn is_waiting(&self, prompt: PromptId) -> bool {
        let waiting = |group: &Group| group.slots.iter().any(|slot| matches!(slot, Slot::Waiting(_)));
        self.open.get(&prompt).is_some_and(waiting)
    }

    /// Issues what waits of this prompt as part of a lease.
    pub(super) fn issue(&mut self, prompt: PromptId, lease: LeaseId) -> Vec<RolloutId> {
        let Some(group) = self.open.get_mut(&prompt) else {
            return Vec::new();
        };
        let mut issued = Vec::new();
        for (sibling, slot) in (0u16..).zip(&mut group.slots) {
            if let Slot::Waiting(attempt) = *slot {
                *slot = Slot::Issued(attempt, lease);
                issued.push(RolloutId { prompt, sibling, attempt });
            }
        }
        issued
    }

    /// The attempts of a prompt that a lease awaits.
    pub(super) fn issued_under(&self, prompt: PromptId, lease: LeaseId) -> Vec<RolloutId> {
        let slots = self.open.get(&prompt).map(|group| group.slots.as_slice()).unwrap_or_default();
        let issued = (0u16..).zip(slots).filter_map(|(sibling, slot)| match slot {
            Slot::Issued(attempt, under) if *under == lease => {
                Some(RolloutId { prompt, sibling, attempt: *attempt })
            }
            _ => None,
        });
        issued.collect()
    }

    /// The slot that awaits exactly this attempt, and its lease.
    fn awaiting(&mut self, id: RolloutId) -> Option<(&mut Slot, LeaseId)> {
        let slot = self.open.get_mut(&id.prompt)?.slots.get_mut(usize::from(id.sibling))?;
        match *slot {
            Slot::Issued(attempt, lease) if attempt == id.attempt => Some((slot, lease)),
            _ => None,
        }
    }
}

impl State {
    /// A response came back scored.
    pub(super) fn scored(&mut self, summary: ScoreSummary, effects: &mut Vec<Effect>) {
        let id = summary.id;
        let Some((slot, lease)) = self.groups.awaiting(id) else {
            self.account.late();
            return;
        };
        *slot = Slot::Scored(summary);
        effects.push(Effect::Keep(id));
        self.complete_if_settled(id.prompt, effects);
        self.release(lease);
    }

    /// An attempt brought no scored response.
    pub(super) fn attempt_failed(&mut self, id: RolloutId, reason: FailReason, effects: &mut Vec<Effect>) {
        let max_attempts = self.plan.max_attempts;
        let Some((slot, lease)) = self.groups.awaiting(id) else {
            self.account.late();
            return;
        };
        // What only says something about the actor does not use up the prompt's attempts.
        let actors_fault = matches!(reason, FailReason::ActorLost | FailReason::Returned);
        let again = reason.is_retriable() && (actors_fault || id.attempt + 1 < max_attempts);
        *slot = match id.attempt.checked_add(1) {
            Some(attempt) if again => Slot::Waiting(attempt),
            _ => Slot::Failed,
        };
        self.account.end(Ending::Failed(reason));
        self.complete_if_settled(id.prompt, effects);
        self.requeue(id.prompt);
        self.release(lease);
    }

    fn complete_if_settled(&mut self, prompt: PromptId, effects: &mut Vec<Effect>) {
        if self.groups.open.get(&prompt).is_some_and(Group::is_settled)
            && let Some(group) = self.groups.open.remove(&prompt)
        {
            self.filter(prompt, &group, effects);
        }
    }

    /// Filters a group whose responses are all settled (PF-PPO, arXiv 2409.06957, section 4).
    fn filter(&mut self, prompt: PromptId, group: &Group, effects: &mut Vec<Effect>) {
        let scored: Vec<&ScoreSummary> = group.scored().collect();
        if scored.len() < usize::from(self.plan.min_group) {
            self.end_all(&scored, Ending::Dropped(DropReason::GroupIncomplete), effects);
            return;
        }
        self.record.observe_group(&scored);
        let names: Vec<String> = scored.iter().map(|summary| summary.id.sibling.to_string()).collect();
        let candidate = |(summary, name)| {
            let summary: &&ScoreSummary = summary;
            let name: &String = name;
            Candidate { rollout_id: name, score: f64::from(summary.score) }
        };
        let candidates: Vec<Candidate<'_>> = scored.iter().zip(&names).map(candidate).collect();
        let prompt_name = prompt.to_string();
        let candidates = Candidates { prompt_id: &prompt_name, rollouts: &candidates };
        let decision = filter_group(&self.plan.filtration, self.plan.seed, &candidates)
            .expect("the plan was validated, scores are finite and siblings differ");
        match decision {
            GroupDecision::NoSignal => {
                self.end_all(&scored, Ending::Filtered(FilterReason::NoSignal), effects);
            }
            GroupDecision::Choices(choices) => {
                let weights: Vec<f32> = choices.iter().map(|choice| choice.weight as f32).collect();
                self.keep(prompt, &scored, &weights, effects);
            }
        }
    }

    fn keep(
        &mut self,
        prompt: PromptId,
        scored: &[&ScoreSummary],
        weights: &[f32],
        effects: &mut Vec<Effect>,
    ) {
        let mut sums = GroupSums::default();
        scored.iter().for_each(|summary| sums.add(summary));
        let (mut samples, mut filtered) = (Vec::new(), Vec::new());
        for (summary, weight) in scored.iter().zip(weights) {
            if *weight > 0.0 || self.plan.send_filtered {
                samples.push(PlannedSample { id: summary.id, weight: *weight });
            }
            if *weight <= 0.0 {
                filtered.push(*summary);
            }
        }
        for summary in &filtered {
            self.account.end(Ending::Filtered(FilterReason::Strategy));
            if !self.plan.send_filtered {
                effects.push(Effect::Forget(vec![summary.id]));
            }
        }
        let kept = scored.iter().zip(weights).filter(|(_, weight)| **weight > 0.0);
        match kept.map(|(summary, _)| summary.oldest).min() {
            Some(oldest) => self.groups.ready.push_back(ReadyGroup { prompt, samples, oldest, sums }),
            None => effects.push(Effect::Forget(samples.iter().map(|sample| sample.id).collect())),
        }
    }

    /// Ends all these responses alike and forgets their tokens.
    fn end_all(&mut self, scored: &[&ScoreSummary], ending: Ending, effects: &mut Vec<Effect>) {
        for _ in scored {
            self.account.end(ending);
        }
        effects.push(Effect::Forget(scored.iter().map(|summary| summary.id).collect()));
    }

    /// Drops a ready group.
    pub(super) fn drop_ready(&mut self, group: &ReadyGroup, reason: DropReason) -> Vec<RolloutId> {
        for sample in &group.samples {
            if sample.weight > 0.0 {
                self.account.end(Ending::Dropped(reason));
            }
        }
        group.samples.iter().map(|sample| sample.id).collect()
    }

    /// Ends everything that is still in flight because the run is over; yields whose tokens can be forgotten.
    pub(super) fn drop_everything_in_flight(&mut self) -> Vec<RolloutId> {
        let mut forgotten = Vec::new();
        for (prompt, group) in std::mem::take(&mut self.groups.open) {
            for (sibling, slot) in (0u16..).zip(group.slots) {
                let attempt = match slot {
                    Slot::Issued(attempt, _) => attempt,
                    Slot::Scored(summary) => summary.id.attempt,
                    Slot::Waiting(_) | Slot::Failed => continue,
                };
                self.account.end(Ending::Dropped(DropReason::RunFinished));
                forgotten.push(RolloutId { prompt, sibling, attempt });
            }
        }
        for group in std::mem::take(&mut self.groups.ready) {
            forgotten.extend(self.drop_ready(&group, DropReason::RunFinished));
        }
        self.leases.clear();
        self.frontier.clear_queue();
        forgotten
    }
}
