//! Handing out cache blocks: admission, growth, eviction, preemption.

use super::super::batch::Batch;
use super::super::blocks::BlockId;
use super::super::sequence::Sequence;
use super::{Group, PromptCache, Scheduler, rows_of};

/// Waiting responses that are passed over because their sibling is computing the prompt.
const LOOK_AHEAD: usize = 1024;

/// How a waiting response would begin.
struct Beginning {
    /// Blocks of the group's prompt that it would share.
    shared: usize,
    /// Blocks of its own that it would need.
    own: usize,
    /// Whether the group's prompt is there.
    forks: bool,
}

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

    fn forks(&self, sequence: &Sequence) -> bool {
        matches!(self.groups[&sequence.group].prompt, PromptCache::Ready(_))
    }

    /// Moves a waiting response to the running ones; false when its blocks are not there.
    fn begin(&mut self, candidate: usize, batch: &mut Batch) -> bool {
        let mut table = Vec::new();
        let beginning = loop {
            let beginning = self.beginning(&self.waiting[candidate]);
            // Room to go on for each that runs, so that the newcomer does not push one out in the next step.
            let room = self.blocks.free() >= beginning.own + self.running.len();
            if room && self.blocks.allocate(beginning.own, &mut table) {
                break beginning;
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
        if beginning.forks {
            self.fork(&mut sequence, table, beginning.shared, batch);
        } else {
            sequence.table = table;
        }
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

    fn beginning(&self, sequence: &Sequence) -> Beginning {
        let forks = self.forks(sequence);
        let shared = if forks { (sequence.prompt.len() - 1) / self.limits.block_tokens } else { 0 };
        Beginning { shared, own: self.blocks_of(sequence.len()) - shared, forks }
    }

    /// Lets a sequence begin with its group's prompt, all tokens but the last: `shared` blocks as they are,
    /// the others copied to the first of `own`.
    fn fork(&mut self, sequence: &mut Sequence, own: Vec<BlockId>, shared: usize, batch: &mut Batch) {
        let group = self.groups.get(&sequence.group).expect("a group lives as long as its sequences");
        let PromptCache::Ready(prompt) = &group.prompt else { return };
        let (read, copied) = prompt.split_at(shared);
        batch.copies.extend(copied.iter().copied().zip(own.iter().copied()));
        self.blocks.share(read);
        sequence.table = [read, &own].concat();
        let tokens = sequence.prompt.len() - 1;
        sequence.cache(tokens, self.version);
        self.totals.shared_tokens += tokens as u64;
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
