//! Sums of gradients over micro-batches and ranks, in f32.
//!
//! A group's gradient is reduced as soon as the backward pass has left the group, while the next group is
//! computed: at stages 0 and 1 in the last micro-batch of a minibatch, at stages 2 and 3 in every
//! micro-batch, because no rank keeps more than its shard between micro-batches.

use std::collections::VecDeque;

use collective::{Reduce, Work};
use tch::{Device, Kind, Tensor};

use super::shard::Shard;
use crate::config::ZeroStage;
use crate::error::Result;
use crate::host;
use crate::ranks::Ranks;

/// Reductions under way at once where each holds a buffer of the size of its group.
const REDUCTIONS_LIMIT: usize = 2;

/// Elements of one f32 sum of squares: sums of this length stay exact enough whatever the size of the group.
const CPU_CHUNK_ELEMENTS: i64 = 1 << 16;
/// The same on a device, in f64: a copy of so many stays in its cache, and there are few of them to start.
const DEVICE_CHUNK_ELEMENTS: i64 = 1 << 22;

/// Where a micro-batch stands in its minibatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MicrobatchPosition {
    /// More micro-batches add to the gradient.
    MoreFollow,
    /// The gradient is complete on this rank; what has not been reduced is reduced now.
    Last,
}

/// The gradients of one network.
#[derive(Debug)]
pub(crate) struct Gradients {
    stage: ZeroStage,
    device: Device,
    shards: Vec<Shard>,
    /// Stages 0 and 1: `[padded]` on every rank. Stages 2 and 3: `[shard]`.
    sums: Vec<Tensor>,
    under_way: VecDeque<Reduction>,
}

/// A group's gradient that is being added up over the ranks.
#[derive(Debug)]
struct Reduction {
    work: Work,
    group: usize,
    /// This rank's shard of the result, `[shard]`, where it is not reduced in place.
    shard: Option<Tensor>,
    /// What the operation reads until it is over.
    _input: Tensor,
}

/// The gradient of a group in a micro-batch, to be added to.
#[derive(Debug)]
pub(crate) struct OpenGradient {
    group: usize,
    /// The padded sum of the group, `[padded]`.
    buffer: Tensor,
    /// `[numel]`, a view of the buffer.
    pub(crate) sum: Tensor,
}

impl Gradients {
    /// Gradients of zero.
    pub(crate) fn new(shards: &[Shard], stage: ZeroStage, device: Device) -> Self {
        let mut sums = Vec::with_capacity(shards.len());
        for shard in shards {
            let numel = if stage < ZeroStage::Gradients { shard.padded } else { shard.length };
            sums.push(Tensor::zeros([numel], (Kind::Float, device)));
        }
        Self { stage, device, shards: shards.to_vec(), sums, under_way: VecDeque::new() }
    }

    /// Where this micro-batch's gradient of a group is added.
    pub(crate) fn open(&self, group: usize) -> Result<OpenGradient> {
        let shard = &self.shards[group];
        let buffer = match self.stage {
            ZeroStage::Off | ZeroStage::Optimizer => self.sums[group].shallow_clone(),
            ZeroStage::Gradients | ZeroStage::Weights => {
                Tensor::f_zeros([shard.padded], (Kind::Float, self.device))?
            }
        };
        Ok(OpenGradient { group, sum: shard.unpadded(&buffer), buffer })
    }

    /// This micro-batch adds no more to the group: what can be reduced begins to be.
    pub(crate) fn close(
        &mut self,
        ranks: &Ranks,
        open: OpenGradient,
        position: MicrobatchPosition,
    ) -> Result<()> {
        let Some(group) = ranks.group() else { return Ok(()) };
        let OpenGradient { group: index, mut buffer, sum } = open;
        drop(sum);
        let reduction = match self.stage {
            ZeroStage::Off | ZeroStage::Optimizer if position == MicrobatchPosition::MoreFollow => {
                return Ok(());
            }
            ZeroStage::Off => {
                let work = group.start_all_reduce(&mut buffer, Reduce::Sum)?;
                Reduction { work, group: index, shard: None, _input: buffer }
            }
            ZeroStage::Optimizer | ZeroStage::Gradients | ZeroStage::Weights => {
                let mut shard = Tensor::f_empty([self.shards[index].length], (Kind::Float, self.device))?;
                let work = group.start_reduce_scatter(&mut shard, &buffer, Reduce::Sum)?;
                Reduction { work, group: index, shard: Some(shard), _input: buffer }
            }
        };
        self.under_way.push_back(reduction);
        if self.stage >= ZeroStage::Gradients {
            self.wait_until_at_most(REDUCTIONS_LIMIT - 1)?;
        }
        Ok(())
    }

    /// Waits until every reduction is over. After that [`own`](Self::own) is the minibatch's gradient.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.wait_until_at_most(0)
    }

    fn wait_until_at_most(&mut self, limit: usize) -> Result<()> {
        let _guard = tch::no_grad_guard();
        while self.under_way.len() > limit {
            let Some(reduction) = self.under_way.pop_front() else { break };
            host::wait(reduction.work)?;
            let Some(shard) = reduction.shard else { continue };
            let sums = &self.sums[reduction.group];
            match self.stage {
                ZeroStage::Off | ZeroStage::Optimizer => {
                    self.shards[reduction.group].slice(sums).copy_(&shard)
                }
                ZeroStage::Gradients | ZeroStage::Weights => {
                    let _ = sums.shallow_clone().g_add_(&shard);
                }
            }
        }
        Ok(())
    }

    /// The gradient of this rank's shard of a group, `[shard]`.
    pub(crate) fn own(&self, group: usize) -> Tensor {
        match self.stage {
            ZeroStage::Off | ZeroStage::Optimizer => self.shards[group].slice(&self.sums[group]),
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

    /// The Euclidean norm over all groups and ranks, in f64. The device is waited for once.
    pub(crate) fn norm(&self, ranks: &Ranks) -> Result<f64> {
        let _guard = tch::no_grad_guard();
        let most = if self.device == Device::Cpu { CPU_CHUNK_ELEMENTS } else { DEVICE_CHUNK_ELEMENTS };
        let mut squares = Vec::new();
        for group in 0..self.shards.len() {
            squares.extend(self.own(group).split(most, 0).iter().map(sum_of_squares));
        }
        let mut total = Tensor::stack(&squares, 0).sum(Kind::Double);
        if self.stage > ZeroStage::Off {
            ranks.sum_in_place(&mut total)?;
        }
        Ok(host::number(&total).sqrt())
    }
}

/// The sum of the squares of a chunk as an f64 tensor of one number, where the chunk lies.
fn sum_of_squares(chunk: &Tensor) -> Tensor {
    match chunk.device() {
        // Within the processor's cache, without copies; a chunk is short enough for f32.
        Device::Cpu => chunk.dot(chunk).to_kind(Kind::Double),
        _ => chunk.to_kind(Kind::Double).square_().sum(Kind::Double),
    }
}
