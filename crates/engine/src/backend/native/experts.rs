//! The experts of a block: which rows run through which, and their sum.
//!
//! A row's outputs are added in the order of the experts, so that its numbers do not depend on the other
//! rows, like everything in this backend.

use std::io;

use model::{Experts, ModelConfig};

use super::machine::{Level, Team};
use super::matrix::Matrix;
use super::number::Number;
use super::product;
use super::product::{Product, Store, multiply};
use super::weights::{ExpertLayer, size};

/// A row that runs through an expert.
#[derive(Debug, Clone, Copy)]
struct Visit {
    row: usize,
    share: f32,
}

/// What is kept between the products of experts.
#[derive(Debug)]
pub(crate) struct ExpertSpace<N: Number> {
    shape: Experts,
    /// Logits of the router, then probabilities.
    routed: Matrix,
    /// By expert, the rows that run through it.
    visits: Vec<Vec<Visit>>,
    /// The inputs of one expert, side by side.
    gathered: Matrix<N::Input>,
    /// Its outputs.
    outputs: Matrix,
}

impl<N: Number> ExpertSpace<N> {
    /// Room for steps of up to `rows` rows, if the network has experts.
    pub(crate) fn new(model: &ModelConfig, rows: usize) -> io::Result<Option<Self>> {
        let Some(shape) = model.experts else { return Ok(None) };
        let hidden = size(model.hidden_size);
        Ok(Some(Self {
            shape,
            routed: Matrix::zeros(rows, size(shape.count))?,
            visits: vec![Vec::new(); size(shape.count)],
            gathered: Matrix::zeros(rows, hidden)?,
            outputs: Matrix::zeros(rows, hidden)?,
        }))
    }

    /// Adds what the experts make of the first `rows` rows of `normed` to those of `stream`; `gated` has room
    /// for what lies between an expert's two products.
    pub(crate) fn run(
        &mut self,
        (team, level): (&mut Team, Level),
        layer: &ExpertLayer<N>,
        (rows, normed): (usize, &Matrix<N::Input>),
        (gated, stream): (&mut Matrix<N::Input>, &mut Matrix),
    ) {
        let router = Product { input: normed, weights: &layer.router, bias: None, store: Store::Assign };
        multiply(team, level, router, self.routed.first_rows(rows));
        self.route(rows);
        for (visits, expert) in self.visits.iter().zip(&layer.experts) {
            if visits.is_empty() {
                continue;
            }
            for (place, visit) in visits.iter().enumerate() {
                self.gathered.row_mut(place).copy_from_slice(normed.row(visit.row));
            }
            let count = visits.len();
            let gate_up = product(&self.gathered, &expert.gate_up, Store::Gate);
            multiply(team, level, gate_up, gated.first_rows(count));
            let down = product(gated, &expert.down, Store::Assign);
            multiply(team, level, down, self.outputs.first_rows(count));
            for (place, visit) in visits.iter().enumerate() {
                for (sum, output) in stream.row_mut(visit.row).iter_mut().zip(self.outputs.row(place)) {
                    *sum += visit.share * output;
                }
            }
        }
    }

    /// Sends each row to its likeliest experts.
    fn route(&mut self, rows: usize) {
        for visits in &mut self.visits {
            visits.clear();
        }
        for row in 0..rows {
            let probabilities = self.routed.row_mut(row);
            softmax(probabilities);
            let mut chosen = Vec::with_capacity(size(self.shape.per_token));
            for _ in 0..self.shape.per_token {
                let likeliest = likeliest(probabilities);
                chosen.push((likeliest, probabilities[likeliest]));
                probabilities[likeliest] = f32::NEG_INFINITY;
            }
            let sum: f32 = chosen.iter().map(|(_, probability)| probability).sum();
            let divisor = if self.shape.normalized { sum } else { 1.0 };
            for (expert, probability) in chosen {
                self.visits[expert].push(Visit { row, share: probability / divisor });
            }
        }
    }
}

fn softmax(logits: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for logit in &mut *logits {
        *logit = (*logit - largest).exp();
        sum += *logit;
    }
    for logit in logits {
        *logit /= sum;
    }
}

/// The first of the largest.
fn likeliest(probabilities: &[f32]) -> usize {
    let mut best = 0;
    for (at, probability) in probabilities.iter().enumerate() {
        if *probability > probabilities[best] {
            best = at;
        }
    }
    best
}
