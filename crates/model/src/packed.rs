//! A batch of token sequences laid end to end, without padding.
//!
//! Invariants: at least one sequence, no sequence is empty, every token is inside the vocabulary.

use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::rope::{Rope, RopeRows};

/// Why sequences cannot be packed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Nothing to pack.
    #[error("no sequence to pack")]
    NoSequence,
    /// A sequence without tokens.
    #[error("sequence {sequence} is empty")]
    Empty {
        /// Its index in the batch.
        sequence: usize,
    },
    /// A token the network has no embedding for.
    #[error(
        "sequence {sequence}, position {position}: token {token} is outside the vocabulary of {vocab_size}"
    )]
    Token {
        /// The sequence's index in the batch.
        sequence: usize,
        /// The token's index in the sequence.
        position: usize,
        /// The token that has no embedding.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: i64,
    },
}

/// A packed batch.
#[derive(Debug)]
pub struct Packed {
    tokens: Tensor,
    positions: Tensor,
    lengths: Vec<i64>,
    #[cfg(feature = "cuda")]
    ragged: crate::cuda::flash::Ragged,
}

/// The rows of a packed batch whose next token is known, and that token.
#[derive(Debug)]
pub struct NextTokens {
    /// Row indices into the packed batch, `[rows]` i64: every row but the last of each sequence.
    pub rows: Tensor,
    /// The token behind each, `[rows]` i64.
    pub targets: Tensor,
}

impl Packed {
    /// Packs `sequences` for a network with `vocab_size` tokens.
    ///
    /// # Errors
    /// When there is no sequence, one is empty, or a token is outside the vocabulary.
    pub fn new<S: AsRef<[u32]>>(sequences: &[S], vocab_size: i64, device: Device) -> Result<Self, Error> {
        if sequences.is_empty() {
            return Err(Error::NoSequence);
        }
        let total = sequences.iter().map(|sequence| sequence.as_ref().len()).sum();
        let mut tokens: Vec<i64> = Vec::with_capacity(total);
        let mut positions: Vec<i64> = Vec::with_capacity(total);
        let mut lengths = Vec::with_capacity(sequences.len());
        for (index, sequence) in sequences.iter().enumerate() {
            let sequence = sequence.as_ref();
            if sequence.is_empty() {
                return Err(Error::Empty { sequence: index });
            }
            let outside = sequence.iter().position(|token| i64::from(*token) >= vocab_size);
            if let Some(position) = outside {
                return Err(Error::Token {
                    sequence: index,
                    position,
                    token: sequence[position],
                    vocab_size,
                });
            }
            tokens.extend(sequence.iter().map(|token| i64::from(*token)));
            positions.extend((0i64..).take(sequence.len()));
            lengths.push(sequence.len() as i64);
        }
        let [tokens, positions] =
            [tokens, positions].map(|values| Tensor::from_slice(&values).to_device(device));
        Ok(Self {
            tokens,
            positions,
            #[cfg(feature = "cuda")]
            ragged: crate::cuda::flash::Ragged::new(&lengths, device),
            lengths,
        })
    }

    /// The tokens, `[total]` i64.
    pub fn tokens(&self) -> &Tensor {
        &self.tokens
    }

    /// Each token's index in its sequence, `[total]` i64.
    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// Tokens of each sequence.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Where each sequence begins and ends, for attention kernels.
    #[cfg(feature = "cuda")]
    pub(crate) fn ragged(&self) -> &crate::cuda::flash::Ragged {
        &self.ragged
    }

    /// Tokens of all sequences.
    pub fn total(&self) -> i64 {
        self.lengths.iter().sum()
    }

    /// The row of each sequence's last token, `[sequences]` i64: where a reward model's score stands.
    pub fn last_rows(&self) -> Tensor {
        let mut rows = Vec::with_capacity(self.lengths.len());
        let mut end = 0;
        for length in &self.lengths {
            end += length;
            rows.push(end - 1);
        }
        Tensor::from_slice(&rows).to_device(self.tokens.device())
    }

    /// The rows that predict a token of their own sequence, and those tokens; sequence by sequence, `length -
    /// 1` rows each.
    pub fn next_tokens(&self) -> NextTokens {
        let mut start = 0;
        let mut rows = Vec::with_capacity(usize::try_from(self.total()).unwrap_or(0));
        for length in &self.lengths {
            rows.extend(start..start + length - 1);
            start += length;
        }
        let rows = Tensor::from_slice(&rows).to_device(self.tokens.device());
        let targets = self.tokens.index_select(0, &(&rows + 1));
        NextTokens { rows, targets }
    }

    /// The rotations of every row, of element type `kind`.
    pub fn rope(&self, config: &ModelConfig, kind: Kind) -> RopeRows {
        let rope = Rope::new(config, kind, self.tokens.device());
        if !rope.depends_on_length() {
            return rope.rows(&self.positions, &self.positions);
        }
        let lengths = Tensor::from_slice(&self.lengths).to_device(self.tokens.device());
        let of_rows = lengths.repeat_interleave_self_tensor(&lengths, 0, self.total());
        rope.rows(&self.positions, &of_rows)
    }
}
