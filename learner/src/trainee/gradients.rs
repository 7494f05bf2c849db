//! Sums of gradients over micro-batches and ranks, in f32.
//!
//! A group's gradient is reduced as soon as the backward pass has left the group, while the next group is computed: at
//! stages 0 and 1 in the last micro-batch of a minibatch, at stages 2 and 3 in every micro-batch, because no rank keeps
//! more than its part between micro-batches.

use std::collections::VecDeque;
use std::time::Duration;

use collective::{Reduce, Work};
use tch::{Device, Kind, Tensor};

use super::store::Cut;
use crate::config::ZeroStage;
use crate::error::Result;
use crate::ranks::Ranks;

/// Reductions under way at once where each holds a buffer of the size of its group.
const MOST_UNDER_WAY: usize = 2;

/// The gradients of one network.
#[derive(Debug)]
pub(crate) struct Gradients {
    stage: ZeroStage,
    device: Device,
    cuts: Vec<Cut>,
    /// Stages 0 and 1: `[padded]` on every rank. Stages 2 and 3: `[part]`.
    sums: Vec<Tensor>,
    under_way: VecDeque<Reduction>,
}

#[derive(Debug)]
struct Reduction {
    work: Work,
    group: usize,
    /// This rank's part of the result, `[part]`, where it is not reduced in place.
    part: Option<Tensor>,
    /// What is being read.
    _input: Tensor,
}

/// The gradient of a group in a micro-batch, to be added to.
#[derive(Debug)]
pub(crate) struct Open {
    group: usize,
    /// `[padded]`.
    buffer: Tensor,
    /// `[numel]`, a view of the buffer.
    pub(crate) sum: Tensor,
}

impl Gradients {
    /// Zeros.
    pub(crate) fn new(cuts: &[Cut], stage: ZeroStage, device: Device) -> Self {
        let zeros = |cut: &Cut| {
            let numel = if stage < ZeroStage::Gradients { cut.padded } else { cut.part };
            Tensor::zeros([numel], (Kind::Float, device))
        };
        let sums = cuts.iter().map(zeros).collect();
        Self { stage, device, cuts: cuts.to_vec(), sums, under_way: VecDeque::new() }
    }

    /// Where this micro-batch's gradient of a group is added.
    pub(crate) fn open(&self, group: usize) -> Result<Open> {
        let cut = &self.cuts[group];
        let buffer = match self.stage {
            ZeroStage::Off | ZeroStage::Optimizer => self.sums[group].shallow_clone(),
            ZeroStage::Gradients | ZeroStage::Weights => {
                Tensor::f_zeros([cut.padded], (Kind::Float, self.device))?
            }
        };
        Ok(Open { group, sum: cut.unpadded(&buffer), buffer })
    }

    /// This micro-batch adds no more to the group. `last` says that the minibatch does not either.
    pub(crate) fn close(&mut self, ranks: &Ranks, open: Open, last: bool) -> Result<()> {
        let Some(group) = ranks.group() else { return Ok(()) };
        let Open { group: index, mut buffer, sum } = open;
        drop(sum);
        let reduction = match self.stage {
            ZeroStage::Off | ZeroStage::Optimizer if !last => return Ok(()),
            ZeroStage::Off => {
                let work = group.start_all_reduce(&mut buffer, Reduce::Sum)?;
                Reduction { work, group: index, part: None, _input: buffer }
            }
            ZeroStage::Optimizer | ZeroStage::Gradients | ZeroStage::Weights => {
                let mut part = Tensor::f_empty([self.cuts[index].part], (Kind::Float, self.device))?;
                let work = group.start_reduce_scatter(&mut part, &buffer, Reduce::Sum)?;
                Reduction { work, group: index, part: Some(part), _input: buffer }
            }
        };
        self.under_way.push_back(reduction);
        if self.stage >= ZeroStage::Gradients {
            self.wait_until(MOST_UNDER_WAY - 1)?;
        }
        Ok(())
    }

    /// Waits until every reduction is over. After that [`part`](Self::part) is the minibatch's gradient.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.wait_until(0)
    }

    fn wait_until(&mut self, most: usize) -> Result<()> {
        let _guard = tch::no_grad_guard();
        while self.under_way.len() > most {
            let Some(reduction) = self.under_way.pop_front() else { break };
            reduction.work.wait(Duration::MAX)?;
            let Some(part) = reduction.part else { continue };
            let sums = &self.sums[reduction.group];
            match self.stage {
                ZeroStage::Off | ZeroStage::Optimizer => {
                    self.cuts[reduction.group].part_of(sums).copy_(&part)
                }
                ZeroStage::Gradients | ZeroStage::Weights => {
                    let _ = sums.shallow_clone().g_add_(&part);
                }
            }
        }
        Ok(())
    }

    /// The gradient of this rank's part of a group, `[part]`.
    pub(crate) fn part(&self, group: usize) -> Tensor {
        match self.stage {
            ZeroStage::Off | ZeroStage::Optimizer => self.cuts[group].part_of(&self.sums[group]),
            ZeroStage::Gradients | ZeroStage::Weights => self.sums[group].shallow_clone(),
        }
    }

    /// Forgets everything, for the next minibatch.
    pub(crate) fn clear(&mut self) {
        let _guard = tch::no_grad_guard();
        for sum in &mut self.sums {
            let _ = sum.zero_();
        }
    }

    /// The Euclidean norm over all groups and ranks, in f64.
    pub(crate) fn norm(&self, ranks: &Ranks) -> Result<f64> {
        let _guard = tch::no_grad_guard();
        let mut squares = [0.0];
        for group in 0..self.cuts.len() {
            // In chunks, so that f32 sums stay exact enough whatever the size of the group.
            for chunk in self.part(group).split(1 << 16, 0) {
                squares[0] += chunk.dot(&chunk).double_value(&[]);
            }
        }
        if self.stage > ZeroStage::Off {
            ranks.sum(&mut squares)?;
        }
        Ok(squares[0].sqrt())
    }
}
