//! How a minibatch is split into micro-batches: which items go through the network together, on which rank.
//!
//! Invariant: the split changes memory and time, never a gradient. Losses are sums over tokens whose
//! coefficients are settled for the whole minibatch before it is split.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Something that belongs into one micro-batch as a whole: a sample, or an example with all its sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SplitItem {
    /// Its number in the caller's list.
    pub(crate) index: usize,
    /// Tokens that the network is given for it.
    pub(crate) tokens: usize,
}

/// Rounds of one micro-batch on each rank. Some may be empty; every rank takes part in every round all the
/// same, because weights are gathered and gradients reduced together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MicrobatchSplit {
    /// `[round][rank]`: the indices of that micro-batch's items, in ascending order.
    rounds: Vec<Vec<Vec<usize>>>,
}

impl MicrobatchSplit {
    /// Splits `items` into as few rounds as keep every micro-batch within `max_tokens`; an item that is
    /// longer has a micro-batch of its own. Micro-batches of a round are about equally long, so that no rank
    /// waits for another (longest processing time first; Graham 1969).
    pub(crate) fn new(items: &[SplitItem], world_size: usize, max_tokens: usize) -> Self {
        let mut sorted = items.to_vec();
        sorted.sort_by_key(|item| (Reverse(item.tokens), item.index));
        let total: usize = items.iter().map(|item| item.tokens.min(max_tokens)).sum();
        let mut rounds = total.div_ceil(world_size * max_tokens).max(usize::from(!items.is_empty()));
        let mut bins = fill_bins(&sorted, rounds * world_size);
        while bins.iter().any(|bin| bin.tokens > max_tokens && bin.indices.len() > 1) {
            rounds += 1 + rounds / 32;
            bins = fill_bins(&sorted, rounds * world_size);
        }
        bins.sort_by_key(|bin| Reverse(bin.tokens));
        for bin in &mut bins {
            bin.indices.sort_unstable();
        }
        let mut microbatches = bins.into_iter().map(|bin| bin.indices);
        let rounds = (0..rounds).map(|_| microbatches.by_ref().take(world_size).collect()).collect();
        Self { rounds }
    }

    /// The indices of all items.
    pub(crate) fn indices(&self) -> impl Iterator<Item = usize> {
        self.rounds.iter().flatten().flatten().copied()
    }

    /// The same in ascending order.
    pub(crate) fn sorted_indices(&self) -> Vec<usize> {
        let mut indices: Vec<usize> = self.indices().collect();
        indices.sort_unstable();
        indices
    }

    /// Tokens of the rank that computes the most, with the tokens of each item.
    pub(crate) fn max_rank_tokens(&self, tokens: impl Fn(usize) -> usize) -> usize {
        let ranks = self.rounds.first().map_or(0, Vec::len);
        (0..ranks)
            .map(|rank| self.of_rank(rank).flatten().map(|index| tokens(*index)).sum())
            .max()
            .unwrap_or(0)
    }

    /// This rank's micro-batches, one for each round.
    pub(crate) fn of_rank(&self, rank: usize) -> impl ExactSizeIterator<Item = &[usize]> {
        self.rounds.iter().map(move |round| round[rank].as_slice())
    }
}

/// A micro-batch that is being filled.
#[derive(Debug, Clone, Default)]
struct Bin {
    tokens: usize,
    indices: Vec<usize>,
}

/// Puts each item, the longest first, into the bin with the fewest tokens.
fn fill_bins(sorted: &[SplitItem], count: usize) -> Vec<Bin> {
    let mut bins = vec![Bin::default(); count];
    let mut emptiest: BinaryHeap<Reverse<(usize, usize)>> = (0..count).map(|bin| Reverse((0, bin))).collect();
    for item in sorted {
        let Some(mut least) = emptiest.peek_mut() else { break };
        let Reverse((load, bin)) = &mut *least;
        bins[*bin].indices.push(item.index);
        bins[*bin].tokens += item.tokens;
        *load += item.tokens;
    }
    bins
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items(tokens: &[usize]) -> Vec<SplitItem> {
        tokens.iter().enumerate().map(|(index, tokens)| SplitItem { index, tokens: *tokens }).collect()
    }

    #[test]
    fn long_items_stand_alone_and_the_rest_is_balanced() {
        let items = items(&[10, 90, 40, 50, 200, 60]);
        let split = MicrobatchSplit::new(&items, 2, 100);
        let loads: Vec<Vec<usize>> = split
            .rounds
            .iter()
            .map(|round| round.iter().map(|bin| bin.iter().map(|index| items[*index].tokens).sum()).collect())
            .collect();
        assert_eq!(loads, [[200, 90], [90, 70]]);
    }

    proptest! {
        #[test]
        fn every_item_is_in_exactly_one_micro_batch_within_the_budget(
            lengths in prop::collection::vec(1usize..300, 0..60),
            world_size in 1usize..5,
            max_tokens in 1usize..400,
        ) {
            let items = items(&lengths);
            let split = MicrobatchSplit::new(&items, world_size, max_tokens);
            let mut seen: Vec<usize> = split.rounds.iter().flatten().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..items.len()).collect::<Vec<_>>());
            for round in &split.rounds {
                prop_assert_eq!(round.len(), world_size);
                for bin in round {
                    let tokens: usize = bin.iter().map(|index| lengths[*index]).sum();
                    prop_assert!(tokens <= max_tokens || bin.len() == 1);
                    prop_assert!(bin.is_sorted());
                }
            }
            prop_assert_eq!(split, MicrobatchSplit::new(&items, world_size, max_tokens));
        }
    }
}
