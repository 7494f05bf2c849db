//! One step's work as a backend sees it: rows of tokens that belong to sequences, and which rows draw.

use std::ops::Range;

use types::Sampling;

use super::blocks::BlockId;
use super::request::TokenLogprob;

/// The work of one step. Rows of one segment lie side by side, and so do their positions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Batch {
    /// Blocks whose contents are copied before anything else: from, to.
    pub(crate) copies: Vec<(BlockId, BlockId)>,
    /// The tokens to compute, segment by segment.
    pub(crate) tokens: Vec<u32>,
    /// One for each sequence that takes part.
    pub(crate) segments: Vec<Segment>,
    /// The tables of all segments, one after the other.
    pub(crate) tables: Vec<BlockId>,
    /// The rows that draw a token, in the order of segments.
    pub(crate) draws: Vec<Draw>,
    /// The seen tokens of all draws, one after the other.
    pub(crate) seen: Vec<u32>,
    /// The masks of draws that have one, one after the other.
    pub(crate) masks: Vec<u32>,
}

/// The rows of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    /// Its place among the running sequences.
    pub(crate) sequence: usize,
    /// Its rows in the batch.
    pub(crate) rows: Range<usize>,
    /// Position of its first row in its sequence: the cache holds everything in front of it.
    pub(crate) start: usize,
    /// Tokens of the sequence's prompt: rotations that depend on the length take the longer of this and the
    /// position.
    pub(crate) prompt_tokens: usize,
    /// Its blocks in `tables`.
    pub(crate) table: Range<usize>,
    /// Its draw in `draws`, if its last row draws.
    pub(crate) draw: Option<usize>,
}

/// One token to draw.
#[derive(Debug, Clone)]
pub(crate) struct Draw {
    /// The row in the batch behind which it is drawn.
    pub(crate) row: usize,
    /// How it is drawn.
    pub(crate) rule: DrawRule,
    /// The random number, uniform in [0, 1).
    pub(crate) uniform: f64,
    /// The tokens that the repetition penalty applies to, in `seen`.
    pub(crate) seen: Range<usize>,
    /// Its mask in `masks`, if not every token may be drawn: bit `t % 32` of word `t / 32` stands for token
    /// `t`.
    pub(crate) mask: Option<Range<usize>>,
    /// How many of the most probable tokens to report.
    pub(crate) top: usize,
}

/// The numbers of [`Sampling`] that decide a draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct DrawRule {
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) top_k: usize,
    pub(crate) min_p: f32,
    pub(crate) repetition_penalty: f32,
}

impl DrawRule {
    pub(crate) fn new(sampling: &Sampling) -> Self {
        Self {
            temperature: sampling.temperature(),
            top_p: sampling.top_p(),
            top_k: sampling.top_k() as usize,
            min_p: sampling.min_p(),
            repetition_penalty: sampling.repetition_penalty(),
        }
    }

    /// Whether the most probable token is taken.
    pub(crate) fn greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether some tokens cannot be drawn.
    pub(crate) fn truncates(&self) -> bool {
        !self.greedy() && (self.top_p < 1.0 || self.top_k > 0 || self.min_p > 0.0)
    }
}

/// A drawn token.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token: u32,
    /// Under the untruncated distribution at the temperature (1 when it is 0).
    pub(crate) logprob: f32,
    /// Mass of the tokens that could be drawn; 1 when nothing truncates and there is no mask.
    pub(crate) surviving_mass: f32,
    /// The most probable tokens.
    pub(crate) top: Vec<TokenLogprob>,
}

impl Batch {
    pub(crate) fn clear(&mut self) {
        self.copies.clear();
        self.tokens.clear();
        self.segments.clear();
        self.tables.clear();
        self.draws.clear();
        self.seen.clear();
        self.masks.clear();
    }

    /// The mask of a draw, if it has one.
    pub(crate) fn mask(&self, draw: &Draw) -> Option<&[u32]> {
        draw.mask.clone().map(|range| &self.masks[range])
    }

    /// The blocks of a segment.
    pub(crate) fn table(&self, segment: &Segment) -> &[BlockId] {
        &self.tables[segment.table.clone()]
    }
}

/// A mask of draws that keeps some tokens from being drawn.
pub(crate) fn mask_without(tokens: &[u32], vocab_size: usize) -> Vec<u32> {
    let mut mask = vec![u32::MAX; vocab_size.div_ceil(u32::BITS as usize)];
    for token in tokens.iter().map(|token| *token as usize).filter(|token| *token < vocab_size) {
        mask[token / 32] &= !(1 << (token % 32));
    }
    mask
}

/// The tokens of a vocabulary that a mask keeps from being drawn, in ascending order.
pub(crate) fn masked_tokens(mask: &[u32], vocab_size: usize) -> impl Iterator<Item = usize> {
    let words = mask.iter().enumerate().filter(|(_, word)| **word != u32::MAX);
    let bits = words
        .flat_map(|(at, word)| (0..32).filter(move |bit| word >> bit & 1 == 0).map(move |bit| 32 * at + bit));
    bits.take_while(move |token| *token < vocab_size)
}
