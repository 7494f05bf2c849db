//! A network in training on this rank: weights, gradients, optimizer, and the passes over micro-batches.
//!
//! ```text
//! fetch embedding -> embed -> block 1 .. block L -> norm, head -> numbers -> loss's gradient in them
//!                                                                                   |
//! reduce embedding <- .. <- reduce block L <- block L <- reduce output <- norm, head
//! ```
//!
//! One mechanism for all of it: a block's weights are fetched when it is computed (gathered from the ranks at ZeRO stage 3,
//! the next ones under way meanwhile), its graph is kept or made again, and its gradient is reduced while the block below
//! is computed.
//!
//! Invariants:
//! 1. The forward pass has the same bits with and without gradients, kept or made again, gathered or not.
//! 2. Every rank calls [`Trainee::infer`], [`Trainee::forward`] and [`Trainee::backward`] equally often, with `None` where it
//!    has no sequence.
//! 3. Gradients are sums: of micro-batches, of ranks. The loss settles the coefficients before.

mod adamw;
mod blocks;
mod gradients;
mod head;
mod lora;
mod network;
mod state;
mod store;

use model::{Layout, ModelConfig, Weights};
use tch::{Device, Kind, Tensor};

use crate::config::{LoraConfig, OptimizerConfig, ZeroStage};
use crate::error::{Error, Result};
use crate::microbatch::Microbatch;
use crate::ranks::Ranks;
use adamw::{AdamW, Step};
use blocks::{Keep, Tape, embedding_backward};
use gradients::Gradients;
use head::{Head, HeadSums};
pub(crate) use head::{NumberGradients, Numbers, Request};
use lora::Lora;
use network::Network;
pub(crate) use store::Cut;
use store::Store;

/// How a network is trained.
#[derive(Debug, Clone)]
pub(crate) struct TraineeOptions {
    /// Element type of weights and activations.
    pub(crate) kind: Kind,
    /// Where the network lives.
    pub(crate) device: Device,
    /// What the ranks divide.
    pub(crate) zero_stage: ZeroStage,
    /// Whether blocks are computed again in the backward pass.
    pub(crate) recompute: bool,
    /// Whether optimizer state lives in the host's memory.
    pub(crate) offload_optimizer: bool,
    /// Adapters instead of training all weights, and the seed they start from.
    pub(crate) lora: Option<(LoraConfig, u64)>,
}

/// A micro-batch after its forward pass: the numbers, and what the way back starts from.
#[derive(Debug)]
pub(crate) struct Passed {
    /// The numbers of the wanted rows.
    pub(crate) numbers: Numbers,
    request: Request,
    tape: Tape,
    head: Head,
}

/// A network in training.
#[derive(Debug)]
pub(crate) struct Trainee {
    /// What it is called in errors: `policy`, `critic`, `reward model`.
    name: &'static str,
    network: Network,
    keep: Keep,
    device: Device,
    gradients: Gradients,
    optimizer: AdamW,
}

impl Trainee {
    /// Takes the values of `weights`, which every rank has in full.
    pub(crate) fn new(
        name: &'static str,
        (config, weights): (ModelConfig, &Weights),
        ranks: &Ranks,
        options: &TraineeOptions,
    ) -> Self {
        let TraineeOptions { kind, device, .. } = *options;
        let stage = if ranks.group().is_some() { options.zero_stage } else { ZeroStage::Off };
        let is_cut = stage == ZeroStage::Weights;
        let cuts = |flats: &[Tensor]| -> Vec<Cut> {
            let (rank, count) =
                if stage == ZeroStage::Off { (0, 1) } else { (ranks.rank(), ranks.world_size()) };
            flats.iter().map(|flat| Cut::new(flat.numel() as i64, rank, count)).collect()
        };
        let layout = Layout::new(&config);
        let of_network = Store::new(cuts(weights.flats()), weights.flats(), (kind, device), is_cut);
        let mut decayed: Vec<i64> = layout.groups.iter().map(|group| group.decayed).collect();
        let (adapters, store) = match &options.lora {
            None => (None, of_network),
            Some((lora, seed)) => {
                let lora = Lora::new(&layout, lora);
                let initial = lora.initial(*seed);
                decayed = initial.iter().map(|flat| flat.numel() as i64).collect();
                let store = Store::new(cuts(&initial), &initial, (Kind::Float, device), is_cut);
                (Some((lora, of_network)), store)
            }
        };
        let gradients = Gradients::new(store.cuts(), stage, device);
        let parts: Vec<Tensor> = (0..layout.groups.len()).map(|group| store.part(group)).collect();
        let home = if options.offload_optimizer { Device::Cpu } else { device };
        let optimizer = AdamW::new(&parts, store.cuts(), &decayed, home);
        let keep = if options.recompute || is_cut { Keep::Inputs } else { Keep::Graphs };
        let network = Network { config, layout, adapters, store };
        Self { name, network, keep, device, gradients, optimizer }
    }

    /// The network's shape.
    pub(crate) fn config(&self) -> &ModelConfig {
        &self.network.config
    }

    /// Where the network lives.
    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// The weights that the network uses, by group, `[numel]`: views of the buffers it trains where every rank has them whole
    /// and there is no adapter, otherwise gathered and merged. All ranks call it together.
    pub(crate) fn flats(&self, ranks: &Ranks) -> Result<Vec<Tensor>> {
        self.network.flats(ranks)
    }

    /// The adapters under their PEFT names, if that is what is trained. All ranks call it together.
    pub(crate) fn adapters(&self, ranks: &Ranks) -> Result<Option<Vec<(String, Tensor)>>> {
        let Some(lora) = self.network.lora() else { return Ok(None) };
        let groups = 0..=self.network.output();
        let mut fetch = self.network.store.fetcher(ranks, groups.clone())?;
        let trained: Vec<Tensor> = groups.map(|_| fetch.next()).collect::<Result<_>>()?;
        Ok(Some(lora.named(&trained)))
    }

    /// Whether a pass on its way back holds all that the forward pass made, so that it can wait for long at no other cost.
    pub(crate) fn keeps_graphs(&self) -> bool {
        self.keep == Keep::Graphs
    }

    /// The numbers of the wanted rows, without a way back.
    pub(crate) fn infer(
        &self,
        ranks: &Ranks,
        microbatch: Option<Microbatch>,
        request: Request,
    ) -> Result<Option<Numbers>> {
        let passed = self.pass(ranks, microbatch, request, Keep::Nothing)?;
        Ok(passed.map(|passed| passed.numbers))
    }

    /// The forward pass of a micro-batch, for [`backward`](Self::backward).
    pub(crate) fn forward(
        &self,
        ranks: &Ranks,
        microbatch: Option<Microbatch>,
        request: Request,
    ) -> Result<Option<Passed>> {
        self.pass(ranks, microbatch, request, self.keep)
    }

    fn pass(
        &self,
        ranks: &Ranks,
        microbatch: Option<Microbatch>,
        request: Request,
        keep: Keep,
    ) -> Result<Option<Passed>> {
        let _guard = tch::no_grad_guard();
        let Some((tape, mut head)) = self.network.forward(ranks, microbatch, keep)? else { return Ok(None) };
        let numbers = head.numbers(&tape.microbatch, request, keep != Keep::Nothing)?;
        Ok(Some(Passed { numbers, request, tape, head }))
    }

    /// The backward pass of a micro-batch, at the weights of its forward pass. `loss` is given the numbers and returns its
    /// gradient in them; the gradient in what is trained is added to the minibatch's. `last` says that this is the
    /// minibatch's last micro-batch, after which [`update`](Self::update) follows.
    pub(crate) fn backward(
        &mut self,
        ranks: &Ranks,
        (passed, last): (Option<Passed>, bool),
        loss: impl FnOnce(&Numbers) -> Result<NumberGradients>,
    ) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let Self { network, gradients, .. } = self;
        let output = network.output();
        let mut fetch = network.fetch(ranks, (1..output).rev().collect())?;

        let is_frozen = network.lora().is_some();
        let of_output = gradients.open(output)?;
        let of_tied = network.config.tied().then(|| gradients.open(0)).transpose()?;
        let mut passed = match passed {
            None => None,
            Some(Passed { numbers, request, tape, head }) => {
                let gradient = loss(&numbers)?;
                let tied = of_tied.as_ref().map(|open| open.sum.shallow_clone());
                let sums = HeadSums { output: of_output.sum.shallow_clone(), tied };
                let inputs = (&network.config, &tape.microbatch);
                let of_x = head.backward(inputs, request, &gradient, (!is_frozen).then_some(&sums))?;
                Some((tape, of_x))
            }
        };
        gradients.close(ranks, of_output, last)?;
        for group in (1..output).rev() {
            let weights = fetch.next()?;
            let mut open = gradients.open(group)?;
            if let Some((tape, of_x)) = &mut passed {
                *of_x = tape.backward(network.decoder(), &weights, of_x, &mut open.sum)?;
            }
            drop(weights);
            gradients.close(ranks, open, last)?;
        }
        let of_embedding = match of_tied {
            Some(open) => open,
            None => gradients.open(0)?,
        };
        if let Some((tape, of_x)) = passed
            && !is_frozen
        {
            embedding_backward(&network.config, &tape.microbatch, &of_x, &of_embedding.sum);
        }
        gradients.close(ranks, of_embedding, last)
    }

    /// The optimizer step at the end of a minibatch, at learning rate `lr`. Returns the gradient's norm before clipping.
    pub(crate) fn update(&mut self, ranks: &Ranks, config: &OptimizerConfig, lr: f64) -> Result<f64> {
        self.gradients.finish()?;
        let norm = self.gradients.norm(ranks)?;
        if !norm.is_finite() {
            let what = format!("{} after {} optimizer steps", self.name, self.optimizer.steps);
            return Err(Error::Diverged { what, norm });
        }
        // As torch.nn.utils.clip_grad_norm_.
        let clip = config.max_grad_norm.number().map_or(1.0, |most| (most / (norm + 1e-6)).min(1.0));
        let groups = 0..=self.network.output();
        let parts: Vec<Tensor> = groups.clone().map(|group| self.network.store.part(group)).collect();
        let of_parts: Vec<Tensor> = groups.map(|group| self.gradients.part(group)).collect();
        self.optimizer.step(&parts, &of_parts, &Step { config, lr, gradient_scale: clip });
        self.gradients.clear();
        self.network.store.share(ranks)?;
        Ok(norm)
    }
}
