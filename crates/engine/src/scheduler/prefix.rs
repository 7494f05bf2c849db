//! What a sequence begins with, instead of computing it, and what it leaves to others.
//!
//! A waiting response begins with its group's prompt where a sibling has computed that, else with what the
//! cache still holds of its first tokens: whole blocks as they are, and a copy of one that is full in part.
//! A running sequence publishes each block as it fills up, and the last one at its end.

use super::super::batch::Batch;
use super::super::blocks::BlockId;
use super::super::sequence::Sequence;
use super::{PromptCache, Scheduler};

/// How a waiting response would begin.
#[derive(Debug, Default)]
pub(super) struct Beginning {
    /// Blocks that it would share.
    shared: Vec<BlockId>,
    /// Blocks behind them that it would copy to the first of its own.
    copied: Vec<BlockId>,
    /// Tokens that these hold of it.
    tokens: usize,
    /// Blocks of its own that it would need.
    own: usize,
    /// Whether it begins with its group's prompt.
    forks: bool,
}

impl Scheduler {
    pub(super) fn beginning(&mut self, candidate: usize) -> Beginning {
        let sequence = &self.waiting[candidate];
        let of_group = match &self.groups[&sequence.group].prompt {
            PromptCache::Ready(prompt) => {
                let tokens = sequence.prompt.len() - 1;
                let (shared, copied) = prompt.split_at(tokens / self.limits.block_tokens);
                let (shared, copied) = (shared.to_vec(), copied.to_vec());
                Beginning { shared, copied, tokens, own: 0, forks: true }
            }
            PromptCache::Empty | PromptCache::Filling => Beginning::default(),
        };
        // Of one that had to leave, more than the prompt may still be there.
        let looks = self.reuses(sequence) && !(of_group.forks && sequence.response.is_empty());
        let known = if looks { self.known_prefix(candidate) } else { Beginning::default() };
        let mut beginning = if known.tokens > of_group.tokens { known } else { of_group };
        beginning.own = self.blocks_of(self.waiting[candidate].len()) - beginning.shared.len();
        beginning
    }

    /// Whether the keys of a sequence are a function of its tokens, so that others may use them.
    fn reuses(&self, sequence: &Sequence) -> bool {
        self.limits.prefix_cache && sequence.prompt.len() <= self.limits.plain_positions
    }

    /// What the cache holds of a waiting sequence, but for its last token: the next one is drawn behind that.
    fn known_prefix(&mut self, candidate: usize) -> Beginning {
        let block_tokens = self.limits.block_tokens;
        let sequence = &mut self.waiting[candidate];
        let most = sequence.len() - 1;
        let mut shared = Vec::new();
        while (shared.len() + 1) * block_tokens <= most {
            let key = sequence.key(shared.len() + 1, block_tokens);
            let Some(block) = self.blocks.find(&key) else { break };
            shared.push(block);
        }
        let start = shared.len() * block_tokens;
        let rest = sequence.tokens(start..most.min(start + block_tokens));
        let mut partial = None;
        sequence.key(shared.len(), block_tokens).each_of(&rest, |tokens, key| {
            partial = self.blocks.find(&key).map(|block| (block, tokens)).or(partial);
        });
        let tokens = start + partial.map_or(0, |(_, tokens)| tokens);
        let copied = partial.map(|(block, _)| block).into_iter().collect();
        Beginning { shared, copied, tokens, ..Beginning::default() }
    }

    /// A table of blocks for a beginning: those that it shares, then its own. Where a block to copy stands in
    /// the way, its tokens are computed instead. `None`, and nothing done, when the blocks are not there.
    pub(super) fn take_blocks(&mut self, beginning: &mut Beginning) -> Option<Vec<BlockId>> {
        let table = self.try_blocks(beginning);
        if table.is_some() || beginning.forks || beginning.copied.is_empty() {
            return table;
        }
        beginning.copied.clear();
        beginning.tokens = beginning.shared.len() * self.limits.block_tokens;
        self.try_blocks(beginning)
    }

    fn try_blocks(&mut self, beginning: &Beginning) -> Option<Vec<BlockId>> {
        let mut table = beginning.shared.clone();
        self.blocks.share(&table);
        // What is copied must not be given up for its copy.
        let mut copied = beginning.copied.clone();
        self.blocks.share(&copied);
        // Room to go on for each that runs, so that the newcomer does not push one out in the next step.
        let room = self.blocks.available() >= beginning.own + self.running.len();
        let taken = room && self.blocks.allocate(beginning.own, &mut table);
        self.blocks.release(&mut copied);
        if !taken {
            self.blocks.release(&mut table);
        }
        taken.then_some(table)
    }

    /// Lets a sequence begin with these blocks. Copies are made in front of everything else, in their order:
    /// whoever is given a copied block in this step writes it later.
    pub(super) fn start_with(
        &mut self,
        sequence: &mut Sequence,
        beginning: &Beginning,
        table: Vec<BlockId>,
        batch: &mut Batch,
    ) {
        let own = &table[beginning.shared.len()..];
        batch.copies.extend(beginning.copied.iter().copied().zip(own.iter().copied()));
        sequence.table = table;
        sequence.cache(beginning.tokens, self.version);
        let totals = &mut self.totals;
        let total = if beginning.forks { &mut totals.shared_tokens } else { &mut totals.reused_tokens };
        *total += beginning.tokens as u64;
    }

    /// Lets others find the blocks of a running sequence that its last `rows` tokens have filled.
    pub(super) fn publish_filled(&mut self, at: usize, rows: usize) {
        let block_tokens = self.limits.block_tokens;
        let sequence = &self.running[at];
        let filled = (sequence.cached - rows) / block_tokens..sequence.cached / block_tokens;
        if filled.is_empty() || !sequence.current || !self.reuses(sequence) {
            return;
        }
        let sequence = &mut self.running[at];
        for block in filled {
            let key = sequence.key(block + 1, block_tokens);
            self.blocks.publish(sequence.table[block], key);
        }
    }

    /// Lets others find the last block of a sequence that has ended, which is full in part.
    pub(super) fn publish_last(&mut self, sequence: &mut Sequence) {
        let block_tokens = self.limits.block_tokens;
        let whole = sequence.cached / block_tokens;
        let rest = sequence.tokens(whole * block_tokens..sequence.cached);
        if !rest.is_empty() && sequence.current && self.reuses(sequence) {
            let key = sequence.key(whole, block_tokens).of(&rest);
            self.blocks.publish(sequence.table[whole], key);
        }
    }
}
