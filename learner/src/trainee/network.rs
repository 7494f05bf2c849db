//! A network's weights on this rank and the forward pass over them.

use model::{Layout, ModelConfig};
use tch::Tensor;

use super::blocks::{Decoder, Fetched, Keep, Tape};
use super::head::Head;
use super::lora::Lora;
use super::store::{Fetcher, Store};
use crate::error::Result;
use crate::microbatch::Microbatch;
use crate::ranks::Ranks;

/// What does not change while a micro-batch passes.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) config: ModelConfig,
    pub(crate) layout: Layout,
    /// With adapters: how they change the frozen weights, and those.
    pub(crate) adapters: Option<(Lora, Store)>,
    /// What is trained: the weights, or the adapters.
    pub(crate) store: Store,
}

impl Network {
    /// Index of the output group; that of the embedding is 0 and that of a block one more than its layer.
    pub(crate) fn output(&self) -> usize {
        self.layout.groups.len() - 1
    }

    /// The adapters, if the weights are frozen.
    pub(crate) fn lora(&self) -> Option<&Lora> {
        self.adapters.as_ref().map(|(lora, _)| lora)
    }

    /// The groups in the order of a forward pass.
    fn forward_order(&self) -> Vec<usize> {
        (0..=self.output()).chain(self.config.tied().then_some(0)).collect()
    }

    /// What its blocks are computed with.
    pub(crate) fn decoder(&self) -> Decoder<'_> {
        Decoder { config: &self.config, lora: self.lora() }
    }

    /// Fetches groups in this order, the first one from now on.
    pub(crate) fn fetch<'a>(&'a self, ranks: &'a Ranks, order: Vec<usize>) -> Result<Fetch<'a>> {
        let frozen = self.adapters.as_ref().map(|(_, frozen)| frozen.fetcher(ranks, order.iter().copied()));
        Ok(Fetch { frozen: frozen.transpose()?, trained: self.store.fetcher(ranks, order)? })
    }

    /// The weights of every group, `[numel]`: views where every rank has them whole and there is no adapter, otherwise
    /// gathered and merged.
    pub(crate) fn flats(&self, ranks: &Ranks) -> Result<Vec<Tensor>> {
        let _guard = tch::no_grad_guard();
        let mut fetch = self.fetch(ranks, (0..=self.output()).collect())?;
        (0..=self.output()).map(|group| Ok(fetch.next()?.used(self.lora(), group))).collect()
    }

    /// The forward pass up to the head. All ranks call it together, also those without a micro-batch.
    pub(crate) fn forward(
        &self,
        ranks: &Ranks,
        microbatch: Option<Microbatch>,
        keep: Keep,
    ) -> Result<Option<(Tape, Head)>> {
        let decoder = self.decoder();
        let mut fetch = self.fetch(ranks, self.forward_order())?;
        let embedding = fetch.next()?.used(self.lora(), 0);
        let mut tape = microbatch.map(|microbatch| Tape::new(decoder, &embedding, microbatch));
        drop(embedding);
        for _ in 0..self.config.layers {
            let weights = fetch.next()?;
            if let Some(tape) = &mut tape {
                tape.forward(decoder, &weights, keep);
            }
        }
        let output = fetch.next()?.used(self.lora(), self.output());
        let tied = if self.config.tied() { Some(fetch.next()?.used(self.lora(), 0)) } else { None };
        Ok(tape.map(|mut tape| {
            let x = std::mem::replace(&mut tape.x, Tensor::new());
            let head = Head::new((&self.config, &tape.microbatch), &x, &output, tied.as_ref());
            (tape, head)
        }))
    }
}

/// Whole groups, one after the other.
#[derive(Debug)]
pub(crate) struct Fetch<'a> {
    frozen: Option<Fetcher<'a>>,
    trained: Fetcher<'a>,
}

impl Fetch<'_> {
    /// The next group.
    pub(crate) fn next(&mut self) -> Result<Fetched> {
        let frozen = self.frozen.as_mut().map(Fetcher::next).transpose()?;
        Ok(Fetched { trained: self.trained.next()?, frozen })
    }
}
