//! Groups: the responses of one prompt, from issue until the last one has ended.
//!
//! A group is open while a response is awaited. A place in the group (a slot) is `Waiting -> Issued ->
//! Scored`, or back to `Waiting` under the next attempt, or `Failed` for good. When no slot waits or is
//! issued any more the group is complete, and leaves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use types::{FailReason, LeaseId, PromptId, RolloutId};

use super::event::ScoreSummary;

/// All open groups.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Groups {
    open: BTreeMap<PromptId, Group>,
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

/// One group of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasedGroup {
    /// The prompt.
    pub prompt: PromptId,
    /// The attempts wanted.
    pub wanted: Vec<RolloutId>,
}

/// An attempt has ended, scored or failed.
pub(super) struct EndedAttempt {
    /// The lease that it was issued under.
    pub(super) lease: LeaseId,
    /// Its group, where it was the last response awaited.
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
    /// The attempt that is issued and has not ended, or is scored.
    fn attempt_in_flight(&self) -> Option<u16> {
        match self {
            Self::Issued(attempt, _) => Some(*attempt),
            Self::Scored(summary) => Some(summary.id.attempt),
            Self::Waiting(_) | Self::Failed => None,
        }
    }

    fn is_awaited(&self) -> bool {
        matches!(self, Self::Waiting(_) | Self::Issued(..))
    }
}

impl Group {
    fn siblings(&self) -> impl Iterator<Item = (u16, &Slot)> {
        (0u16..).zip(&self.slots)
    }

    fn into_complete(self, prompt: PromptId) -> CompleteGroup {
        let scored = self.slots.into_iter().filter_map(|slot| match slot {
            Slot::Scored(summary) => Some(summary),
            Slot::Waiting(_) | Slot::Issued(..) | Slot::Failed => None,
        });
        CompleteGroup { prompt, scored: scored.collect() }
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

    /// Attempts issued and not ended, or scored in an open group.
    pub(super) fn in_flight(&self) -> u64 {
        let slots = self.open.values().flat_map(|group| &group.slots);
        slots.filter(|slot| slot.attempt_in_flight().is_some()).count() as u64
    }

    /// Whether a response of this prompt waits to be issued.
    pub(super) fn is_waiting(&self, prompt: PromptId) -> bool {
        let group = self.open.get(&prompt);
        group.is_some_and(|group| group.slots.iter().any(|slot| matches!(slot, Slot::Waiting(_))))
    }

    /// Issues what waits of these prompts as part of a lease.
    pub(super) fn issue(&mut self, prompts: &[PromptId], lease: LeaseId) -> Vec<LeasedGroup> {
        let mut leased = Vec::with_capacity(prompts.len());
        for prompt in prompts.iter().copied() {
            let mut wanted = Vec::new();
            let slots = self.open.get_mut(&prompt).map(|group| group.slots.as_mut_slice());
            for (sibling, slot) in (0u16..).zip(slots.unwrap_or_default()) {
                if let Slot::Waiting(attempt) = *slot {
                    *slot = Slot::Issued(attempt, lease);
                    wanted.push(RolloutId { prompt, sibling, attempt });
                }
            }
            leased.push(LeasedGroup { prompt, wanted });
        }
        leased
    }

    /// The attempts of a prompt that a lease awaits.
    pub(super) fn awaited_under(&self, prompt: PromptId, lease: LeaseId) -> Vec<RolloutId> {
        let siblings = self.open.get(&prompt).into_iter().flat_map(Group::siblings);
        siblings
            .filter_map(|(sibling, slot)| match *slot {
                Slot::Issued(attempt, under) if under == lease => {
                    Some(RolloutId { prompt, sibling, attempt })
                }
                _ => None,
            })
            .collect()
    }

    /// A response came back scored. None when the attempt is not awaited.
    pub(super) fn score(&mut self, summary: ScoreSummary) -> Option<EndedAttempt> {
        self.end(summary.id, Slot::Scored(summary))
    }

    /// An attempt failed; unless it was the last that `max_attempts` allows, its slot waits to be issued
    /// again. None when the attempt is not awaited.
    pub(super) fn fail(
        &mut self,
        id: RolloutId,
        reason: FailReason,
        max_attempts: u16,
    ) -> Option<EndedAttempt> {
        // What only says something about the actor does not use up the prompt's attempts.
        let actors_fault = matches!(reason, FailReason::ActorLost | FailReason::Returned);
        let again = reason.is_retriable() && (actors_fault || id.attempt + 1 < max_attempts);
        let slot = match id.attempt.checked_add(1) {
            Some(attempt) if again => Slot::Waiting(attempt),
            _ => Slot::Failed,
        };
        self.end(id, slot)
    }

    fn end(&mut self, id: RolloutId, becomes: Slot) -> Option<EndedAttempt> {
        let group = self.open.get_mut(&id.prompt)?;
        let slot = group.slots.get_mut(usize::from(id.sibling))?;
        let lease = match *slot {
            Slot::Issued(attempt, lease) if attempt == id.attempt => lease,
            _ => return None,
        };
        *slot = becomes;
        let awaited = group.slots.iter().any(Slot::is_awaited);
        let complete = if awaited { None } else { self.open.remove(&id.prompt) };
        Some(EndedAttempt { lease, complete: complete.map(|group| group.into_complete(id.prompt)) })
    }

    /// Closes every group; yields the attempts that were in flight.
    pub(super) fn close_all(&mut self) -> Vec<RolloutId> {
        let mut in_flight = Vec::new();
        for (prompt, group) in std::mem::take(&mut self.open) {
            let attempts = group.siblings().filter_map(|(sibling, slot)| {
                Some(RolloutId { prompt, sibling, attempt: slot.attempt_in_flight()? })
            });
            in_flight.extend(attempts);
        }
        in_flight
    }
}
