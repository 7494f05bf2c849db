//! Micro-batches: which sequences go through the network together, on which rank.
//!
//! Invariant: the division changes memory and time, never a gradient. Losses are sums over tokens whose coefficients are
//! settled for the whole minibatch before it is divided.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use model::{ModelConfig, Packed};
use tch::{Device, Tensor};

use crate::error::{Error, Result};

/// A token sequence and the rows that are wanted of it.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    /// What the network is given.
    tokens: Vec<u32>,
    /// The rows whose numbers are wanted.
    rows: Range<usize>,
    /// For log-probs, the token behind each of these rows; otherwise empty.
    targets: Vec<u32>,
}

impl Sequence {
    /// A prompt and its response: wanted are the rows that predict the response's tokens. The last token predicts nothing and
    /// is left out.
    pub(crate) fn response(prompt: &[u32], response: &[u32]) -> Self {
        let tokens = [prompt, &response[..response.len().saturating_sub(1)]].concat();
        let first = prompt.len().saturating_sub(1);
        Self { tokens, rows: first..first + response.len(), targets: response.to_vec() }
    }

    /// A sequence of which the last row is wanted.
    pub(crate) fn last(tokens: Vec<u32>) -> Self {
        let rows = tokens.len().saturating_sub(1)..tokens.len();
        Self { tokens, rows, targets: Vec::new() }
    }

    /// Tokens that the network sees.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Rows that are wanted.
    pub(crate) fn wanted(&self) -> usize {
        self.rows.len()
    }
}

impl AsRef<[u32]> for Sequence {
    fn as_ref(&self) -> &[u32] {
        &self.tokens
    }
}

/// Sequences on the device, packed.
#[derive(Debug)]
pub(crate) struct Microbatch {
    /// Their tokens.
    pub(crate) packed: Packed,
    /// The wanted rows of all of them, `[wanted]` i64.
    pub(crate) rows: Tensor,
    /// The token behind each wanted row, `[wanted]` i64; empty when a scalar head is asked.
    pub(crate) targets: Tensor,
}

impl Microbatch {
    /// Packs sequences; `name` names one for an error.
    pub(crate) fn new(
        sequences: &[&Sequence],
        config: &ModelConfig,
        device: Device,
        name: impl Fn(usize) -> String,
    ) -> Result<Self> {
        let packed = Packed::new(sequences, config.vocab_size, device);
        let packed = packed.map_err(|source| {
            let which = match source {
                model::packed::Error::Empty { sequence } | model::packed::Error::Token { sequence, .. } => {
                    sequence
                }
                model::packed::Error::NoSequence => 0,
            };
            Error::Sequence { what: name(which), source }
        })?;
        let mut start = 0;
        let mut rows: Vec<i64> = Vec::new();
        let mut targets: Vec<i64> = Vec::new();
        for sequence in sequences {
            rows.extend(sequence.rows.clone().map(|row| (start + row) as i64));
            targets.extend(sequence.targets.iter().map(|token| i64::from(*token)));
            start += sequence.tokens();
        }
        if let Some(outside) = targets.iter().find(|token| **token >= config.vocab_size) {
            let token = u32::try_from(*outside).unwrap_or(u32::MAX);
            let which = sequences.iter().position(|sequence| sequence.targets.contains(&token)).unwrap_or(0);
            let position = sequences[which].tokens();
            let source = model::packed::Error::Token {
                sequence: which,
                position,
                token,
                vocab_size: config.vocab_size,
            };
            return Err(Error::Sequence { what: name(which), source });
        }
        let place = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(device);
        Ok(Self { packed, rows: place(&rows), targets: place(&targets) })
    }
}

/// The division of a minibatch: rounds of one micro-batch on each rank. Some may be empty; every rank takes part in every
/// round all the same, because weights are gathered and gradients reduced together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// `[round][rank]`: the items of that micro-batch, in ascending order.
    rounds: Vec<Vec<Vec<usize>>>,
}

impl Plan {
    /// Divides `items`, each with its number of tokens, into as few rounds as keep every micro-batch within `most_tokens`;
    /// an item that is longer has a micro-batch of its own. Micro-batches of a round are about equally long, so that no rank
    /// waits for another (longest processing time first; Graham 1969).
    pub(crate) fn new(items: &[(usize, usize)], world_size: usize, most_tokens: usize) -> Self {
        let mut sorted = items.to_vec();
        sorted.sort_by_key(|(item, tokens)| (Reverse(*tokens), *item));
        let total: usize = items.iter().map(|(_, tokens)| tokens.min(&most_tokens)).sum();
        let mut rounds = total.div_ceil(world_size * most_tokens).max(usize::from(!items.is_empty()));
        let mut bins = divide(&sorted, rounds * world_size);
        while bins.iter().any(|bin| bin.tokens > most_tokens && bin.items.len() > 1) {
            rounds += 1 + rounds / 32;
            bins = divide(&sorted, rounds * world_size);
        }
        bins.sort_by_key(|bin| Reverse(bin.tokens));
        for bin in &mut bins {
            bin.items.sort_unstable();
        }
        let mut items = bins.into_iter().map(|bin| bin.items);
        let rounds = (0..rounds).map(|_| items.by_ref().take(world_size).collect()).collect();
        Self { rounds }
    }

    /// Every item.
    pub(crate) fn items(&self) -> impl Iterator<Item = usize> {
        self.rounds.iter().flatten().flatten().copied()
    }

    /// What the rank that computes the most has in all, with the size of each item.
    pub(crate) fn most_of_a_rank(&self, size: impl Fn(usize) -> usize) -> usize {
        let ranks = self.rounds.first().map_or(0, Vec::len);
        let of_rank = |rank| self.of_rank(rank).flatten().map(|item| size(*item)).sum();
        (0..ranks).map(of_rank).max().unwrap_or(0)
    }

    /// This rank's micro-batches, one a round.
    pub(crate) fn of_rank(&self, rank: usize) -> impl ExactSizeIterator<Item = &[usize]> {
        self.rounds.iter().map(move |round| round[rank].as_slice())
    }
}

#[derive(Debug, Clone, Default)]
struct Bin {
    tokens: usize,
    items: Vec<usize>,
}

/// Puts each item, the longest first, into the bin with the fewest tokens.
fn divide(sorted: &[(usize, usize)], count: usize) -> Vec<Bin> {
    let mut bins = vec![Bin::default(); count];
    let mut emptiest: BinaryHeap<Reverse<(usize, usize)>> = (0..count).map(|bin| Reverse((0, bin))).collect();
    for (item, tokens) in sorted {
        let Some(mut least) = emptiest.peek_mut() else { break };
        let Reverse((load, bin)) = &mut *least;
        bins[*bin].items.push(*item);
        bins[*bin].tokens += tokens;
        *load += tokens;
    }
    bins
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_response_wants_the_rows_that_predict_it() {
        let sequence = Sequence::response(&[5, 6, 7], &[8, 9]);
        assert_eq!((sequence.tokens.as_slice(), sequence.rows.clone()), ([5, 6, 7, 8].as_slice(), 2..4));
        assert_eq!((sequence.tokens(), sequence.wanted()), (4, 2));
        let one = Sequence::response(&[5], &[8]);
        assert_eq!((one.tokens.as_slice(), one.rows), ([5].as_slice(), 0..1));
        let last = Sequence::last(vec![5, 6, 7]);
        assert_eq!((last.rows, last.targets.is_empty()), (2..3, true));
    }

    #[test]
    fn long_items_stand_alone_and_the_rest_is_balanced() {
        let items: Vec<(usize, usize)> = [10, 90, 40, 50, 200, 60].into_iter().enumerate().collect();
        let plan = Plan::new(&items, 2, 100);
        let loads: Vec<Vec<usize>> = plan
            .rounds
            .iter()
            .map(|round| round.iter().map(|bin| bin.iter().map(|item| items[*item].1).sum()).collect())
            .collect();
        assert_eq!(loads, [[200, 90], [90, 70]]);
    }

    proptest! {
        #[test]
        fn every_item_is_in_exactly_one_micro_batch_within_the_budget(
            lengths in prop::collection::vec(1usize..300, 0..60),
            world_size in 1usize..5,
            most_tokens in 1usize..400,
        ) {
            let items: Vec<(usize, usize)> = lengths.iter().copied().enumerate().collect();
            let plan = Plan::new(&items, world_size, most_tokens);
            let mut seen: Vec<usize> = plan.rounds.iter().flatten().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..items.len()).collect::<Vec<_>>());
            for round in &plan.rounds {
                prop_assert_eq!(round.len(), world_size);
                for bin in round {
                    let tokens: usize = bin.iter().map(|item| lengths[*item]).sum();
                    prop_assert!(tokens <= most_tokens || bin.len() == 1);
                    prop_assert!(bin.is_sorted());
                }
            }
            prop_assert_eq!(plan, Plan::new(&items, world_size, most_tokens));
        }
    }
}
