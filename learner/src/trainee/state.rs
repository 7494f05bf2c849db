//! What a checkpoint holds of a trainee besides the network's folder.

use tch::{Device, Tensor};

use super::Trainee;
use super::store::Cut;
use crate::ranks::Ranks;

/// Reads a stretch of a group's stored state: `[part]` f32 on the CPU for this rank's cut, `None` where there is none of this
/// name.
pub(crate) type ReadState<'a, E> = &'a mut dyn FnMut(&str, &Cut) -> Result<Option<Tensor>, E>;

impl Trainee {
    /// How many ranks hold different parts of the optimizer's state, and which of them this rank holds.
    pub(crate) fn share(&self, ranks: &Ranks) -> (usize, usize) {
        let cuts = self.network.store.cuts();
        let is_whole = cuts.iter().all(|cut| cut.part == cut.padded);
        if is_whole { (0, 1) } else { (ranks.rank(), ranks.world_size()) }
    }

    /// Optimizer steps done.
    pub(crate) fn steps(&self) -> u64 {
        self.optimizer.steps
    }

    /// A copy on the CPU of this rank's part of the state, by name.
    pub(crate) fn snapshot(&self) -> Vec<(String, Tensor)> {
        let _guard = tch::no_grad_guard();
        let copy = |tensor: &Tensor| tensor.to_device(Device::Cpu).copy();
        let mut state = Vec::new();
        for (group, moments) in self.optimizer.moments.iter().enumerate() {
            let adapter = self.network.lora().is_some().then(|| self.network.store.part(group));
            if let Some(weights) = moments.master.as_ref().or(adapter.as_ref()) {
                state.push((format!("{group}.weights"), copy(weights)));
            }
            state.push((format!("{group}.first"), copy(&moments.first)));
            state.push((format!("{group}.second"), copy(&moments.second)));
        }
        state
    }

    /// Takes over the state of a checkpoint: the network's weights `flats`, `[numel]` each, as its folder has them, the number
    /// of optimizer steps, and what `read` gives. All ranks call it together.
    pub(crate) fn restore<E: From<crate::error::Error>>(
        &mut self,
        ranks: &Ranks,
        (flats, steps): (&[Tensor], u64),
        read: ReadState<'_, E>,
    ) -> Result<(), E> {
        let _guard = tch::no_grad_guard();
        let store = &self.network.store;
        for (group, flat) in flats.iter().enumerate() {
            let cut = store.cuts()[group];
            let mut part = store.part(group);
            if self.network.lora().is_none() {
                store.load(group, flat);
            }
            let moments = &mut self.optimizer.moments[group];
            let stored = read(&format!("{group}.weights"), &cut)?;
            if let Some(weights) = &stored {
                part.copy_(weights);
            }
            if let Some(master) = &mut moments.master {
                master.copy_(stored.as_ref().unwrap_or(&part));
            }
            for (name, target) in [("first", &mut moments.first), ("second", &mut moments.second)] {
                if let Some(stored) = read(&format!("{group}.{name}"), &cut)? {
                    target.copy_(&stored);
                }
            }
        }
        self.optimizer.steps = steps;
        self.gradients.clear();
        store.share(ranks)?;
        Ok(())
    }
}
