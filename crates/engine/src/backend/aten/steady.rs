//! Steps that come again: made alike, so that one recording serves them all.
//!
//! While sequences decode, one step differs from the next in numbers only, as long as nothing joins or
//! leaves. Such steps are padded to one of few sizes, so that most of them have a [`Plan`](super::Plan) that
//! was seen before.

use super::graphs::Graphs;
use crate::batch::{Batch, Draw, Segment};
use crate::blocks::BlockId;

/// The next larger one of few counts, at most a quarter more than `count`: 1 to 8, then four of each power of
/// two.
pub(crate) fn rounded_up(count: usize) -> usize {
    count.next_multiple_of((count.next_power_of_two() / 8).max(1))
}

/// What runs steps that come again.
#[derive(Debug)]
pub(crate) struct Steady {
    /// The block of the cache that no sequence has: the padding's keys and values go there.
    pub(crate) spare: BlockId,
    pub(crate) graphs: Graphs,
}

impl Steady {
    /// The batch with rows that nobody wants, up to a rounded count, if it is one that comes again: every
    /// sequence decodes and draws, no block is copied, neither a penalty nor a mask names tokens. The
    /// padding's draws come last.
    pub(crate) fn padded(&self, batch: &Batch) -> Option<Batch> {
        let rows = batch.tokens.len();
        let decodes = batch.segments.len() == rows && batch.draws.len() == rows;
        if !decodes || !batch.copies.is_empty() || !batch.seen.is_empty() || !batch.masks.is_empty() {
            return None;
        }
        let rule = batch.draws.last()?.rule;
        let mut batch = batch.clone();
        let table = batch.tables.len()..batch.tables.len() + 1;
        batch.tables.push(self.spare);
        for row in rows..rounded_up(rows) {
            batch.tokens.push(0);
            batch.segments.push(Segment {
                sequence: row,
                rows: row..row + 1,
                start: 0,
                prompt_tokens: 1,
                table: table.clone(),
                draw: Some(row),
            });
            batch.draws.push(Draw { row, rule, uniform: 0.0, seen: 0..0, mask: None, top: 0 });
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use model::Groups;
    use tch::Device;

    use super::super::{Aten, AtenWeights, small_model};
    use super::*;
    use crate::batch::{DrawRule, Drawn};
    use crate::config::{Backend, EngineConfig};

    const BLOCK_TOKENS: usize = 16;

    /// Blocks of each sequence.
    const BLOCKS: usize = 4;

    /// The next rows of sequences, each given by the tokens it has computed and those to compute.
    fn batch(sequences: &[(usize, Vec<u32>)]) -> Batch {
        let mut batch = Batch::default();
        for (sequence, (start, tokens)) in sequences.iter().enumerate() {
            let first_row = batch.tokens.len();
            batch.tokens.extend(tokens);
            let rows = first_row..batch.tokens.len();
            let first_block = (sequence * BLOCKS) as u32;
            batch.tables.extend(first_block..first_block + BLOCKS as u32);
            batch.draws.push(Draw {
                row: rows.end - 1,
                rule: DrawRule {
                    temperature: [0.0, 1.0, 0.7][sequence % 3],
                    top_p: [1.0, 0.8][sequence % 2],
                    top_k: 0,
                    min_p: 0.0,
                    repetition_penalty: 1.0,
                },
                uniform: ((sequence + start) as f64 * 0.377).fract(),
                seen: 0..0,
                mask: None,
                top: sequence % 2,
            });
            let table = sequence * BLOCKS..(sequence + 1) * BLOCKS;
            let draw = Some(sequence);
            batch.segments.push(Segment { sequence, rows, start: *start, prompt_tokens: 1, table, draw });
        }
        batch
    }

    /// Steps of 11 sequences that begin with prompts of several lengths.
    fn run(mut aten: Aten) -> Vec<Vec<Drawn>> {
        let lengths = (0..11).map(|sequence| 1 + sequence * 7 % 40);
        let mut sequences: Vec<(usize, Vec<u32>)> =
            lengths.map(|length| (0, (0..length as u32).map(|at| at * 13 % 50).collect())).collect();
        let steps = (0..6).map(|_| {
            let drawn = aten.step(&batch(&sequences)).unwrap().to_vec();
            for ((start, tokens), drawn) in sequences.iter_mut().zip(&drawn) {
                *start += tokens.len();
                *tokens = vec![drawn.token];
            }
            drawn
        });
        steps.collect()
    }

    /// Padding is seen by nobody: neither in what is drawn nor in anyone's keys and values.
    #[test]
    fn padded_steps_draw_the_same() {
        let (model, weights) = small_model();
        let spare = 11 * BLOCKS;
        let engine =
            EngineConfig { backend: Backend::Aten, block_tokens: BLOCK_TOKENS, ..EngineConfig::default() };
        let aten = || {
            let read = |group: usize| Ok(weights.group(group).unwrap());
            let copied = AtenWeights::copy(&model, &read, engine.place()).unwrap();
            Aten::new(&model, copied, &engine, spare + 1).unwrap()
        };
        let steady = || Steady { spare: spare as BlockId, graphs: Graphs::new(Device::Cpu) };
        let expected = run(aten());
        let found = run(Aten { steady: Some(steady()), ..aten() });
        for (expected, found) in expected.iter().flatten().zip(found.iter().flatten()) {
            assert_eq!(found.token, expected.token);
            assert!((found.logprob - expected.logprob).abs() < 1e-5, "{found:?} {expected:?}");
            assert_eq!(found.top.len(), expected.top.len());
        }
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [11; 6]);
        // The same plan for the second time is recorded on a GPU. Where that is refused, as here, steps are
        // computed.
        let mut aten = Aten { steady: Some(steady()), ..aten() };
        let prefill: Vec<(usize, Vec<u32>)> = (0..11).map(|at| (0, vec![at; 20])).collect();
        aten.step(&batch(&prefill)).unwrap();
        let decoding: Vec<(usize, Vec<u32>)> = (0..11).map(|_| (20, vec![1])).collect();
        let [first, second, third] = [(); 3].map(|()| aten.step(&batch(&decoding)).unwrap().to_vec());
        assert_eq!((&first, &first), (&second, &third));
        assert_eq!(aten.replayed_steps(), 0);
        // The first step is a prefill, all others come again, with one more row.
        assert!(steady().padded(&batch(&[(0, vec![1, 2]), (0, vec![1])])).is_none());
        assert_eq!(steady().padded(&batch(&decoding)).unwrap().tokens.len(), 12);
    }

    #[test]
    fn counts_are_rounded_to_four_of_each_power_of_two() {
        let all: std::collections::BTreeSet<usize> = (1..=64).map(rounded_up).collect();
        let expected = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64];
        assert!(all.into_iter().eq(expected));
        assert!((1..10_000).all(|count| (count..=count + count / 4).contains(&rounded_up(count))));
    }
}
