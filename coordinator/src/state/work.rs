//! Work in flight: from a prompt of the queue, through the lease and the group that it is generated under, to
//! a complete group.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use types::{Ending, FailReason, LeaseId, MemberId, PolicyVersion, PromptId, RolloutId, Timestamp};

use super::batches::{Awaited, Batches};
use super::evaluations::Evaluations;
use super::fact::{LeaseBounds, ScoreSummary};
use super::groups::{Change, CompleteGroup, Groups};
use super::leases::{Grant, Leases};
use super::plan::RunPlan;
use super::prompt_queue::{PromptCounts, PromptQueue};

/// Prompts that are queued, leased, or have a response awaited.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Work {
    pub(super) leases: Leases,
    groups: Groups,
    queue: PromptQueue,
    /// What is asked and not learnt from.
    #[serde(default)]
    pub(super) evaluations: Evaluations,
}

/// What followed from the results of some attempts.
#[derive(Default)]
pub(super) struct Progressed {
    /// Attempts that were awaited.
    pub(super) taken: u64,
    /// How attempts have ended; a scored one has not.
    pub(super) endings: Vec<Ending>,
    /// Groups that await nothing any more.
    pub(super) complete: Vec<CompleteGroup>,
    /// The same of held-out prompts.
    pub(super) evaluated: Vec<CompleteGroup>,
    /// Holders of leases that are over.
    pub(super) freed: Vec<MemberId>,
}

impl Work {
    /// Prompts with a response awaited.
    pub(super) fn open_prompts(&self) -> u64 {
        self.groups.open_count()
    }

    /// Attempts issued and not ended, or scored in an open group.
    pub(super) fn in_flight(&self) -> u64 {
        self.groups.in_flight() + self.evaluations.in_flight()
    }

    /// What a batch may have to wait for.
    pub(super) fn awaited(&self, now: Timestamp) -> Awaited<'_> {
        Awaited { now, groups: &self.groups }
    }

    /// How many more prompts an actor at `version` may begin.
    pub(super) fn capacity(&self, plan: &RunPlan, batches: &Batches, version: PolicyVersion) -> u64 {
        let counts = PromptCounts {
            trained: batches.trained().0 * plan.batch_prompts,
            open: self.groups.open_count(),
            complete: batches.untrained_prompts(plan),
        };
        counts.capacity(plan, version)
    }

    /// Whether an actor with this version, which may begin so many prompts, can be given a lease.
    pub(super) fn has_work(&self, plan: &RunPlan, version: PolicyVersion, capacity: u64) -> bool {
        let may_begin = !plan.deterministic || self.groups.open_count() == 0;
        self.queue.has_waiting_for(plan, &self.groups, version) || (may_begin && capacity > 0)
    }

    /// Leases an actor what it has room for; nothing when there is nothing that it may begin.
    pub(super) fn lease(
        &mut self,
        now: Timestamp,
        plan: &RunPlan,
        member: &MemberId,
        bounds: LeaseBounds,
    ) -> Option<Grant> {
        let prompts = if bounds.held_out {
            self.evaluations.next_lease(plan, bounds)
        } else {
            let next = self.queue.next_lease(plan, &self.groups, bounds);
            for prompt in next.opened {
                self.groups.open(prompt, plan.group_size, bounds.version);
            }
            next.prompts
        };
        let first = *prompts.first()?;
        let id = self.leases.next_id();
        let groups = self.groups_with(first).issue(&prompts, id);
        let grant = Grant { id, groups, timeout: plan.lease_timeout };
        self.leases.hold(now, member.clone(), &grant);
        Some(grant)
    }

    /// A response came back scored.
    pub(super) fn score(&mut self, plan: &RunPlan, summary: ScoreSummary) -> Progressed {
        let mut progressed = Progressed::default();
        let prompt = summary.id.prompt;
        let change = self.groups_with(prompt).score(summary);
        self.take(plan, change, &mut progressed);
        progressed
    }

    /// An attempt has failed: its prompt waits for an actor again, unless it is given up.
    pub(super) fn fail(&mut self, plan: &RunPlan, id: RolloutId, reason: FailReason) -> Progressed {
        let mut progressed = Progressed::default();
        let change = self.groups_with(id.prompt).fail(id, reason, plan.max_attempts);
        self.put_back(plan, id.prompt);
        self.take(plan, change, &mut progressed);
        progressed
    }

    /// Attempts have lapsed: their prompts wait for an actor again.
    pub(super) fn lapse(&mut self, plan: &RunPlan, ids: &[RolloutId], reason: FailReason) -> Progressed {
        let mut progressed = Progressed::default();
        for id in ids {
            let change = self.groups_with(id.prompt).lapse(*id, reason, plan.max_attempts);
            self.put_back(plan, id.prompt);
            self.take(plan, change, &mut progressed);
        }
        progressed
    }

    fn take(&mut self, plan: &RunPlan, change: Option<Change>, progressed: &mut Progressed) {
        let Some(Change { lease, endings, came_late, complete }) = change else {
            return;
        };
        progressed.taken += 1;
        progressed.endings.extend(endings);
        if let Some(group) = complete {
            let is_held_out = group.prompt.held_out_place().is_some();
            if is_held_out { &mut progressed.evaluated } else { &mut progressed.complete }.push(group);
        }
        if let Some(ended) = lease.and_then(|lease| self.leases.attempt_ended(lease)) {
            if ended.prompts.iter().all(|prompt| prompt.held_out_place().is_none()) {
                self.queue.put_back_lease(plan, &self.groups, ended.prompts);
            }
            progressed.freed.push(ended.actor);
        }
        if came_late {
            self.queue.drop_complete(&self.groups);
            self.evaluations.drop_complete();
        }
    }

    /// The groups that this prompt's is among.
    fn groups_of(&self, prompt: PromptId) -> &Groups {
        if prompt.held_out_place().is_some() { self.evaluations.groups() } else { &self.groups }
    }

    /// The same, to be changed.
    fn groups_with(&mut self, prompt: PromptId) -> &mut Groups {
        if prompt.held_out_place().is_some() { self.evaluations.groups_mut() } else { &mut self.groups }
    }

    /// A prompt with waiting responses waits for an actor again.
    fn put_back(&mut self, plan: &RunPlan, prompt: PromptId) {
        if prompt.held_out_place().is_some() {
            self.evaluations.put_back(prompt);
        } else {
            self.queue.put_back(plan, &self.groups, prompt);
        }
    }

    /// What an actor was to generate, but for the attempts that it is `holding` still.
    pub(super) fn awaited_of(&self, actor: &MemberId, holding: &[RolloutId]) -> Vec<RolloutId> {
        let holding: BTreeSet<&RolloutId> = holding.iter().collect();
        let awaited = self.leases.of_actor(actor).flat_map(|lease| self.awaited_under(lease));
        awaited.filter(|id| !holding.contains(id)).collect()
    }

    /// What a lease still awaits.
    pub(super) fn awaited_under(&self, lease: LeaseId) -> Vec<RolloutId> {
        let prompts = self.leases.prompts(lease).iter();
        prompts.flat_map(|prompt| self.groups_of(*prompt).awaited_under(*prompt, lease)).collect()
    }

    /// A group is complete.
    pub(super) fn observe(&mut self, plan: &RunPlan, group: &CompleteGroup) {
        self.queue.observe(plan, group);
    }

    /// Ends all work because the run is over; yields the attempts that were in flight.
    pub(super) fn stop(&mut self) -> Vec<RolloutId> {
        self.leases.clear();
        self.queue.clear();
        let mut in_flight = self.groups.close_all();
        in_flight.extend(self.evaluations.stop());
        in_flight
    }
}
