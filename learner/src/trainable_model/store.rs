//! Flat buffers of a network's groups, whole on every rank or one shard a rank.

use std::collections::VecDeque;

use collective::Work;
use tch::{Device, Kind, Tensor};

use super::shard::Shard;
use crate::error::Result;
use crate::host;
use crate::ranks::Ranks;

/// What a rank holds of every buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// All of it, as every other rank.
    Replicated,
    /// Its shard only; whoever needs the whole buffer gathers it.
    Sharded,
}

/// A network's buffers.
#[derive(Debug)]
pub(crate) struct Store {
    shards: Vec<Shard>,
    /// `[padded]` where replicated, `[shard]` where sharded.
    buffers: Vec<Tensor>,
    placement: Placement,
}

impl Store {
    /// Buffers of zeros, which [`load`](Self::load) fills.
    pub(crate) fn zeros(shards: Vec<Shard>, kind: Kind, device: Device, placement: Placement) -> Self {
        let mut buffers = Vec::with_capacity(shards.len());
        for shard in &shards {
            let numel = match placement {
                Placement::Replicated => shard.padded,
                Placement::Sharded => shard.length,
            };
            buffers.push(Tensor::zeros([numel], (kind, device)));
        }
        Self { shards, buffers, placement }
    }

    /// Takes the values of a group from `flat`, `[numel]`.
    pub(crate) fn load(&self, group: usize, flat: &Tensor) {
        let _guard = tch::no_grad_guard();
        let shard = &self.shards[group];
        let (first, last) = match self.placement {
            Placement::Replicated => (0, shard.numel),
            Placement::Sharded => (shard.start, shard.start + shard.length),
        };
        let first = first.min(shard.numel);
        let count = last.min(shard.numel) - first;
        self.buffers[group].narrow(0, 0, count).copy_(&flat.narrow(0, first, count));
    }

    /// This rank's shard of each group.
    pub(crate) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// A group's values where every rank has all of them: a view, `[numel]`.
    pub(crate) fn whole(&self, group: usize) -> Option<Tensor> {
        let is_whole = self.placement == Placement::Replicated;
        is_whole.then(|| self.shards[group].unpadded(&self.buffers[group]))
    }

    /// This rank's shard of a group's values: a view, `[shard]`.
    pub(crate) fn own(&self, group: usize) -> Tensor {
        match self.placement {
            Placement::Replicated => self.shards[group].slice(&self.buffers[group]),
            Placement::Sharded => self.buffers[group].shallow_clone(),
        }
    }

    /// Brings the other ranks' shards up to date after each rank has changed its own.
    pub(crate) fn gather_updates(&self, ranks: &Ranks) -> Result<()> {
        let Some(group) = ranks.group() else { return Ok(()) };
        let holds_no_other = self.placement == Placement::Sharded || self.shards.iter().all(Shard::is_whole);
        if holds_no_other {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let mut under_way: Vec<Work> = Vec::with_capacity(self.buffers.len());
        for (shard, buffer) in self.shards.iter().zip(&self.buffers) {
            let own = shard.slice(buffer).copy();
            under_way.push(group.start_all_gather_into(&mut buffer.shallow_clone(), &own)?);
        }
        for work in under_way {
            host::wait(work)?;
        }
        Ok(())
    }

    /// Fetches groups in the given order: the first from now on, and the next while one is used.
    pub(crate) fn fetcher<'a>(
        &'a self,
        ranks: &'a Ranks,
        order: impl IntoIterator<Item = usize>,
    ) -> Result<Fetcher<'a>> {
        let mut fetcher = Fetcher { store: self, ranks, order: order.into_iter().collect(), under_way: None };
        fetcher.start_next()?;
        Ok(fetcher)
    }
}

/// Whole groups, one after the other. A group that was gathered is freed when the caller drops it.
#[derive(Debug)]
pub(crate) struct Fetcher<'a> {
    store: &'a Store,
    ranks: &'a Ranks,
    order: VecDeque<usize>,
    under_way: Option<Gather>,
}

/// A group that is being gathered.
#[derive(Debug)]
struct Gather {
    /// `[padded]`; its values are there once the work is over.
    buffer: Tensor,
    work: Work,
}

impl Fetcher<'_> {
    /// The next group's weights, `[numel]`.
    ///
    /// # Panics
    /// Beyond the end of the order.
    pub(crate) fn next(&mut self) -> Result<Tensor> {
        let group = self.order.pop_front().expect("the order names every fetch");
        let shard = self.store.shards[group];
        if self.store.placement == Placement::Replicated {
            return Ok(shard.unpadded(&self.store.buffers[group]));
        }
        let Gather { buffer, work } = self.under_way.take().expect("the next group is always under way");
        self.start_next()?;
        host::wait(work)?;
        Ok(shard.unpadded(&buffer))
    }

    fn start_next(&mut self) -> Result<()> {
        let is_sharded = self.store.placement == Placement::Sharded;
        let Some(group) = self.order.front().copied().filter(|_| is_sharded) else { return Ok(()) };
        let own = &self.store.buffers[group];
        let mut buffer = Tensor::f_empty([self.store.shards[group].padded], (own.kind(), own.device()))?;
        let group = self.ranks.group().expect("weights are sharded only among the ranks of a group");
        let work = group.start_all_gather_into(&mut buffer, own)?;
        self.under_way = Some(Gather { buffer, work });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sharded_store_holds_its_shard_and_zeros_behind_the_end() {
        let flat = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0]);
        let shard = Shard::new(5, 1, 2);
        let store = Store::zeros(vec![shard], Kind::Float, Device::Cpu, Placement::Sharded);
        store.load(0, &flat);
        assert_eq!(store.own(0), Tensor::from_slice(&[4.0f32, 5.0, 0.0]));
    }
}
