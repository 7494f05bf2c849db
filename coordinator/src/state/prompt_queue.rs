//! The queue of prompts to lease, the place in the data set from which it is filled, and the bound on work in
//! flight.
//!
//! The bound is AReaL's (arXiv 2505.24298, equation 3) with the version of the *actor* that would do the
//! work: while it holds version `v`, at most `(eta + v + 1) * B` prompts may have been accepted or be in
//! flight since the run began. What an actor at `v` generates is then trained at version `v + eta` at the
//! latest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use algo::vade::Posteriors;
use serde::{Deserialize, Serialize};
use types::{PolicyVersion, PromptId};

use super::fact::LeaseBounds;
use super::groups::{CompleteGroup, Groups};
use super::mixture::{Mixture, SetPlan};
use super::pass_rates::{PassRates, right_of};
use super::plan::RunPlan;
use super::schedule::Order;

/// Prompts that a curriculum passes over for one that it begins, at most.
const PASSED_LIMIT: u64 = 4096;

/// The next new prompt, and prompts that are open and wait for an actor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct PromptQueue {
    mixture: Mixture,
    /// Under a curriculum, how often responses to a prompt were right.
    #[serde(default)]
    pass_rates: PassRates,
    /// Open groups to lease: one prompt an entry, or all of a lease in deterministic mode.
    waiting: VecDeque<Vec<PromptId>>,
    /// Outside deterministic mode, the prompts in `waiting`: each is there once.
    queued: BTreeSet<PromptId>,
    /// Under VADE, what is known of each prompt.
    posteriors: Posteriors,
    /// Under VADE, prompts that are selected and not begun.
    selected: VecDeque<u64>,
    /// Under VADE, how often a prompt was begun: its next group is of the epoch of that number.
    begun: BTreeMap<u64, u32>,
}

/// Prompts by how far they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct PromptCounts {
    /// Trained.
    pub(super) trained: u64,
    /// A response is awaited.
    pub(super) open: u64,
    /// All responses have ended; not yet trained.
    pub(super) complete: u64,
}

impl PromptCounts {
    /// How many more prompts an actor at `version` may begin.
    pub(super) fn capacity(self, plan: &RunPlan, version: PolicyVersion) -> u64 {
        let accepted = self.trained + self.open + self.complete;
        let by_staleness = plan
            .max_staleness
            .saturating_add(version.0 + 1)
            .saturating_mul(plan.batch_prompts)
            .saturating_sub(accepted);
        let by_run = (plan.batches * plan.batch_prompts).saturating_sub(accepted);
        let by_concurrency = plan.max_prompts_in_flight.saturating_sub(self.open);
        by_staleness.min(by_run).min(by_concurrency)
    }
}

/// The prompts of the next lease.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct NextLease {
    /// What the lease holds; empty when there is nothing to lease.
    pub(super) prompts: Vec<PromptId>,
    /// Prompts that begin now; in deterministic mode they may go to later leases as well.
    pub(super) opened: Vec<PromptId>,
}

impl PromptQueue {
    /// Puts a prompt with waiting responses in the queue, outside deterministic mode.
    pub(super) fn put_back(&mut self, plan: &RunPlan, groups: &Groups, prompt: PromptId) {
        if !plan.deterministic && groups.is_waiting(prompt) && self.queued.insert(prompt) {
            self.waiting.push_back(vec![prompt]);
        }
    }

    /// In deterministic mode, puts the prompts of a lease that is over in the queue as they were, if a
    /// response of theirs is to be repeated.
    pub(super) fn put_back_lease(&mut self, plan: &RunPlan, groups: &Groups, prompts: Vec<PromptId>) {
        if plan.deterministic && prompts.iter().any(|prompt| groups.is_waiting(*prompt)) {
            self.waiting.push_back(prompts);
        }
    }

    /// A response that was to be repeated has come after all: what is complete with it is not leased again.
    pub(super) fn drop_complete(&mut self, groups: &Groups) {
        let Self { waiting, queued, .. } = self;
        waiting.retain(|prompts| prompts.iter().any(|prompt| groups.is_waiting(*prompt)));
        queued.retain(|prompt| groups.is_waiting(*prompt));
    }

    /// Whether open groups wait for an actor, and one with this version may take the first of them.
    pub(super) fn has_waiting_for(&self, plan: &RunPlan, groups: &Groups, version: PolicyVersion) -> bool {
        let first = self.waiting.front().and_then(|queued| queued.first());
        first.is_some_and(|prompt| plan.deterministic || groups.takes(*prompt, version))
    }

    /// Forgets what waits for an actor.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.queued.clear();
    }

    /// Takes the prompts of the next lease.
    pub(super) fn next_lease(&mut self, plan: &RunPlan, groups: &Groups, bounds: LeaseBounds) -> NextLease {
        if plan.deterministic {
            self.next_whole_lease(plan, groups, bounds.capacity)
        } else {
            self.next_prompts(plan, groups, bounds)
        }
    }

    fn next_prompts(&mut self, plan: &RunPlan, groups: &Groups, bounds: LeaseBounds) -> NextLease {
        let mut lease = NextLease::default();
        while (lease.prompts.len() as u64) < bounds.room.min(plan.lease_prompts) {
            let waits = self.has_waiting_for(plan, groups, bounds.version);
            let queued = if waits { self.waiting.pop_front() } else { None };
            match queued.and_then(|queued| queued.first().copied()) {
                Some(prompt) => {
                    self.queued.remove(&prompt);
                    if groups.is_waiting(prompt) {
                        lease.prompts.push(prompt);
                    }
                }
                None if (lease.opened.len() as u64) < bounds.capacity => {
                    let prompt = self.next_prompt(plan);
                    lease.opened.push(prompt);
                    lease.prompts.push(prompt);
                }
                None => break,
            }
        }
        lease
    }

    /// Deterministic mode begins prompts only when none is open: all that a batch still lacks, divided into
    /// leases. The division then does not depend on what came back first.
    fn next_whole_lease(&mut self, plan: &RunPlan, groups: &Groups, capacity: u64) -> NextLease {
        let mut opened = Vec::new();
        if self.waiting.is_empty() && groups.open_count() == 0 {
            opened.extend((0..capacity).map(|_| self.next_prompt(plan)));
            let size = usize::try_from(plan.lease_prompts).unwrap_or(usize::MAX).max(1);
            self.waiting.extend(opened.chunks(size).map(<[PromptId]>::to_vec));
        }
        NextLease { prompts: self.waiting.pop_front().unwrap_or_default(), opened }
    }

    /// The next prompt to begin.
    fn next_prompt(&mut self, plan: &RunPlan) -> PromptId {
        match plan.schedule.order {
            Order::Epochs | Order::Curriculum => self.next_in_data_sets(plan),
            Order::Vade => self.next_selected(plan),
        }
    }

    fn next_selected(&mut self, plan: &RunPlan) -> PromptId {
        if self.selected.is_empty() {
            let count = usize::try_from(plan.batch_prompts).unwrap_or(usize::MAX);
            let vade = plan.schedule.vade();
            self.selected.extend(self.posteriors.select(&vade, plan.seed, plan.prompts, count));
        }
        // A data set is never empty.
        let ordinal = self.selected.pop_front().unwrap_or_default();
        let begun = self.begun.entry(ordinal).or_default();
        let prompt = PromptId { epoch: *begun, ordinal };
        *begun += 1;
        prompt
    }

    /// A group is complete: its prompt is known better.
    pub(super) fn observe(&mut self, plan: &RunPlan, group: &CompleteGroup) {
        match plan.schedule.order {
            Order::Vade if !group.scored.is_empty() => {
                let (right, all) = right_of(group, plan.schedule.right_above);
                self.posteriors.observe(&plan.schedule.vade(), group.prompt.ordinal, right, all - right);
            }
            Order::Curriculum => self.pass_rates.observe(&plan.schedule, group),
            Order::Vade | Order::Epochs => {}
        }
    }

    fn next_in_data_sets(&mut self, plan: &RunPlan) -> PromptId {
        let Self { mixture, pass_rates, .. } = self;
        let most = if plan.schedule.order == Order::Curriculum { PASSED_LIMIT } else { 0 };
        let only = [SetPlan { name: String::new(), prompts: plan.prompts, share: 1.0 }];
        let sets = if plan.sets.is_empty() { &only } else { plan.sets.as_slice() };
        mixture.next(sets, most, |prompt| pass_rates.takes(&plan.schedule, plan.seed, prompt))
    }
}
