//! The rows of a step in the order in which they are computed.
//!
//! Rows are independent but for attention, which wants sequences of like lengths side by side. So the order
//! is the backend's own: first the sequences that decode (one row each), the longest first, then the longer
//! stretches.

use std::cmp::Reverse;

use model::{Rope, RopeRows};
use tch::Tensor;

use super::cache::Shape;
use super::upload::{Arrived, Part, Upload};
use crate::batch::{Batch, Segment};

/// The segments of a step in order.
#[derive(Debug)]
pub(crate) struct Order<'a> {
    pub(crate) batch: &'a Batch,
    /// Of one row each; their lengths fall.
    pub(crate) decoding: Vec<&'a Segment>,
    /// Of several rows each.
    pub(crate) stretches: Vec<&'a Segment>,
}

/// Tokens of a segment's sequence once the step is computed.
pub(crate) fn length(segment: &Segment) -> usize {
    segment.start + segment.rows.len()
}

/// Position of the first key that any row of a segment sees; a row sees `window` keys, its own included.
pub(crate) fn first_visible(segment: &Segment, window: Option<i64>) -> usize {
    let before = window.and_then(|window| usize::try_from(window - 1).ok());
    before.map_or(0, |before| segment.start.saturating_sub(before))
}

impl<'a> Order<'a> {
    pub(crate) fn new(batch: &'a Batch) -> Self {
        let (mut decoding, stretches): (Vec<&Segment>, Vec<&Segment>) =
            batch.segments.iter().partition(|segment| segment.rows.len() == 1);
        decoding.sort_by_key(|segment| Reverse(segment.start));
        Self { batch, decoding, stretches }
    }

    pub(crate) fn segments(&self) -> impl Iterator<Item = &'a Segment> {
        self.decoding.iter().chain(&self.stretches).copied()
    }

    /// For each row of the batch its place in this order.
    pub(crate) fn places(&self) -> Vec<i64> {
        let mut places = vec![0; self.batch.tokens.len()];
        let rows = self.segments().flat_map(|segment| segment.rows.clone());
        for (place, row) in (0..).zip(rows) {
            places[row] = place;
        }
        places
    }
}

/// What the device is told about the rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Rows {
    tokens: Part,
    slots: Part,
    positions: Part,
    /// The lengths that rotations go by.
    lengths: Part,
}

/// The same on the device.
#[derive(Debug)]
pub(crate) struct PlacedRows {
    /// `[rows]` i64.
    pub(crate) tokens: Tensor,
    /// Where keys and values go, `[rows]` i64.
    pub(crate) slots: Tensor,
    pub(crate) rope: RopeRows,
}

impl Rows {
    pub(crate) fn new(order: &Order, shape: &Shape, upload: &mut Upload) -> Self {
        let batch = order.batch;
        let tokens = order.segments().flat_map(|segment| &batch.tokens[segment.rows.clone()]);
        let positions = |segment: &Segment| segment.start..length(segment);
        let rotated = |segment: &Segment| {
            let prompt = segment.prompt_tokens;
            positions(segment).map(move |position| prompt.max(position + 1) as i64)
        };
        let slots = |segment| shape.slots(batch, segment, positions(segment));
        Self {
            tokens: upload.integers(tokens.map(|token| i64::from(*token))),
            slots: upload.integers(order.segments().flat_map(slots)),
            positions: upload.integers(order.segments().flat_map(positions).map(|at| at as i64)),
            lengths: upload.integers(order.segments().flat_map(rotated)),
        }
    }

    pub(crate) fn place(&self, rope: &Rope, arrived: &Arrived) -> PlacedRows {
        let (positions, lengths) = (arrived.integers(self.positions), arrived.integers(self.lengths));
        PlacedRows {
            tokens: arrived.integers(self.tokens),
            slots: arrived.integers(self.slots),
            rope: rope.rows(&positions, &lengths),
        }
    }
}
