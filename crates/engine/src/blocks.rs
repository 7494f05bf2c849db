//! Who holds which block of the cache. Numbers only; the memory is the backend's.
//!
//! Invariants: a block is free exactly when nobody holds it; a pool hands out a block to one holder, and more
//! holders come only by [`BlockPool::share`].

use std::collections::BTreeSet;

/// Number of a block in the pool.
pub(crate) type BlockId = u32;

/// The blocks of one cache.
#[derive(Debug)]
pub(crate) struct BlockPool {
    /// Holders of each block.
    holders: Vec<u32>,
    /// Ordered, so that which block is handed out depends on what was asked before and on nothing else.
    free: BTreeSet<BlockId>,
}

impl BlockPool {
    pub(crate) fn new(blocks: usize) -> Self {
        let count = BlockId::try_from(blocks).expect("the configuration bounds the blocks");
        Self { holders: vec![0; blocks], free: (0..count).collect() }
    }

    pub(crate) fn total(&self) -> usize {
        self.holders.len()
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Appends `count` blocks to `table`; false, and nothing done, when they are not there.
    pub(crate) fn allocate(&mut self, count: usize, table: &mut Vec<BlockId>) -> bool {
        if self.free.len() < count {
            return false;
        }
        let blocks: Vec<BlockId> = self.free.iter().copied().take(count).collect();
        for block in &blocks {
            self.free.remove(block);
            self.holders[*block as usize] = 1;
        }
        table.extend(blocks);
        true
    }

    /// One more holder for each of these blocks.
    pub(crate) fn share(&mut self, blocks: &[BlockId]) {
        for block in blocks {
            debug_assert!(self.holders[*block as usize] > 0, "block {block} is shared but free");
            self.holders[*block as usize] += 1;
        }
    }

    /// One holder less for each of these blocks; empties `table`.
    pub(crate) fn release(&mut self, table: &mut Vec<BlockId>) {
        for block in table.drain(..) {
            let holders = &mut self.holders[block as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.insert(block);
            }
        }
    }

    /// Holders of a block.
    #[cfg(test)]
    fn holders(&self, block: BlockId) -> u32 {
        self.holders[block as usize]
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
        assert_eq!((pool.free(), pool.holders(0)), (1, 1));
        pool.release(&mut yours);
        assert_eq!(pool.free(), 4);
    }
}
