//! Who holds which block of the cache. Numbers only; the memory is the backend's.
//!
//! A block whose contents are published under a [`PrefixKey`] stays when nobody holds it any more, until its
//! memory is needed: those released longest ago go first. So a request finds what an earlier one computed of
//! the tokens that both begin with. This is the automatic prefix caching of vLLM (Kwon et al., arXiv
//! 2309.06180; <https://docs.vllm.ai/en/latest/design/prefix_caching/>).
//!
//! Invariants:
//! 1. A block is held, kept (published, and held by nobody) or free; a pool hands out a block to one holder,
//!    and more holders come only by [`BlockPool::share`].
//! 2. A key names one block, and a block has one key at most.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::prefix::PrefixKey;

/// Number of a block in the pool.
pub(crate) type BlockId = u32;

/// The blocks of one cache.
#[derive(Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    /// Ordered, so that which block is handed out depends on what was asked before and on nothing else.
    free: BTreeSet<BlockId>,
    /// Kept blocks, by the number of their release.
    kept: BTreeMap<u64, BlockId>,
    /// Number of the next release.
    releases: u64,
    published: HashMap<PrefixKey, BlockId>,
    /// Kept blocks that were given up for others.
    evictions: u64,
}

#[derive(Debug, Clone, Default)]
struct Block {
    holders: u32,
    key: Option<PrefixKey>,
    /// Its place among the kept ones, if it is one.
    released: u64,
}

impl BlockPool {
    pub(crate) fn new(blocks: usize) -> Self {
        let count = BlockId::try_from(blocks).expect("the configuration bounds the blocks");
        Self {
            blocks: vec![Block::default(); blocks],
            free: (0..count).collect(),
            kept: BTreeMap::new(),
            releases: 0,
            published: HashMap::new(),
            evictions: 0,
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds, the kept ones among them.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.kept.len()
    }

    /// Blocks that nobody holds and a request may still find.
    pub(crate) fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Kept blocks that were given up for others so far.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Appends `count` blocks to `table`, kept ones where there are no others; false, and nothing done, when
    /// they are not there.
    pub(crate) fn allocate(&mut self, count: usize, table: &mut Vec<BlockId>) -> bool {
        if self.available() < count {
            return false;
        }
        for _ in 0..count {
            let block = match self.free.pop_first() {
                Some(block) => block,
                None => self.evict(),
            };
            self.block_mut(block).holders = 1;
            table.push(block);
        }
        true
    }

    /// Gives up the kept block that was released longest ago.
    fn evict(&mut self) -> BlockId {
        let (_, block) = self.kept.pop_first().expect("there are as many as are available");
        self.evictions += 1;
        if let Some(key) = self.block_mut(block).key.take() {
            self.published.remove(&key);
        }
        block
    }

    /// One more holder for each of these blocks.
    pub(crate) fn share(&mut self, blocks: &[BlockId]) {
        for id in blocks {
            let block = &mut self.blocks[*id as usize];
            debug_assert!(block.holders > 0 || block.key.is_some(), "block {id} is shared but free");
            if block.holders == 0 {
                self.kept.remove(&block.released);
            }
            block.holders += 1;
        }
    }

    /// One holder less for each of these blocks; empties `table`. Of a sequence that begins alike the first
    /// blocks are worth most: they are the last that are given up.
    pub(crate) fn release(&mut self, table: &mut Vec<BlockId>) {
        for id in table.drain(..).rev() {
            let block = &mut self.blocks[id as usize];
            block.holders -= 1;
            if block.holders > 0 {
                continue;
            }
            if block.key.is_some() {
                block.released = self.releases;
                self.kept.insert(self.releases, id);
                self.releases += 1;
            } else {
                self.free.insert(id);
            }
        }
    }

    /// The block of a key.
    pub(crate) fn find(&self, key: &PrefixKey) -> Option<BlockId> {
        self.published.get(key).copied()
    }

    /// Lets others find a held block, unless another one has this key already.
    pub(crate) fn publish(&mut self, id: BlockId, key: PrefixKey) {
        let block = &mut self.blocks[id as usize];
        if block.key.is_none() && !self.published.contains_key(&key) {
            block.key = Some(key);
            self.published.insert(key, id);
        }
    }

    /// Lets nobody find these blocks any more.
    pub(crate) fn withdraw(&mut self, table: &[BlockId]) {
        for id in table {
            let block = &mut self.blocks[*id as usize];
            let Some(key) = block.key.take() else { continue };
            self.published.remove(&key);
            if block.holders == 0 {
                self.kept.remove(&block.released);
                self.free.insert(*id);
            }
        }
    }

    /// Lets nobody find anything any more.
    pub(crate) fn withdraw_all(&mut self) {
        let table: Vec<BlockId> = self.published.values().copied().collect();
        self.withdraw(&table);
    }

    fn block_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id as usize]
    }

    /// Holders of a block.
    #[cfg(test)]
    fn holders(&self, block: BlockId) -> u32 {
        self.blocks[block as usize].holders
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_handed_out_once_and_come_back() {
        let mut pool = BlockPool::new(4);
        let (mut mine, mut yours) = (Vec::new(), Vec::new());
        assert!(pool.allocate(3, &mut mine));
        assert!(!pool.allocate(2, &mut yours));
        assert!(yours.is_empty());
        assert!(pool.allocate(1, &mut yours));
        assert_eq!((mine.as_slice(), yours.as_slice()), ([0, 1, 2].as_slice(), [3].as_slice()));
        pool.share(&mine[..2]);
        yours.extend(&mine[..2]);
        pool.release(&mut mine);
        assert_eq!((pool.available(), pool.holders(0)), (1, 1));
        pool.release(&mut yours);
        assert_eq!((pool.available(), pool.kept()), (4, 0));
    }

    fn key(number: u32) -> PrefixKey {
        PrefixKey::root().of(&[number])
    }

    #[test]
    fn published_blocks_stay_until_they_are_needed_and_the_last_used_stay_longest() {
        let mut pool = BlockPool::new(4);
        let mut table = Vec::new();
        assert!(pool.allocate(3, &mut table));
        for block in 0..3 {
            pool.publish(block, key(block));
        }
        // A second block of the same contents is nobody's.
        pool.publish(2, key(0));
        assert_eq!(pool.find(&key(0)), Some(0));
        pool.release(&mut table);
        assert_eq!((pool.available(), pool.kept()), (4, 3));
        // Block 2 is found again, and so the last that goes; block 1 stood behind block 0.
        pool.share(&[2]);
        pool.release(&mut vec![2]);
        for (gone, left) in [(3, 3), (1, 2), (0, 1), (2, 0)] {
            assert!(pool.allocate(1, &mut table));
            assert_eq!((table.last().copied(), pool.kept()), (Some(gone), left));
        }
        assert_eq!((pool.evictions(), pool.find(&key(2))), (3, None));
        assert!(!pool.allocate(1, &mut table));
    }

    #[test]
    fn what_is_withdrawn_is_not_found() {
        let mut pool = BlockPool::new(3);
        let mut table = Vec::new();
        assert!(pool.allocate(3, &mut table));
        for block in 0..3 {
            pool.publish(block, key(block));
        }
        let mut held = table.split_off(2);
        pool.release(&mut table);
        pool.withdraw(&[0]);
        assert_eq!((pool.find(&key(0)), pool.available(), pool.kept()), (None, 2, 1));
        pool.withdraw_all();
        assert_eq!((pool.find(&key(1)), pool.find(&key(2)), pool.kept()), (None, None, 0));
        pool.release(&mut held);
        assert_eq!((pool.available(), pool.kept(), pool.evictions()), (3, 0, 0));
    }
}
