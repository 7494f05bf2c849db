//! A model in training on this rank: weights, gradients, optimizer, and the passes over micro-batches.
//!
//! ```text
//! fetch embedding -> embed -> block 1 .. block L -> norm, head -> outputs -> loss's gradient in them
//!                                                                                   |
//! reduce embedding <- .. <- reduce block L <- block L <- reduce output <- norm, head
//! ```
//!
//! One mechanism for all of it: a block's weights are fetched when it is computed (gathered from the ranks at
//! ZeRO stage 3, the next ones under way meanwhile), its graph is kept or made again, and its gradient is
//! reduced while the block below is computed.
//!
//! Invariants:
//! 1. The forward pass has the same bits with and without gradients, kept or made again, gathered or not.
//! 2. Every rank calls [`TrainableModel::infer`], [`TrainableModel::forward`] and
//!    [`TrainableModel::backward`] equally often, with `None` where it has no sequence.
//! 3. Gradients are sums: of micro-batches, of ranks. The loss settles the coefficients before.

mod adamw;
mod blocks;
mod gradients;
mod head;
mod lora;
mod network;
mod shard;
mod state;
mod store;

use model::{Layout, ModelConfig, Weights};
use tch::{Device, Kind, Tensor};

use crate::config::{OptimizerConfig, ZeroStage};
use crate::error::{Error, Result};
use crate::host;
use crate::microbatch::Microbatch;
use crate::model_folder::StartModel;
use crate::ranks::Ranks;
use adamw::{AdamW, OptimizerStep};
use blocks::{Keep, Tape, embedding_backward};
use gradients::{Gradients, OpenGradient};
use head::{Head, HeadContext, HeadSums};
use lora::Lora;
use network::{Adapters, EMBEDDING_GROUP, Network, NetworkPass};
use store::{Placement, Store};

pub(crate) use gradients::MicrobatchPosition;
pub(crate) use head::{HeadGradients, HeadOutputs, HeadRequest};
pub(crate) use lora::LoraInit;
pub(crate) use shard::Shard;

/// How a model is trained.
#[derive(Debug, Clone)]
pub(crate) struct TrainableModelOptions {
    /// Element type of weights and activations.
    pub(crate) kind: Kind,
    /// Where the network lies.
    pub(crate) device: Device,
    /// What the ranks divide.
    pub(crate) zero_stage: ZeroStage,
    /// Whether blocks are computed again in the backward pass.
    pub(crate) recompute: bool,
    /// Whether optimizer state lies in the host's memory.
    pub(crate) offload_optimizer: bool,
    /// Adapters instead of training all weights.
    pub(crate) lora: Option<LoraInit>,
}

/// A micro-batch after its forward pass: the head's outputs, and what the backward pass starts from.
#[derive(Debug)]
pub(crate) struct ForwardPass {
    /// The outputs at the wanted rows.
    pub(crate) outputs: HeadOutputs,
    request: HeadRequest,
    tape: Tape,
    head: Head,
}

/// A model in training.
#[derive(Debug)]
pub(crate) struct TrainableModel {
    /// What it is called in errors: `policy`, `critic`, `reward model`.
    name: &'static str,
    network: Network,
    keep: Keep,
    device: Device,
    gradients: Gradients,
    optimizer: AdamW,
    /// Optimizer steps since the last one that was made.
    skipped_in_row: u64,
}

/// What became of an optimizer step, the same on every rank. The norm is the gradient's, before clipping.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum StepOutcome {
    /// The weights moved.
    Made { norm: f64 },
    /// They did not: the norm is no finite number.
    Skipped { norm: f64 },
}

impl TrainableModel {
    /// Takes the values of `start`, the same on every rank, group by group: a rank keeps of each what it
    /// holds.
    ///
    /// # Errors
    /// Adapters to start from that are none of this network's, a file that cannot be read, ranks that start
    /// from other weights than rank 0.
    pub(crate) fn new(
        name: &'static str,
        start: &StartModel,
        ranks: &Ranks,
        options: &TrainableModelOptions,
    ) -> Result<Self> {
        let TrainableModelOptions { kind, device, .. } = *options;
        let stage = if ranks.group().is_some() { options.zero_stage } else { ZeroStage::Off };
        let placement = if stage == ZeroStage::Weights { Placement::Sharded } else { Placement::Replicated };
        let config = start.config.clone();
        let layout = Layout::new(&config);
        let shards = own_shards(layout.groups.iter().map(|group| group.numel), stage, ranks);
        let weights = Store::zeros(shards, kind, device, placement);
        take_values(&weights, start, name, ranks)?;
        let mut decayed: Vec<i64> = layout.groups.iter().map(|group| group.decayed).collect();
        let (adapters, store) = match &options.lora {
            None => (None, weights),
            Some(_) if config.experts.is_some() => {
                let problem = format!(
                    "lora: the {name} is a mixture of experts, for which there are no adapters; train all weights"
                );
                return Err(Error::Config { problems: vec![problem] });
            }
            Some(init) => {
                let lora = Lora::new(&layout, &init.config);
                let factors = lora.initial(init, &|group| start.group(group))?;
                decayed = factors.iter().map(|flat| flat.numel() as i64).collect();
                let shards = own_shards(decayed.iter().copied(), stage, ranks);
                let store = Store::zeros(shards, Kind::Float, device, placement);
                factors.iter().enumerate().for_each(|(group, flat)| store.load(group, flat));
                (Some(Adapters::new(lora, weights, &store)), store)
            }
        };
        let gradients = Gradients::new(store.shards(), stage, device);
        let own: Vec<Tensor> = (0..layout.groups.len()).map(|group| store.own(group)).collect();
        let state_device = if options.offload_optimizer { Device::Cpu } else { device };
        let optimizer = AdamW::new(&own, store.shards(), &decayed, state_device);
        let is_recomputed = options.recompute || placement == Placement::Sharded;
        let keep = if is_recomputed { Keep::Inputs } else { Keep::Graphs };
        let network = Network { config, layout, adapters, store };
        Ok(Self { name, network, keep, device, gradients, optimizer, skipped_in_row: 0 })
    }

    /// The network's shape.
    pub(crate) fn config(&self) -> &ModelConfig {
        &self.network.config
    }

    /// Where the network lies.
    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// The weights that the network uses, by group, `[numel]`: views of the buffers it trains where every
    /// rank has them whole and there is no adapter, otherwise gathered and merged. All ranks call it
    /// together, and each has all of them then.
    pub(crate) fn flats(&self, ranks: &Ranks) -> Result<Vec<Tensor>> {
        let mut flats = Vec::new();
        self.network.each_group(ranks, |flat| {
            flats.push(flat.shallow_clone());
            Ok(())
        })?;
        Ok(flats)
    }

    /// A copy of the weights that the network uses in the host's memory, on rank 0; `None` on the others,
    /// which hold no more than the groups that are gathered. All ranks call it together.
    pub(crate) fn copy_on_first(&self, ranks: &Ranks) -> Result<Option<Weights>> {
        let is_first = ranks.rank() == 0;
        let mut copies = Vec::new();
        self.network.each_group(ranks, |flat| {
            if is_first {
                copies.push(host::copy(flat)?);
            }
            Ok(())
        })?;
        Ok(if is_first { Some(Weights::from_flats(self.config(), copies)?) } else { None })
    }

    /// The weights that the network uses as a buffer of bytes with elements of `kind`, on rank 0; empty on
    /// the others. All ranks call it together.
    pub(crate) fn packed_on_first(&self, ranks: &Ranks, kind: Kind) -> Result<Vec<u8>> {
        let is_first = ranks.rank() == 0;
        let mut buffer = Vec::new();
        if is_first {
            buffer.reserve_exact(model::buffer::bytes(self.config(), kind));
        }
        self.network.each_group(ranks, |flat| {
            if is_first {
                model::buffer::pack_group(&mut buffer, flat, kind);
            }
            Ok(())
        })?;
        Ok(buffer)
    }

    /// The adapters under their PEFT names, if that is what is trained. All ranks call it together.
    pub(crate) fn adapters(&self, ranks: &Ranks) -> Result<Option<Vec<(String, Tensor)>>> {
        let Some(lora) = self.network.lora() else { return Ok(None) };
        let groups = 0..=self.network.output_group();
        let mut fetch = self.network.store.fetcher(ranks, groups.clone())?;
        let trained: Vec<Tensor> = groups.map(|_| fetch.next()).collect::<Result<_>>()?;
        Ok(Some(lora.named(&trained)))
    }

    /// Whether a forward pass keeps all that it made for its backward pass, so that it can wait for long at
    /// no other cost.
    pub(crate) fn keeps_graphs(&self) -> bool {
        self.keep == Keep::Graphs
    }

    /// The head's outputs at the wanted rows, without a backward pass to follow.
    pub(crate) fn infer(
        &self,
        ranks: &Ranks,
        microbatch: Option<Microbatch>,
        request: HeadRequest,
    ) -> Result<Option<HeadOutputs>> {
        let _guard = tch::no_grad_guard();
        let pass = self.network.forward(ranks, microbatch, Keep::Nothing)?;
        let Some(NetworkPass { tape, head }) = pass else { return Ok(None) };
        head.outputs(&tape.microbatch, request).map(Some)
    }

    /// The forward pass of a micro-batch, for [`backward`](Self::backward).
    pub(crate) fn forward(
        &self,
        ranks: &Ranks,
        microbatch: Option<Microbatch>,
        request: HeadRequest,
    ) -> Result<Option<ForwardPass>> {
        let _guard = tch::no_grad_guard();
        let pass = self.network.forward(ranks, microbatch, self.keep)?;
        let Some(NetworkPass { tape, mut head }) = pass else { return Ok(None) };
        let outputs = head.outputs_for_backward(&tape.microbatch, request)?;
        Ok(Some(ForwardPass { outputs, request, tape, head }))
    }

    /// The backward pass of a micro-batch, at the weights of its forward pass. `loss` is given the outputs
    /// and returns its gradient in them; the gradient in what is trained is added to the minibatch's. After
    /// the last micro-batch [`update`](Self::update) follows.
    pub(crate) fn backward(
        &mut self,
        ranks: &Ranks,
        forward: Option<ForwardPass>,
        position: MicrobatchPosition,
        loss: impl FnOnce(&HeadOutputs) -> Result<HeadGradients>,
    ) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let Self { network, gradients, .. } = self;
        let output = network.output_group();
        let mut fetch = network.fetch(ranks, (1..output).rev().collect())?;

        let open_output = gradients.open(output)?;
        // A tied head adds to the embedding's gradient, which the embedding then goes on adding to.
        let open_tied = if network.config.tied() { Some(gradients.open(EMBEDDING_GROUP)?) } else { None };
        let mut pass = match forward {
            None => None,
            Some(forward) => {
                let grad_outputs = loss(&forward.outputs)?;
                let sums = head_sums(network, &open_output, open_tied.as_ref());
                Some(BackwardPass::start(network, forward, &grad_outputs, sums.as_ref())?)
            }
        };
        gradients.close(ranks, open_output, position)?;
        for group in (1..output).rev() {
            let weights = fetch.next()?;
            let mut open = gradients.open(group)?;
            if let Some(BackwardPass { tape, grad_x }) = &mut pass {
                *grad_x = tape.backward(network.decoder(), &weights, grad_x, &mut open.sum)?;
            }
            drop(weights);
            gradients.close(ranks, open, position)?;
        }
        let open_embedding = match open_tied {
            Some(open) => open,
            None => gradients.open(EMBEDDING_GROUP)?,
        };
        if let Some(BackwardPass { tape, grad_x }) = pass
            && network.lora().is_none()
        {
            embedding_backward(&network.config, &tape.microbatch, &grad_x, &open_embedding.sum);
        }
        gradients.close(ranks, open_embedding, position)
    }

    /// The optimizer step at the end of a minibatch, at learning rate `lr`. It is not made where the
    /// gradient is no finite number on some rank.
    ///
    /// # Errors
    /// Too many steps in a row that could not be made, a rank that is lost.
    pub(crate) fn update(&mut self, ranks: &Ranks, config: &OptimizerConfig, lr: f64) -> Result<StepOutcome> {
        self.gradients.finish()?;
        let norm = self.gradients.norm(ranks)?;
        if !norm.is_finite() {
            self.gradients.clear();
            self.skip(config)?;
            return Ok(StepOutcome::Skipped { norm });
        }
        self.skipped_in_row = 0;
        // As torch.nn.utils.clip_grad_norm_.
        let clip = config.max_grad_norm.number().map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0));
        let groups = 0..=self.network.output_group();
        let weights: Vec<Tensor> = groups.clone().map(|group| self.network.store.own(group)).collect();
        let gradients: Vec<Tensor> = groups.map(|group| self.gradients.own(group)).collect();
        self.optimizer.step(&weights, &gradients, &OptimizerStep { config, lr, gradient_scale: clip });
        self.gradients.clear();
        self.network.gather_updates(ranks)?;
        Ok(StepOutcome::Made { norm })
    }

    /// Counts a step that cannot be made.
    ///
    /// # Errors
    /// When there were too many in a row.
    pub(crate) fn skip(&mut self, config: &OptimizerConfig) -> Result<()> {
        self.skipped_in_row += 1;
        if self.skipped_in_row <= config.max_skipped {
            return Ok(());
        }
        let (steps, skipped) = (self.optimizer.steps, self.skipped_in_row);
        Err(Error::Diverged { model: self.name, steps, skipped })
    }
}

/// Fills a store with what training starts from, and checks that every rank starts from the same.
fn take_values(weights: &Store, start: &StartModel, name: &'static str, ranks: &Ranks) -> Result<()> {
    let is_alone = ranks.world_size() == 1;
    let mut hashes = Vec::new();
    for group in 0..weights.shards().len() {
        let flat = start.group(group)?;
        weights.load(group, &flat);
        if !is_alone {
            hashes.extend(model::hash_tensor(&flat));
        }
        drop(flat);
        model::give_back_freed_memory();
    }
    if is_alone { Ok(()) } else { ranks.agree(&format!("{name} weights"), &hashes) }
}

/// This rank's shard of each group of so many elements; all of it where no state is divided.
fn own_shards(numels: impl Iterator<Item = i64>, stage: ZeroStage, ranks: &Ranks) -> Vec<Shard> {
    let (index, count) = match stage {
        ZeroStage::Off => (0, 1),
        ZeroStage::Optimizer | ZeroStage::Gradients | ZeroStage::Weights => {
            (ranks.rank(), ranks.world_size())
        }
    };
    numels.map(|numel| Shard::new(numel, index, count)).collect()
}

/// Where the head's gradients are added; nowhere where it is frozen.
fn head_sums(network: &Network, output: &OpenGradient, tied: Option<&OpenGradient>) -> Option<HeadSums> {
    let whole = network.lora().is_none();
    let tied = tied.filter(|_| whole).map(|open| open.sum.shallow_clone());
    let trains = network.lora().is_none_or(|lora| lora.trains(network.output_group()));
    trains.then(|| HeadSums { output: output.sum.shallow_clone(), tied, has_norm: whole })
}

/// A micro-batch on its way back through the blocks.
struct BackwardPass {
    tape: Tape,
    /// The gradient in the residual stream where the pass stands, `[total, hidden]`.
    grad_x: Tensor,
}

impl BackwardPass {
    /// Through head and final norm, whose gradients are added to `sums`; they have none where they are
    /// frozen.
    fn start(
        network: &Network,
        forward: ForwardPass,
        grad_outputs: &HeadGradients,
        sums: Option<&HeadSums>,
    ) -> Result<Self> {
        let ForwardPass { request, tape, head, .. } = forward;
        let context = HeadContext { config: &network.config, microbatch: &tape.microbatch };
        let grad_x = head.backward(context, request, grad_outputs, sums)?;
        Ok(Self { tape, grad_x })
    }
}
