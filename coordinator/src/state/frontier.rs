//! What may be issued: the frontier of the data set, and the bound on work in flight.
//!
//! The bound is AReaL's (arXiv 2505.24298, equation 3) with the version of the *actor* that would do the work: while it
//! holds version `v`, at most `(eta + v + 1) * B` prompts may have been accepted or be in flight since the run began. What
//! an actor at `v` generates is then trained at version `v + eta` at the latest.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use types::{PolicyVersion, PromptId};

use super::State;

/// The next new prompt, and prompts that are open and wait for an actor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Frontier {
    epoch: u32,
    ordinal: u64,
    /// Bundles of open groups to lease: one prompt each, or whole leases in deterministic mode.
    queue: VecDeque<Vec<PromptId>>,
}

impl Frontier {
    fn advance(&mut self, prompts: u64) -> PromptId {
        let prompt = PromptId { epoch: self.epoch, ordinal: self.ordinal };
        self.ordinal += 1;
        if self.ordinal == prompts {
            self.epoch += 1;
            self.ordinal = 0;
        }
        prompt
    }

    /// Forgets what waits for an actor.
    pub(super) fn clear_queue(&mut self) {
        self.queue.clear();
    }
}

impl State {
    /// How many more prompts an actor at `version` may begin.
    pub(super) fn capacity(&self, version: PolicyVersion) -> u64 {
        let plan = &self.plan;
        let trained = self.batches.trained.0 * plan.batch_prompts;
        let outstanding = self.outstanding_prompts();
        let accepted = trained + outstanding;
        let by_staleness = plan
            .max_staleness
            .saturating_add(version.0 + 1)
            .saturating_mul(plan.batch_prompts)
            .saturating_sub(accepted);
        let by_run = (plan.batches * plan.batch_prompts).saturating_sub(accepted);
        let by_concurrency = plan.max_prompts_in_flight.saturating_sub(self.groups.open_count());
        by_staleness.min(by_run).min(by_concurrency)
    }

    /// Prompts begun and not yet trained.
    pub(super) fn outstanding_prompts(&self) -> u64 {
        self.groups.open_count() + self.groups.ready.len() as u64 + self.batches.untrained_prompts()
    }

    /// Puts a prompt with waiting responses in the queue. In deterministic mode its whole lease is queued again once the
    /// lease is over, see [`State::release`].
    pub(super) fn requeue(&mut self, prompt: PromptId) {
        if !self.plan.deterministic && self.groups.is_waiting(prompt) {
            self.frontier.queue.push_back(vec![prompt]);
        }
    }

    /// Queues a lease's groups again as they were, if one of their responses is to be repeated.
    pub(super) fn requeue_bundle(&mut self, bundle: Vec<PromptId>) {
        if self.plan.deterministic && bundle.iter().any(|prompt| self.groups.is_waiting(*prompt)) {
            self.frontier.queue.push_back(bundle);
        }
    }

    /// The groups of the next lease for an actor at `version` with room for `prompts` groups; empty when there is none.
    pub(super) fn next_bundle(&mut self, version: PolicyVersion, prompts: u64) -> Vec<PromptId> {
        if self.plan.deterministic {
            self.open_wave(version);
            return self.frontier.queue.pop_front().unwrap_or_default();
        }
        let mut bundle = Vec::new();
        while (bundle.len() as u64) < prompts.min(self.plan.lease_prompts) {
            let queued = self.frontier.queue.pop_front().and_then(|queued| queued.first().copied());
            match queued {
                Some(prompt) if self.groups.is_waiting(prompt) && !bundle.contains(&prompt) => {
                    bundle.push(prompt);
                }
                Some(_) => {}
                None if self.capacity(version) > 0 => bundle.push(self.open_next()),
                None => break,
            }
        }
        bundle
    }

    /// Deterministic mode opens prompts in waves: all that a batch still lacks, cut into leases, once nothing is open. The
    /// cut then does not depend on what came back first.
    fn open_wave(&mut self, version: PolicyVersion) {
        if !self.frontier.queue.is_empty() || self.groups.open_count() > 0 {
            return;
        }
        let mut wave: Vec<PromptId> = Vec::new();
        for _ in 0..self.capacity(version) {
            wave.push(self.open_next());
        }
        let size = usize::try_from(self.plan.lease_prompts).unwrap_or(usize::MAX).max(1);
        self.frontier.queue.extend(wave.chunks(size).map(<[PromptId]>::to_vec));
    }

    fn open_next(&mut self) -> PromptId {
        let prompt = self.frontier.advance(self.plan.prompts);
        self.groups.open(prompt, self.plan.group_size);
        prompt
    }
}
