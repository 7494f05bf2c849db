//! The decoder blocks of a micro-batch, forward and backward, one block at a time.
//!
//! Between blocks stands nothing but the residual stream, so a block is the unit of everything: its graph is
//! kept or made again from its input (activation recomputation; Chen et al., arXiv 1604.06174), its weights
//! are there or gathered, and its gradient is complete, and reduced, when the backward pass has left it.

use model::{BlockPasses, BlockWeights, ModelConfig, RopeRows, packed_attention};
use tch::{Kind, Tensor};

use super::lora::{Lora, outputs};
use crate::error::Result;
use crate::microbatch::Microbatch;

/// One group's weights as they were fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// What is trained, `[numel]`: the weights, or an adapter.
    pub(crate) trained: Tensor,
    /// With an adapter, the weights that the network uses, `[numel]`.
    pub(crate) merged: Option<Tensor>,
}

impl Fetched {
    /// The weights that the network uses, `[numel]`.
    pub(crate) fn used(&self) -> &Tensor {
        self.merged.as_ref().unwrap_or(&self.trained)
    }
}

/// What the blocks of a network are computed with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decoder<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) lora: Option<&'a Lora>,
}

/// The way of one micro-batch through the blocks.
#[derive(Debug)]
pub(crate) struct Tape {
    pub(crate) microbatch: Microbatch,
    rope: RopeRows,
    /// Blocks done, forward.
    layer: usize,
    /// By block: what its backward pass starts from.
    kept: Vec<KeptBlock>,
    /// The residual stream now, `[total, hidden]`.
    pub(crate) x: Tensor,
}

/// What a block's backward pass starts from.
#[derive(Debug)]
enum KeptBlock {
    /// Its input, from which the graph is made again.
    Input(Tensor),
    /// Its autograd graph.
    Graph(BlockGraph),
}

/// A block's autograd graph: its output, and where gradients are wanted.
#[derive(Debug)]
enum BlockGraph {
    /// In its input and its weights, which are leaves.
    Whole { input: Tensor, trained: Tensor, output: Tensor },
    /// In its input and in what its projections say: its weights are frozen.
    Adapted { input: Tensor, passes: BlockPasses },
}

impl BlockGraph {
    fn output(&self) -> &Tensor {
        match self {
            Self::Whole { output, .. } => output,
            Self::Adapted { passes, .. } => &passes.down.output,
        }
    }
}

/// What a forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing: there is none.
    Nothing,
    /// Each block's input.
    Inputs,
    /// Each block's graph.
    Graphs,
}

impl Tape {
    /// Embeds the tokens with the `[vocab * hidden]` buffer of the embedding.
    pub(crate) fn new(decoder: Decoder<'_>, embedding: &Tensor, microbatch: Microbatch) -> Self {
        let embedding = embedding.view([decoder.config.vocab_size, decoder.config.hidden_size]);
        let rope = microbatch.packed.rope(decoder.config, embedding.kind());
        let x = model::embed(&embedding, microbatch.packed.tokens());
        Self { microbatch, rope, layer: 0, kept: Vec::with_capacity(decoder.config.layers), x }
    }

    /// Runs the next block.
    pub(crate) fn forward(&mut self, decoder: Decoder<'_>, weights: &Fetched, keep: Keep) {
        let input = std::mem::replace(&mut self.x, Tensor::new());
        if keep == Keep::Graphs {
            let graph = self.graph(decoder, self.layer, weights, &input);
            self.x = graph.output().detach();
            self.kept.push(KeptBlock::Graph(graph));
        } else {
            self.x = self.block(decoder.config, self.layer, weights.used(), &input);
            if keep == Keep::Inputs {
                self.kept.push(KeptBlock::Input(input));
            }
        }
        self.layer += 1;
    }

    /// Leaves the last block backwards: from `grad_output` to the gradient in its input, both `[total,
    /// hidden]`. The gradient in what is trained is added to `sum`, `[numel]` f32.
    pub(crate) fn backward(
        &mut self,
        decoder: Decoder<'_>,
        weights: &Fetched,
        grad_output: &Tensor,
        sum: &mut Tensor,
    ) -> Result<Tensor> {
        let layer = self.kept.len() - 1;
        let graph = match self.kept.pop().expect("a backward pass follows its forward pass") {
            KeptBlock::Graph(graph) => graph,
            KeptBlock::Input(input) => self.graph(decoder, layer, weights, &input),
        };
        match (graph, decoder.lora) {
            (BlockGraph::Whole { input, trained, output }, _) => {
                let [grad_input, grad_trained] = backpropagate(&output, grad_output, [&input, &trained])?;
                let _ = sum.g_add_(&grad_trained);
                Ok(grad_input)
            }
            (BlockGraph::Adapted { input, passes }, Some(lora)) => {
                let [qkv, output, gate_up, down] = outputs(&passes);
                let wanted = [&input, qkv, output, gate_up];
                let [grad_input, qkv, output, gate_up] = backpropagate(down, grad_output, wanted)?;
                let grad_outputs = [qkv, output, gate_up, grad_output.to_kind(down.kind())];
                lora.add_gradients(1 + layer, &weights.trained, (&passes, &grad_outputs), sum);
                Ok(grad_input)
            }
            (BlockGraph::Adapted { .. }, None) => unreachable!("a block is adapted by adapters"),
        }
    }

    fn graph(&self, decoder: Decoder<'_>, layer: usize, weights: &Fetched, input: &Tensor) -> BlockGraph {
        tch::with_grad(|| {
            let input = input.detach().set_requires_grad(true);
            if decoder.lora.is_some() {
                let passes = self.passes(decoder.config, layer, &weights.used().detach(), &input);
                return BlockGraph::Adapted { input, passes };
            }
            let trained = weights.trained.detach().set_requires_grad(true);
            let output = self.block(decoder.config, layer, &trained, &input);
            BlockGraph::Whole { input, trained, output }
        })
    }

    fn passes(&self, config: &ModelConfig, layer: usize, flat: &Tensor, x: &Tensor) -> BlockPasses {
        let weights = BlockWeights::view(config, flat);
        let window = config.window(layer);
        model::block_passes(config, &weights, x, &self.rope, |queries, keys, values| {
            packed_attention(queries, keys, values, &self.microbatch.packed, window)
        })
    }

    fn block(&self, config: &ModelConfig, layer: usize, flat: &Tensor, x: &Tensor) -> Tensor {
        let weights = BlockWeights::view(config, flat);
        let window = config.window(layer);
        model::block(config, &weights, x, &self.rope, |queries, keys, values| {
            packed_attention(queries, keys, values, &self.microbatch.packed, window)
        })
    }
}

/// The gradients in `inputs` of a function whose value is `output`, from the gradient in that.
pub(crate) fn backpropagate<const N: usize>(
    output: &Tensor,
    grad_output: &Tensor,
    inputs: [&Tensor; N],
) -> Result<[Tensor; N]> {
    // The scalar whose gradient in the output is the one given.
    let weighted =
        tch::with_grad(|| output.reshape([-1]).dot(&grad_output.to_kind(output.kind()).reshape([-1])));
    let gradients = Tensor::f_run_backward(&[&weighted], &inputs, false, false)?;
    Ok(gradients.try_into().expect("autograd returns one gradient for each input"))
}

/// Adds the gradient in the embedding matrix to `sum`, `[vocab * hidden]` f32, from that in the embedded
/// tokens of a micro-batch, `[total, hidden]`.
pub(crate) fn embedding_backward(
    config: &ModelConfig,
    microbatch: &Microbatch,
    grad_embedded: &Tensor,
    sum: &Tensor,
) {
    let grad_embedded = grad_embedded.to_kind(Kind::Float);
    let tokens = microbatch.packed.tokens();
    let dense = Tensor::embedding_dense_backward(&grad_embedded, tokens, config.vocab_size, -1, false);
    let _ = sum.shallow_clone().g_add_(&dense.view([-1]));
}
