//! Rotary position embedding: one row of cosines and sines for each row of a step.

use model::{ModelConfig, Rope};
use tch::{Device, Kind, Tensor};

use super::math::fma;
use crate::batch::Batch;

/// Makes the rows, from the model's own tables.
#[derive(Debug)]
pub(crate) struct Rotations {
    rope: Rope,
    /// Positions whose rotation does not depend on the sequence's length.
    fixed: usize,
    rows: RowRotations,
}

/// The angles' cosines and sines for the rows of a step.
#[derive(Debug)]
pub(crate) struct RowRotations {
    head_dim: usize,
    /// `[positions, head_dim]`: the cosines of half a head, then the sines. Grows as positions come up.
    table: Vec<f32>,
    /// The same for rows of the step that depend on their sequence's length.
    special: Vec<f32>,
    /// For each row of the step where its numbers lie.
    places: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Table(usize),
    Special(usize),
}

impl Rotations {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let rope = Rope::new(config, Kind::Float, Device::Cpu);
        let fixed = if rope.depends_on_length() { size(config.max_positions) } else { usize::MAX };
        let head_dim = size(config.head_dim);
        let rows = RowRotations { head_dim, table: Vec::new(), special: Vec::new(), places: Vec::new() };
        Self { rope, fixed, rows }
    }

    /// Looks up the rows of a step.
    pub(crate) fn prepare(&mut self, batch: &Batch) {
        let head_dim = self.rows.head_dim;
        self.rows.places.clear();
        let last = batch.segments.iter().map(|segment| segment.start + segment.rows.len()).max().unwrap_or(0);
        let have = self.rows.table.len() / head_dim;
        let wanted = last.min(self.fixed);
        if wanted > have {
            let positions: Vec<i64> =
                (have..wanted.max(2 * have).min(self.fixed)).map(|at| at as i64).collect();
            let more = self.compute(&positions, &positions);
            self.rows.table.extend(more);
        }
        let (mut positions, mut lengths) = (Vec::new(), Vec::new());
        for segment in &batch.segments {
            for position in (segment.start..).take(segment.rows.len()) {
                let length = segment.prompt_tokens.max(position + 1);
                if length <= self.fixed {
                    self.rows.places.push(Place::Table(position * head_dim));
                } else {
                    self.rows.places.push(Place::Special(positions.len() * head_dim));
                    positions.push(position as i64);
                    lengths.push(length as i64);
                }
            }
        }
        if !positions.is_empty() {
            self.rows.special = self.compute(&positions, &lengths);
        }
    }

    /// Cosines and sines: what rotating the vector of ones in the first half and zeros in the second gives.
    fn compute(&self, positions: &[i64], lengths: &[i64]) -> Vec<f32> {
        let (rows, half) = (positions.len() as i64, self.rows.head_dim as i64 / 2);
        let rotations = self.rope.rows(&Tensor::from_slice(positions), &Tensor::from_slice(lengths));
        let options = (Kind::Float, Device::Cpu);
        let unit = Tensor::cat(
            &[Tensor::ones([rows, 1, half], options), Tensor::zeros([rows, 1, half], options)],
            2,
        );
        let rotated = rotations.rotate(&unit).contiguous();
        let mut numbers = vec![0.0; rotated.numel()];
        let count = numbers.len();
        rotated.copy_data(&mut numbers, count);
        numbers
    }

    /// The rows of the last step that was prepared.
    pub(crate) fn rows(&self) -> &RowRotations {
        &self.rows
    }
}

impl RowRotations {
    /// Cosines and sines of a row of the step, `[head_dim / 2]` each.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> (&[f32], &[f32]) {
        let numbers = match self.places[row] {
            Place::Table(start) => &self.table[start..start + self.head_dim],
            Place::Special(start) => &self.special[start..start + self.head_dim],
        };
        numbers.split_at(self.head_dim / 2)
    }
}

fn size(value: i64) -> usize {
    usize::try_from(value).expect("the model's configuration is validated")
}

/// What turns a head's part of the projections into a query or key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadTransform<'a> {
    /// Weight of the head's RMS norm, if the model has one.
    pub(crate) norm: Option<&'a [f32]>,
    /// Added to the mean square.
    pub(crate) eps: f32,
    /// Multiplies the result.
    pub(crate) scale: f32,
}

impl HeadTransform<'_> {
    /// Normalises, rotates and scales `head` into `result`, both `[head_dim]`.
    #[inline(always)]
    pub(crate) fn apply<const FUSED: bool>(
        &self,
        head: &[f32],
        (cos, sin): (&[f32], &[f32]),
        result: &mut [f32],
    ) {
        let half = head.len() / 2;
        let (low, high) = head.split_at(half);
        let (result_low, result_high) = result.split_at_mut(half);
        let factor = self.norm.map_or(1.0, |_| super::norm::inverse_rms(head, self.eps));
        for at in 0..half {
            let (mut a, mut b) = (low[at] * factor, high[at] * factor);
            if let Some(norm) = self.norm {
                a *= norm[at];
                b *= norm[at + half];
            }
            result_low[at] = fma::<FUSED>(a, cos[at], -(b * sin[at])) * self.scale;
            result_high[at] = fma::<FUSED>(b, cos[at], a * sin[at]) * self.scale;
        }
    }
}
