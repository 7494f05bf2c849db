//! Groups: the responses of one prompt, from issue until the last one has ended.
//!
//! A group is open while a response is awaited. A place in the group (a slot) is `Waiting -> Issued ->
//! Scored`, or back to `Waiting` under the next attempt, or `Failed` for good. When no slot waits or is
//! issued any more the group is complete, and leaves.
//!
//! An attempt whose actor is lost or whose lease ran out has lapsed: it is issued anew, but its response may
//! come all the same while the group is open, and is then as good as any. It has no ending until its slot is
//! filled or the group is complete.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use types::{DropReason, Ending, FailReason, LeaseId, PolicyVersion, PromptId, RolloutId};

use super::fact::ScoreSummary;

/// Lapsed attempts of one slot that are remembered; the oldest ends when there are more.
const LAPSED_LIMIT: usize = 4;

/// All open groups.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Groups {
    open: BTreeMap<PromptId, Group>,
    /// How many of them were begun with which version. A journal of before knows it of none.
    #[serde(default)]
    begun: BTreeMap<PolicyVersion, u64>,
    /// Attempts issued that have not ended.
    in_flight: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Group {
    /// No response of it is of an older version.
    #[serde(default)]
    begun: PolicyVersion,
    /// By sibling.
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Slot {
    stage: Stage,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lapsed: Vec<Lapsed>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    /// To be issued under this attempt.
    Waiting(u16),
    /// Issued under this attempt as part of a lease.
    Issued(u16, LeaseId),
    /// Scored.
    Scored(ScoreSummary),
    /// Given up.
    Failed,
}

/// An attempt that was issued anew, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lapsed {
    attempt: u16,
    reason: FailReason,
}

/// One group of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasedGroup {
    /// The prompt.
    pub prompt: PromptId,
    /// The attempts wanted.
    pub wanted: Vec<RolloutId>,
}

/// What a result or a failure has changed.
#[derive(Default)]
pub(super) struct Change {
    /// The lease that awaits one attempt less.
    pub(super) lease: Option<LeaseId>,
    /// How attempts have ended.
    pub(super) endings: Vec<Ending>,
    /// A response came that was to be repeated.
    pub(super) came_late: bool,
    /// The group, where no response of it is awaited any more.
    pub(super) complete: Option<CompleteGroup>,
}

/// The scored responses of a group in which none is awaited any more, in the order of siblings.
pub(super) struct CompleteGroup {
    pub(super) prompt: PromptId,
    pub(super) scored: Vec<ScoreSummary>,
}

impl CompleteGroup {
    /// Whether enough responses were scored for a choice among them.
    pub(super) fn has_enough(&self, min_group: u16) -> bool {
        self.scored.len() >= usize::from(min_group)
    }

    /// The scored responses.
    pub(super) fn responses(&self) -> Vec<RolloutId> {
        self.scored.iter().map(|summary| summary.id).collect()
    }
}

impl Slot {
    /// The attempts that have been issued and have not ended, or are scored.
    fn attempts_in_flight(&self) -> impl Iterator<Item = u16> {
        let current = match &self.stage {
            Stage::Issued(attempt, _) => Some(*attempt),
            Stage::Scored(summary) => Some(summary.id.attempt),
            Stage::Waiting(_) | Stage::Failed => None,
        };
        self.lapsed.iter().map(|lapsed| lapsed.attempt).chain(current)
    }

    fn is_awaited(&self) -> bool {
        matches!(self.stage, Stage::Waiting(_) | Stage::Issued(..))
    }

    /// Takes a lapsed attempt out.
    fn take_lapsed(&mut self, attempt: u16) -> Option<Lapsed> {
        let place = self.lapsed.iter().position(|lapsed| lapsed.attempt == attempt)?;
        Some(self.lapsed.remove(place))
    }

    /// Lapsed attempts end: nobody waits for them any more.
    fn end_lapsed(&mut self) -> impl Iterator<Item = Ending> {
        self.lapsed.drain(..).map(|lapsed| Ending::Failed(lapsed.reason))
    }

    /// What the slot becomes after an attempt that brought nothing.
    fn after(&self, id: RolloutId, reason: FailReason, max_attempts: u16) -> Stage {
        // What only says something about the actor does not use up the prompt's attempts.
        let actors_fault = matches!(reason, FailReason::ActorLost | FailReason::Returned);
        let again = reason.is_retriable() && (actors_fault || id.attempt + 1 < max_attempts);
        match id.attempt.checked_add(1) {
            Some(attempt) if again => Stage::Waiting(attempt),
            _ => Stage::Failed,
        }
    }
}

impl Groups {
    /// Opens a group whose responses all wait to be issued.
    pub(super) fn open(&mut self, prompt: PromptId, size: u16, begun: PolicyVersion) {
        let slot = Slot { stage: Stage::Waiting(0), lapsed: Vec::new() };
        self.open.insert(prompt, Group { begun, slots: vec![slot; usize::from(size)] });
        *self.begun.entry(begun).or_default() += 1;
    }

    /// The versions that open groups were begun with, from this one on, and how many groups that were.
    pub(super) fn begun_from(&self, version: PolicyVersion) -> impl Iterator<Item = (PolicyVersion, u64)> {
        self.begun.range(version..).map(|(version, groups)| (*version, *groups))
    }

    /// Whether an actor with this version may take part in a group: what it generates must not be older than
    /// what the group was admitted for. A group that is closed has nothing left to take part in.
    pub(super) fn takes(&self, prompt: PromptId, version: PolicyVersion) -> bool {
        self.open.get(&prompt).is_none_or(|group| group.begun <= version)
    }

    /// Groups with a response awaited.
    pub(super) fn open_count(&self) -> u64 {
        self.open.len() as u64
    }

    /// Attempts issued and not ended, or scored in an open group.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Whether a response of this prompt waits to be issued.
    pub(super) fn is_waiting(&self, prompt: PromptId) -> bool {
        let group = self.open.get(&prompt);
        group.is_some_and(|group| group.slots.iter().any(|slot| matches!(slot.stage, Stage::Waiting(_))))
    }

    /// Issues what waits of these prompts under a lease.
    pub(super) fn issue(&mut self, prompts: &[PromptId], lease: LeaseId) -> Vec<LeasedGroup> {
        let mut leased = Vec::with_capacity(prompts.len());
        for prompt in prompts.iter().copied() {
            let mut wanted = Vec::new();
            let slots = self.open.get_mut(&prompt).map(|group| group.slots.as_mut_slice());
            for (sibling, slot) in (0u16..).zip(slots.unwrap_or_default()) {
                if let Stage::Waiting(attempt) = slot.stage {
                    slot.stage = Stage::Issued(attempt, lease);
                    wanted.push(RolloutId { prompt, sibling, attempt });
                }
            }
            self.in_flight += wanted.len() as u64;
            leased.push(LeasedGroup { prompt, wanted });
        }
        leased
    }

    /// The attempts of a prompt that a lease awaits.
    pub(super) fn awaited_under(&self, prompt: PromptId, lease: LeaseId) -> Vec<RolloutId> {
        let slots = self.open.get(&prompt).map(|group| group.slots.as_slice()).unwrap_or_default();
        let siblings = (0u16..).zip(slots);
        siblings
            .filter_map(|(sibling, slot)| match slot.stage {
                Stage::Issued(attempt, under) if under == lease => {
                    Some(RolloutId { prompt, sibling, attempt })
                }
                _ => None,
            })
            .collect()
    }

    /// A response came back scored. None when the attempt is not awaited.
    pub(super) fn score(&mut self, summary: ScoreSummary) -> Option<Change> {
        let id = summary.id;
        let slot = self.slot(id)?;
        let mut change = Change::default();
        match slot.stage {
            Stage::Issued(attempt, lease) if attempt == id.attempt => change.lease = Some(lease),
            Stage::Scored(_) => return None,
            _ => {
                slot.take_lapsed(id.attempt)?;
                change.came_late = true;
                if let Stage::Issued(_, lease) = slot.stage {
                    change.lease = Some(lease);
                    change.endings.push(Ending::Dropped(DropReason::Superseded));
                }
            }
        }
        slot.stage = Stage::Scored(summary);
        change.endings.extend(slot.end_lapsed());
        Some(self.complete(id, change))
    }

    /// An attempt has failed for good; unless it was the last that `max_attempts` allows, its slot waits to
    /// be issued again. None when the attempt is not awaited.
    pub(super) fn fail(&mut self, id: RolloutId, reason: FailReason, max_attempts: u16) -> Option<Change> {
        let slot = self.slot(id)?;
        let mut change = Change { endings: vec![Ending::Failed(reason)], ..Change::default() };
        match slot.stage {
            Stage::Issued(attempt, lease) if attempt == id.attempt => {
                change.lease = Some(lease);
                slot.stage = slot.after(id, reason, max_attempts);
            }
            _ => drop(slot.take_lapsed(id.attempt)?),
        }
        Some(self.complete(id, change))
    }

    /// An attempt has lapsed: its slot waits to be issued again. None when the attempt is not awaited.
    pub(super) fn lapse(&mut self, id: RolloutId, reason: FailReason, max_attempts: u16) -> Option<Change> {
        let slot = self.slot(id)?;
        let Stage::Issued(_, lease) = slot.stage else { return None };
        if slot.stage != Stage::Issued(id.attempt, lease) {
            return None;
        }
        let mut change = Change { lease: Some(lease), ..Change::default() };
        slot.stage = slot.after(id, reason, max_attempts);
        slot.lapsed.push(Lapsed { attempt: id.attempt, reason });
        if slot.lapsed.len() > LAPSED_LIMIT {
            change.endings.push(Ending::Failed(slot.lapsed.remove(0).reason));
        }
        Some(self.complete(id, change))
    }

    fn slot(&mut self, id: RolloutId) -> Option<&mut Slot> {
        self.open.get_mut(&id.prompt)?.slots.get_mut(usize::from(id.sibling))
    }

    /// Closes the group of a changed slot when nothing is awaited of it any more, and counts what has ended.
    fn complete(&mut self, id: RolloutId, mut change: Change) -> Change {
        let awaited = self.open.get(&id.prompt).is_some_and(|group| group.slots.iter().any(Slot::is_awaited));
        if !awaited && let Some(group) = self.open.remove(&id.prompt) {
            if let Some(count) = self.begun.get_mut(&group.begun) {
                *count -= 1;
                if *count == 0 {
                    self.begun.remove(&group.begun);
                }
            }
            let mut scored = Vec::new();
            for mut slot in group.slots {
                change.endings.extend(slot.end_lapsed());
                if let Stage::Scored(summary) = slot.stage {
                    scored.push(summary);
                }
            }
            self.in_flight -= scored.len() as u64;
            change.complete = Some(CompleteGroup { prompt: id.prompt, scored });
        }
        self.in_flight -= change.endings.len() as u64;
        change
    }

    /// Closes every group; yields the attempts that were in flight.
    pub(super) fn close_all(&mut self) -> Vec<RolloutId> {
        let mut in_flight = Vec::new();
        self.begun.clear();
        for (prompt, group) in std::mem::take(&mut self.open) {
            for (sibling, slot) in (0u16..).zip(&group.slots) {
                let attempts = slot.attempts_in_flight();
                in_flight.extend(attempts.map(|attempt| RolloutId { prompt, sibling, attempt }));
            }
        }
        self.in_flight = 0;
        in_flight
    }
}
