//! A network's weights on this rank and the forward pass over them.

use std::collections::VecDeque;

use model::{Layout, ModelConfig};
use tch::Tensor;

use super::blocks::{Decoder, Fetched, Keep, Tape};
use super::head::{Head, HeadContext};
use super::lora::Lora;
use super::store::{Fetcher, Store};
use crate::error::Result;
use crate::microbatch::Microbatch;
use crate::ranks::Ranks;

/// Index of the embedding's group. That of a block is one more than its layer; the output group is the last.
pub(crate) const EMBEDDING_GROUP: usize = 0;

/// What does not change while a micro-batch passes.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) config: ModelConfig,
    pub(crate) layout: Layout,
    /// With LoRA: the adapters, and the weights they are added to.
    pub(crate) adapters: Option<Adapters>,
    /// What is trained: the weights, or the adapters' factors.
    pub(crate) store: Store,
}

/// Adapters over frozen weights.
#[derive(Debug)]
pub(crate) struct Adapters {
    pub(crate) lora: Lora,
    /// The weights that do not train.
    pub(crate) frozen: Store,
    /// The weights that the network uses, `[numel]` by group, where every rank has them whole. A group
    /// without adapters shares its storage with the frozen one.
    merged: Option<Vec<Tensor>>,
}

impl Adapters {
    /// Adapters whose values are in `trained`.
    pub(crate) fn new(lora: Lora, frozen: Store, trained: &Store) -> Self {
        let _guard = tch::no_grad_guard();
        let mut adapters = Self { lora, frozen, merged: None };
        let merged = (0..trained.shards().len()).map(|group| {
            let frozen = adapters.frozen.whole(group)?;
            Some(if adapters.lora.trains(group) { frozen.copy() } else { frozen })
        });
        adapters.merged = merged.collect();
        adapters.merge(trained);
        adapters
    }

    /// The adapters have changed.
    fn merge(&self, trained: &Store) {
        let _guard = tch::no_grad_guard();
        for (group, merged) in self.merged.iter().flatten().enumerate() {
            if let (Some(frozen), Some(trained)) = (self.frozen.whole(group), trained.whole(group)) {
                self.lora.merge_into(group, merged, &frozen, &trained);
            }
        }
    }
}

impl Network {
    /// Index of the group of the final norm and the head.
    pub(crate) fn output_group(&self) -> usize {
        self.layout.groups.len() - 1
    }

    /// The adapters, if the weights are frozen.
    pub(crate) fn lora(&self) -> Option<&Lora> {
        self.adapters.as_ref().map(|adapters| &adapters.lora)
    }

    /// Brings what the ranks have changed of what is trained to all of them, and the weights that the network
    /// uses up to date.
    pub(crate) fn gather_updates(&self, ranks: &Ranks) -> Result<()> {
        self.store.gather_updates(ranks)?;
        if let Some(adapters) = &self.adapters {
            adapters.merge(&self.store);
        }
        Ok(())
    }

    /// The groups in the order of a forward pass. A tied head needs the embedding once more.
    fn forward_order(&self) -> Vec<usize> {
        (0..=self.output_group()).chain(self.config.tied().then_some(EMBEDDING_GROUP)).collect()
    }

    /// What its blocks are computed with.
    pub(crate) fn decoder(&self) -> Decoder<'_> {
        Decoder { config: &self.config, lora: self.lora() }
    }

    /// Fetches groups in this order, the first one from now on.
    pub(crate) fn fetch<'a>(&'a self, ranks: &'a Ranks, order: Vec<usize>) -> Result<GroupFetch<'a>> {
        let adapted = match &self.adapters {
            Some(adapters) => {
                let frozen = match adapters.merged {
                    Some(_) => None,
                    None => Some(adapters.frozen.fetcher(ranks, order.iter().copied())?),
                };
                Some(AdaptedFetch { adapters, frozen, order: order.iter().copied().collect() })
            }
            None => None,
        };
        Ok(GroupFetch { adapted, trained: self.store.fetcher(ranks, order)? })
    }

    /// Calls `visit` with the weights of every group, `[numel]`: views where every rank has them whole and
    /// there is no adapter, otherwise gathered and merged, and freed once `visit` has dropped them. All ranks
    /// call it together.
    pub(crate) fn each_group(
        &self,
        ranks: &Ranks,
        mut visit: impl FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let is_gathered = self.store.whole(EMBEDDING_GROUP).is_none();
        let mut fetch = self.fetch(ranks, (0..=self.output_group()).collect())?;
        for _ in 0..=self.output_group() {
            visit(fetch.next()?.used())?;
            if is_gathered {
                // Otherwise the process keeps on the CPU what was gathered, and in the end all of it.
                model::give_back_freed_memory();
            }
        }
        Ok(())
    }

    /// The forward pass up to the head. All ranks call it together, also those without a micro-batch.
    pub(crate) fn forward(
        &self,
        ranks: &Ranks,
        microbatch: Option<Microbatch>,
        keep: Keep,
    ) -> Result<Option<NetworkPass>> {
        let decoder = self.decoder();
        let mut fetch = self.fetch(ranks, self.forward_order())?;
        let embedding = fetch.next()?.used().shallow_clone();
        let mut tape = microbatch.map(|microbatch| Tape::new(decoder, &embedding, microbatch));
        drop(embedding);
        for _ in 0..self.config.layers {
            let weights = fetch.next()?;
            if let Some(tape) = &mut tape {
                tape.forward(decoder, &weights, keep);
            }
        }
        let output = fetch.next()?.used().shallow_clone();
        let tied = if self.config.tied() { Some(fetch.next()?.used().shallow_clone()) } else { None };
        let Some(mut tape) = tape else { return Ok(None) };
        let x = std::mem::replace(&mut tape.x, Tensor::new());
        let context = HeadContext { config: &self.config, microbatch: &tape.microbatch };
        let head = Head::new(context, &x, &output, tied.as_ref());
        Ok(Some(NetworkPass { tape, head }))
    }
}

/// A micro-batch that has passed all blocks.
#[derive(Debug)]
pub(crate) struct NetworkPass {
    pub(crate) tape: Tape,
    pub(crate) head: Head,
}

/// Whole groups, one after the other.
#[derive(Debug)]
pub(crate) struct GroupFetch<'a> {
    adapted: Option<AdaptedFetch<'a>>,
    trained: Fetcher<'a>,
}

/// Frozen weights on their way to those that the network uses.
#[derive(Debug)]
struct AdaptedFetch<'a> {
    adapters: &'a Adapters,
    /// Where they are not merged already.
    frozen: Option<Fetcher<'a>>,
    order: VecDeque<usize>,
}

impl AdaptedFetch<'_> {
    fn next(&mut self, trained: &Tensor) -> Result<Tensor> {
        let group = self.order.pop_front().expect("the order names every fetch");
        match (&mut self.frozen, &self.adapters.merged) {
            (Some(frozen), _) => Ok(self.adapters.lora.merge(group, &frozen.next()?, trained)),
            (None, Some(merged)) => Ok(merged[group].shallow_clone()),
            (None, None) => unreachable!("frozen weights are fetched, or merged already"),
        }
    }
}

impl GroupFetch<'_> {
    /// The next group.
    ///
    /// # Panics
    /// Beyond the end of the order.
    pub(crate) fn next(&mut self) -> Result<Fetched> {
        let trained = self.trained.next()?;
        let merged = self.adapted.as_mut().map(|adapted| adapted.next(&trained)).transpose()?;
        Ok(Fetched { trained, merged })
    }
}
