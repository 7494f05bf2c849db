//! Micro-batches: the sequences that go through the network together, packed without padding.

use std::iter::once;
use std::ops::Range;

use model::{ModelConfig, Packed};
use tch::{Device, Tensor};

use crate::error::{Error, Result};

/// A token sequence and the rows that are wanted of it.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    /// What the network is given.
    tokens: Vec<u32>,
    /// The rows at which the head's outputs are wanted, in order.
    rows: Vec<Range<usize>>,
    /// For log-probs, the token behind each of these rows; otherwise empty.
    targets: Vec<u32>,
    /// Where in the tokens others begin that see nothing of those in front, in order.
    beginnings: Vec<usize>,
}

impl Sequence {
    /// A prompt and its response: wanted are the rows that predict the response's tokens. The last token
    /// predicts nothing and is left out.
    pub(crate) fn response(prompt: &[u32], response: &[u32]) -> Self {
        let tokens = [prompt, &response[..response.len().saturating_sub(1)]].concat();
        let first = prompt.len().saturating_sub(1);
        Self {
            tokens,
            rows: once(first..first + response.len()).collect(),
            targets: response.to_vec(),
            beginnings: Vec::new(),
        }
    }

    /// Tokens of which some stretches are learnt, in order and none of them at the very beginning: wanted are
    /// the rows that predict them. The last learnt token predicts nothing; it and what stands behind it is
    /// left out.
    pub(crate) fn stretches(tokens: &[u32], learnt: &[Range<usize>]) -> Self {
        let end = learnt.last().map_or(0, |last| last.end.saturating_sub(1));
        let targets = learnt.iter().flat_map(|stretch| &tokens[stretch.clone()]).copied().collect();
        let rows =
            learnt.iter().map(|stretch| stretch.start.saturating_sub(1)..stretch.end.saturating_sub(1));
        Self { tokens: tokens[..end].to_vec(), rows: rows.collect(), targets, beginnings: Vec::new() }
    }

    /// The same as several sequences, of which a further one begins at each of these places.
    pub(crate) fn beginning_at(self, beginnings: Vec<usize>) -> Self {
        Self { beginnings, ..self }
    }

    /// What the network is given as sequences of their own.
    fn pieces(&self) -> impl Iterator<Item = &[u32]> {
        let begins = once(0).chain(self.beginnings.iter().copied());
        let ends = self.beginnings.iter().copied().chain(once(self.tokens.len()));
        begins.zip(ends).map(|(begin, end)| &self.tokens[begin..end])
    }

    /// A sequence of which the last row is wanted.
    pub(crate) fn last(tokens: Vec<u32>) -> Self {
        let rows = once(tokens.len().saturating_sub(1)..tokens.len()).collect();
        Self { tokens, rows, targets: Vec::new(), beginnings: Vec::new() }
    }

    /// Number of tokens that the network is given.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Number of rows that are wanted.
    pub(crate) fn wanted(&self) -> usize {
        self.rows.iter().map(Range::len).sum()
    }
}

/// Sequences on the device, packed.
#[derive(Debug)]
pub(crate) struct Microbatch {
    /// The tokens of all sequences, one sequence after the other.
    pub(crate) packed: Packed,
    /// The wanted rows of all of them, `[wanted]` i64.
    pub(crate) rows: Tensor,
    /// The token behind each wanted row, `[wanted]` i64; empty when a scalar head is asked.
    pub(crate) targets: Tensor,
}

impl Microbatch {
    /// Packs sequences; `name` names one for an error.
    ///
    /// # Errors
    /// A sequence without tokens, a token outside the vocabulary.
    pub(crate) fn new(
        sequences: &[&Sequence],
        config: &ModelConfig,
        device: Device,
        name: impl Fn(usize) -> String,
    ) -> Result<Self> {
        let pieces: Vec<(usize, &[u32])> = (0..)
            .zip(sequences)
            .flat_map(|(number, sequence)| sequence.pieces().map(move |piece| (number, piece)))
            .collect();
        let tokens: Vec<&[u32]> = pieces.iter().map(|(_, piece)| *piece).collect();
        let packed = Packed::new(&tokens, config.vocab_size, device).map_err(|source| {
            let number = pieces.get(piece_of(&source)).map_or(0, |(number, _)| *number);
            Error::Sequence { what: name(number), source }
        })?;
        let mut start = 0;
        let mut rows: Vec<i64> = Vec::new();
        let mut targets: Vec<i64> = Vec::new();
        for sequence in sequences {
            rows.extend(sequence.rows.iter().cloned().flatten().map(|row| (start + row) as i64));
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
        Ok(Self {
            packed,
            rows: Tensor::from_slice(&rows).to_device(device),
            targets: Tensor::from_slice(&targets).to_device(device),
        })
    }
}

/// The piece that an error is about.
fn piece_of(error: &model::packed::Error) -> usize {
    match error {
        model::packed::Error::Empty { sequence } | model::packed::Error::Token { sequence, .. } => *sequence,
        model::packed::Error::NoSequence => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_wants_the_rows_that_predict_it() {
        let sequence = Sequence::response(&[5, 6, 7], &[8, 9]);
        assert_eq!(
            (sequence.tokens.as_slice(), sequence.rows.clone()),
            ([5, 6, 7, 8].as_slice(), once(2..4).collect())
        );
        assert_eq!((sequence.tokens(), sequence.wanted()), (4, 2));
        let as_one_turn = Sequence::stretches(&[5, 6, 7, 8, 9], std::slice::from_ref(&(3..5)));
        assert_eq!((as_one_turn.tokens, as_one_turn.rows), (sequence.tokens.clone(), sequence.rows.clone()));
        assert_eq!(as_one_turn.targets, sequence.targets);
        let turns = Sequence::stretches(&[5, 6, 7, 8, 9, 4], &[1..2, 3..5]);
        assert_eq!(turns.tokens, [5, 6, 7, 8]);
        assert_eq!((turns.rows.clone(), turns.targets.clone()), (vec![0..1, 2..4], vec![6, 8, 9]));
        assert_eq!(turns.wanted(), 3);
        let apart = turns.beginning_at(vec![2]);
        assert!(apart.pieces().eq([[5, 6], [7, 8]]));
        assert_eq!((apart.wanted(), apart.tokens()), (3, 4));
        let one = Sequence::response(&[5], &[8]);
        assert_eq!((one.tokens.as_slice(), one.rows), ([5].as_slice(), once(0..1).collect()));
        let last = Sequence::last(vec![5, 6, 7]);
        assert_eq!((last.rows, last.targets.is_empty()), (once(2..3).collect(), true));
    }
}
