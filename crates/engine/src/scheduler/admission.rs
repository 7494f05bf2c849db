//! Handing out cache blocks: admission, growth, eviction, preemption.

use super::super::batch::Batch;
use super::super::sequence::Sequence;
use super::{Group, PromptCache, Scheduler, rows_of};

/// Waiting responses that are passed over because their sibling is computing the prompt.
const LOOK_AHEAD: usize = 1024;

impl Scheduler {
    /// Makes sure that the table of a running sequence has room for `rows` more tokens; false when the
    /// sequence itself had to leave.
    pub(super) fn grow(&mut self, at: usize, rows: usize) -> bool {
        loop {
            let sequence = &mut self.running[at];
            let blocks = (sequence.cached + rows).div_ceil(self.limits.block_tokens);
            let missing = blocks.saturating_sub(sequence.table.len());
            if missing == 0 || self.blocks.allocate(missing, &mut sequence.table) {
                return true;
            }
            if self.evict_prompt(None) {
                continue;
            }
            let last = self.running.len() - 1;
            self.preempt_last();
            if last == at {
                return false;
            }
        }
    }

    /// The sequence admitted last gives up its blocks and waits at the head of the queue.
    fn preempt_last(&mut self) {
        let Some(sequence) = self.running.pop() else { return };
        let sequence = self.leave_running(sequence);
        self.group_mut(sequence.group).waiting += 1;
        self.waiting.push_front(sequence);
        self.totals.preemptions += 1;
    }

    /// Admits waiting responses while there is room, and adds what they compute to the step.
    pub(super) fn admit(&mut self, chunk: &mut usize, batch: &mut Batch) {
        let mut candidate = 0;
        while self.running.len() < self.limits.max_sequences && candidate < self.waiting.len().min(LOOK_AHEAD)
        {
            let sequence = &self.waiting[candidate];
            if matches!(self.groups[&sequence.group].prompt, PromptCache::Filling) {
                candidate += 1;
                continue;
            }
            let computes_one = sequence.len() == 1 || self.forks(sequence) && sequence.response.is_empty();
            if (*chunk == 0 && !computes_one) || !self.begin(candidate, batch) {
                break;
            }
            let at = self.running.len() - 1;
            let rows = rows_of(&self.running[at], *chunk);
            self.add_segment(at, rows, chunk, batch);
        }
    }

    pub(super) fn forks(&self, sequence: &Sequence) -> bool {
        matches!(self.groups[&sequence.group].prompt, PromptCache::Ready(_))
    }

    /// Moves a waiting response to the running ones; false when its blocks are not there.
    fn begin(&mut self, candidate: usize, batch: &mut Batch) -> bool {
        let (beginning, table) = loop {
            let mut beginning = self.beginning(candidate);
            if let Some(table) = self.take_blocks(&mut beginning) {
                break (beginning, table);
            }
            let own_group = self.waiting[candidate].group;
            if self.evict_prompt(Some(own_group)) {
                continue;
            }
            // Alone with its group's prompt: it fits without it, as the request was not refused.
            if !(self.running.is_empty() && self.evict_prompt(None)) {
                return false;
            }
        };
        let mut sequence = self.waiting.remove(candidate).expect("the candidate waits");
        self.start_with(&mut sequence, &beginning, table, batch);
        let group = self.group_mut(sequence.group);
        group.waiting -= 1;
        group.running += 1;
        if group.waiting > 0 && sequence.prompt.len() > 1 && matches!(group.prompt, PromptCache::Empty) {
            group.prompt = PromptCache::Filling;
            sequence.leads = true;
        }
        let key = sequence.group;
        self.running.push(sequence);
        self.settle(key);
        true
    }

    /// Drops the prompt of one group of which nothing runs, the youngest but `except`; false when there is
    /// none.
    fn evict_prompt(&mut self, except: Option<u64>) -> bool {
        let youngest = self.groups.iter_mut().rev().find(|(key, group)| {
            group.running == 0 && Some(**key) != except && matches!(group.prompt, PromptCache::Ready(_))
        });
        let Some((_, group)) = youngest else { return false };
        if let PromptCache::Ready(mut table) = std::mem::replace(&mut group.prompt, PromptCache::Empty) {
            self.blocks.release(&mut table);
        }
        true
    }

    /// Takes a sequence that is no longer among the running ones out of the accounts: its blocks, its part in
    /// its group.
    pub(super) fn leave_running(&mut self, mut sequence: Sequence) -> Sequence {
        self.blocks.release(&mut sequence.table);
        let led = sequence.leads;
        sequence.forget_cache();
        let group = self.group_mut(sequence.group);
        group.running -= 1;
        if led {
            group.prompt = PromptCache::Empty;
        }
        sequence
    }

    /// Drops a group that is empty, and the prompt of one of which nothing waits.
    pub(super) fn settle(&mut self, key: u64) {
        let group = self.groups.get_mut(&key).expect("a group is settled while it lives");
        if group.waiting > 0 {
            return;
        }
        if let PromptCache::Ready(table) = &mut group.prompt {
            self.blocks.release(table);
            group.prompt = PromptCache::Empty;
        }
        if group.running == 0 {
            self.groups.remove(&key);
        }
    }

    /// Forgets what the cache holds of a group's prompt.
    pub(super) fn drop_prompt(&mut self, group: &mut Group) {
        if let PromptCache::Ready(table) = &mut group.prompt {
            self.blocks.release(table);
        }
        group.prompt = PromptCache::Empty;
    }
}
