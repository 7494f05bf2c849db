//! Flat buffers of a network's groups, whole on every rank or cut into one part a rank.
//!
//! A buffer is padded so that the ranks' parts are equally long. The padding is 0 and stays 0: its gradient is 0, and a
//! weight of 0 neither moves nor decays then.

use std::collections::VecDeque;
use std::time::Duration;

use collective::Work;
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::ranks::Ranks;

/// How one group's buffer is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Elements of the group.
    pub(crate) numel: i64,
    /// Elements of the padded buffer: `part` times the number of parts.
    pub(crate) padded: i64,
    /// Elements of one part.
    pub(crate) part: i64,
    /// Where this rank's part begins.
    pub(crate) start: i64,
}

impl Cut {
    /// Part `index` of `count` equal ones.
    pub(crate) fn new(numel: i64, index: usize, count: usize) -> Self {
        let count = count as i64;
        let part = (numel + count - 1) / count;
        Self { numel, padded: part * count, part, start: part * index as i64 }
    }

    /// This rank's part of a whole padded buffer.
    pub(crate) fn part_of(&self, whole: &Tensor) -> Tensor {
        whole.narrow(0, self.start, self.part)
    }

    /// The group's elements of a whole padded buffer.
    pub(crate) fn unpadded(&self, whole: &Tensor) -> Tensor {
        whole.narrow(0, 0, self.numel)
    }
}

/// A network's buffers.
#[derive(Debug)]
pub(crate) struct Store {
    cuts: Vec<Cut>,
    /// `[padded]`, or `[part]` when cut.
    buffers: Vec<Tensor>,
    /// Whether every rank holds only its part.
    is_cut: bool,
}

impl Store {
    /// Takes the values of `flats`, `[numel]` each.
    pub(crate) fn new(
        cuts: Vec<Cut>,
        flats: &[Tensor],
        (kind, device): (Kind, Device),
        is_cut: bool,
    ) -> Self {
        let empty = |cut: &Cut| Tensor::zeros([if is_cut { cut.part } else { cut.padded }], (kind, device));
        let buffers = cuts.iter().map(empty).collect();
        let store = Self { cuts, buffers, is_cut };
        for (group, flat) in flats.iter().enumerate() {
            store.load(group, flat);
        }
        store
    }

    /// Takes the values of a group from `flat`, `[numel]`.
    pub(crate) fn load(&self, group: usize, flat: &Tensor) {
        let _guard = tch::no_grad_guard();
        let cut = &self.cuts[group];
        let (first, last) = if self.is_cut { (cut.start, cut.start + cut.part) } else { (0, cut.numel) };
        let first = first.min(cut.numel);
        let count = last.min(cut.numel) - first;
        self.buffers[group].narrow(0, 0, count).copy_(&flat.narrow(0, first, count));
    }

    /// How each group's buffer is cut.
    pub(crate) fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    /// This rank's part of a group: a view, `[part]`.
    pub(crate) fn part(&self, group: usize) -> Tensor {
        match self.is_cut {
            true => self.buffers[group].shallow_clone(),
            false => self.cuts[group].part_of(&self.buffers[group]),
        }
    }

    /// Brings the other ranks' parts up to date after each rank has changed its own.
    pub(crate) fn share(&self, ranks: &Ranks) -> Result<()> {
        let Some(group) = ranks.group() else { return Ok(()) };
        let not_shared = self.is_cut || self.cuts.iter().all(|cut| cut.part == cut.padded);
        if not_shared {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let started = self.cuts.iter().zip(&self.buffers).map(|(cut, buffer)| {
            let own = cut.part_of(buffer).copy();
            group.start_all_gather_into(&mut buffer.shallow_clone(), &own)
        });
        for work in started.collect::<std::result::Result<Vec<Work>, _>>()? {
            work.wait(Duration::MAX)?;
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
    under_way: Option<(Tensor, Work)>,
}

impl Fetcher<'_> {
    /// The next group's weights, `[numel]`.
    ///
    /// # Panics
    /// Beyond the end of the order.
    pub(crate) fn next(&mut self) -> Result<Tensor> {
        let group = self.order.pop_front().expect("the order names every fetch");
        let cut = self.store.cuts[group];
        if !self.store.is_cut {
            return Ok(cut.unpadded(&self.store.buffers[group]));
        }
        let (buffer, work) = self.under_way.take().expect("the next group is always under way");
        self.start_next()?;
        work.wait(Duration::MAX)?;
        Ok(cut.unpadded(&buffer))
    }

    fn start_next(&mut self) -> Result<()> {
        let Some(group) = self.order.front().copied().filter(|_| self.store.is_cut) else { return Ok(()) };
        let part = &self.store.buffers[group];
        let mut whole = Tensor::f_empty([self.store.cuts[group].padded], (part.kind(), part.device()))?;
        let group = self.ranks.group().expect("weights are cut only among the ranks of a group");
        let work = group.start_all_gather_into(&mut whole, part)?;
        self.under_way = Some((whole, work));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_buffer_and_are_equally_long() {
        for numel in [0, 1, 7, 8, 9] {
            for count in 1..5 {
                let cuts: Vec<Cut> = (0..count).map(|index| Cut::new(numel, index, count)).collect();
                let mut end = 0;
                for cut in &cuts {
                    assert_eq!((cut.start, cut.part, cut.padded), (end, cuts[0].part, cuts[0].padded));
                    end += cut.part;
                }
                assert!(end == cuts[0].padded && end >= numel && end - numel < count as i64);
            }
        }
    }

    #[test]
    fn a_cut_store_holds_its_part_and_zeros_behind_the_end() {
        let flat = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0]);
        let cut = Cut::new(5, 1, 2);
        let store = Store::new(vec![cut], &[flat], (Kind::Float, Device::Cpu), true);
        assert_eq!(store.part(0), Tensor::from_slice(&[4.0f32, 5.0, 0.0]));
    }
}
