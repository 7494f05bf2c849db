//! What a checkpoint holds of a model in training besides the network's folder.

use tch::Tensor;

use super::TrainableModel;
use super::shard::Shard;
use crate::error::Result;
use crate::host;
use crate::model_folder::StartModel;
use crate::ranks::Ranks;

/// Reads this rank's shard of a group's stored state by its name: `[shard]` f32 on the CPU, `None` where
/// nothing of this name is stored.
pub(crate) type ReadState<'a> = &'a mut dyn FnMut(&str, &Shard) -> Result<Option<Tensor>>;

/// Which part of the optimizer's state a rank holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateShard {
    /// The part, from 0.
    pub(crate) index: usize,
    /// How many parts there are: the number of ranks, or 1 where every rank holds everything.
    pub(crate) count: usize,
}

impl TrainableModel {
    /// Which part of the optimizer's state this rank holds.
    pub(crate) fn state_shard(&self, ranks: &Ranks) -> StateShard {
        if self.network.store.shards().iter().all(Shard::is_whole) {
            StateShard { index: 0, count: 1 }
        } else {
            StateShard { index: ranks.rank(), count: ranks.world_size() }
        }
    }

    /// Optimizer steps done.
    pub(crate) fn steps(&self) -> u64 {
        self.optimizer.steps
    }

    /// A copy on the CPU of this rank's shard of the state, by name.
    ///
    /// # Errors
    /// No memory for it.
    pub(crate) fn snapshot(&self) -> Result<Vec<(String, Tensor)>> {
        let _guard = tch::no_grad_guard();
        let mut state = Vec::new();
        for (group, moments) in self.optimizer.moments.iter().enumerate() {
            let adapter = self.network.lora().is_some().then(|| self.network.store.own(group));
            if let Some(weights) = moments.master.as_ref().or(adapter.as_ref()) {
                state.push((format!("{group}.weights"), host::copy(weights)?));
            }
            state.push((format!("{group}.first"), host::copy(&moments.first)?));
            state.push((format!("{group}.second"), host::copy(&moments.second)?));
        }
        Ok(state)
    }

    /// Takes over the state of a checkpoint: the network's weights as its folder has them, group by group,
    /// the number of optimizer steps, and what `read` gives. All ranks call it together.
    ///
    /// # Errors
    /// What `read` or the folder cannot read, a rank that is lost.
    pub(crate) fn restore(
        &mut self,
        ranks: &Ranks,
        stored: &StartModel,
        steps: u64,
        read: ReadState<'_>,
    ) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let store = &self.network.store;
        for group in 0..store.shards().len() {
            let shard = store.shards()[group];
            let mut own = store.own(group);
            if self.network.lora().is_none() {
                store.load(group, &stored.group(group)?);
                model::give_back_freed_memory();
            }
            let moments = &mut self.optimizer.moments[group];
            let exact = read(&format!("{group}.weights"), &shard)?;
            if let Some(weights) = &exact {
                own.copy_(weights);
            }
            if let Some(master) = &mut moments.master {
                master.copy_(exact.as_ref().unwrap_or(&own));
            }
            for (name, target) in [("first", &mut moments.first), ("second", &mut moments.second)] {
                if let Some(stored) = read(&format!("{group}.{name}"), &shard)? {
                    target.copy_(&stored);
                }
            }
        }
        self.optimizer.steps = steps;
        self.gradients.clear();
        self.network.gather_updates(ranks)
    }
}
