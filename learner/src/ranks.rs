//! The ranks that train together: a process group, or this rank alone.
//!
//! Invariant: every rank makes the same calls in the same order. What a call depends on is therefore computed
//! from data that all ranks have, never from a rank's own part.

use collective::{ProcessGroup, Reduce};
use tch::{Device, Tensor};

use crate::error::{Error, Result};
use crate::host;

/// This rank and the others.
#[derive(Debug)]
pub struct Ranks {
    group: Option<ProcessGroup>,
}

impl Ranks {
    /// The members of a group; without one, this rank alone.
    pub(crate) fn of(group: Option<ProcessGroup>) -> Self {
        Self { group }
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.group.as_ref().map_or(0, ProcessGroup::rank)
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.group.as_ref().map_or(1, ProcessGroup::world_size)
    }

    /// The group, unless this rank is alone.
    pub(crate) fn group(&self) -> Option<&ProcessGroup> {
        self.group.as_ref()
    }

    fn device(&self) -> Device {
        self.group.as_ref().map_or(Device::Cpu, ProcessGroup::device)
    }

    /// Adds up numbers over the ranks, place by place, in f64.
    pub(crate) fn sum(&self, numbers: &mut [f64]) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let mut tensor = Tensor::from_slice(numbers).to_device(self.device());
        group.all_reduce(&mut tensor, Reduce::Sum)?;
        host::read_into(&tensor, numbers)
    }

    /// Adds up a tensor over the ranks, where it lies.
    pub(crate) fn sum_in_place(&self, numbers: &mut Tensor) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        Ok(group.all_reduce(numbers, Reduce::Sum)?)
    }

    /// Fills a slice of which each rank computed some places and left 0 in the others.
    pub(crate) fn complete(&self, numbers: &mut [f32]) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let mut tensor = Tensor::from_slice(numbers).to_device(self.device());
        group.all_reduce(&mut tensor, Reduce::Sum)?;
        host::read_into(&tensor, numbers)
    }

    /// Rank 0's bytes, on every rank.
    pub(crate) fn of_first(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        if let Some(group) = &self.group {
            group.broadcast_bytes(&mut bytes, 0)?;
        }
        Ok(bytes)
    }

    /// Every rank's bytes, in order of rank, on every rank.
    pub(crate) fn gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let Some(group) = &self.group else { return Ok(vec![bytes]) };
        let mut all = Vec::with_capacity(group.world_size());
        for root in 0..group.world_size() {
            let mut part = if root == group.rank() { bytes.clone() } else { Vec::new() };
            group.broadcast_bytes(&mut part, root)?;
            all.push(part);
        }
        Ok(all)
    }

    /// Checks that every rank has the same bytes. All ranks learn of a difference.
    pub(crate) fn agree(&self, what: &str, bytes: &[u8]) -> Result<()> {
        let first = self.of_first(bytes.to_vec())?;
        let mut sums = if first == bytes { [0.0, 0.0] } else { [1.0, self.rank() as f64] };
        self.sum(&mut sums)?;
        let [count, rank_sum] = sums;
        if count == 0.0 {
            return Ok(());
        }
        Err(Error::Disagreement { rank: (rank_sum / count) as usize, what: what.to_owned() })
    }
}
