//! The decoder blocks of a micro-batch, forward and backward, one block at a time.
//!
//! Between blocks stands nothing but the residual stream, so a block is the unit of everything: its graph is
//! kept or made again from its input (activation recomputation; Chen et al., arXiv 1604.06174), its weights
//! are there or gathered, and its gradient is complete, and reduced, when the backward pass has left it.

use model::{BlockWeights, ModelConfig, RopeRows, packed_attention};
use tch::{Kind, Tensor};

use super::lora::Lora;
use crate::error::Result;
use crate::microbatch::Microbatch;

/// One group's weights as they were fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// What is trained, `[numel]`: the weights, or an adapter.
    pub(crate) trained: Tensor,
    /// With an adapter, the frozen weights, `[numel]`.
    pub(crate) frozen: Option<Tensor>,
}

impl Fetched {
    /// The weights that the network uses, as a function of what is trained.
    fn effective(&self, lora: Option<&Lora>, group: usize, trained: &Tensor) -> Tensor {
        match (lora, &self.frozen) {
            (Some(lora), Some(frozen)) => lora.merge(group, frozen, trained),
            _ => trained.shallow_clone(),
        }
    }

    /// The weights that the network uses, `[numel]`.
    pub(crate) fn used(&self, lora: Option<&Lora>, group: usize) -> Tensor {
        self.effective(lora, group, &self.trained)
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

/// A block's autograd graph: its output, and the leaves in which gradients are wanted.
#[derive(Debug)]
struct BlockGraph {
    input: Tensor,
    trained: Tensor,
    output: Tensor,
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
            self.x = graph.output.detach();
            self.kept.push(KeptBlock::Graph(graph));
        } else {
            let flat = weights.used(decoder.lora, 1 + self.layer);
            self.x = self.block(decoder.config, self.layer, &flat, &input);
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
        let [grad_input, grad_trained] =
            backpropagate(&graph.output, grad_output, [&graph.input, &graph.trained])?;
        let _ = sum.g_add_(&grad_trained);
        Ok(grad_input)
    }

    fn graph(&self, decoder: Decoder<'_>, layer: usize, weights: &Fetched, input: &Tensor) -> BlockGraph {
        tch::with_grad(|| {
            let input = input.detach().set_requires_grad(true);
            let trained = weights.trained.detach().set_requires_grad(true);
            let flat = weights.effective(decoder.lora, 1 + layer, &trained);
            let output = self.block(decoder.config, layer, &flat, &input);
            BlockGraph { input, trained, output }
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
