//! The decoder blocks of a micro-batch, forward and backward, one block at a time.
//!
//! Between blocks stands nothing but the residual stream, so a block is the unit of everything: its graph is kept or made
//! again from its input (activation recomputation; Chen et al., arXiv 1604.06174), its weights are there or gathered, and
//! its gradient is complete, and reduced, when the backward pass has left it.

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
    kept: Vec<Kept>,
    /// The residual stream now, `[total, hidden]`.
    pub(crate) x: Tensor,
}

#[derive(Debug)]
enum Kept {
    /// Its input.
    Input(Tensor),
    /// Its graph.
    Graph(Graph),
}

/// A block's output and what gradients are wanted in.
#[derive(Debug)]
struct Graph {
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
            self.kept.push(Kept::Graph(graph));
        } else {
            let flat = weights.used(decoder.lora, 1 + self.layer);
            self.x = self.block(decoder.config, self.layer, &flat, &input);
            if keep == Keep::Inputs {
                self.kept.push(Kept::Input(input));
            }
        }
        self.layer += 1;
    }

    /// Leaves the last block backwards: `gradient` in its output becomes that in its input, both `[total, hidden]`; the
    /// gradient in what is trained is added to `sum`, `[numel]` f32.
    pub(crate) fn backward(
        &mut self,
        decoder: Decoder<'_>,
        weights: &Fetched,
        gradient: &Tensor,
        sum: &mut Tensor,
    ) -> Result<Tensor> {
        let layer = self.kept.len() - 1;
        let graph = match self.kept.pop().expect("a backward pass follows its forward pass") {
            Kept::Graph(graph) => graph,
            Kept::Input(input) => self.graph(decoder, layer, weights, &input),
        };
        let (of_input, of_trained) = graph.gradients(gradient)?;
        let _ = sum.g_add_(&of_trained);
        Ok(of_input)
    }

    fn graph(&self, decoder: Decoder<'_>, layer: usize, weights: &Fetched, input: &Tensor) -> Graph {
        tch::with_grad(|| {
            let input = input.detach().set_requires_grad(true);
            let trained = weights.trained.detach().set_requires_grad(true);
            let flat = weights.effective(decoder.lora, 1 + layer, &trained);
            let output = self.block(decoder.config, layer, &flat, &input);
            Graph { input, trained, output }
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

impl Graph {
    fn gradients(&self, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut gradients = gradients(&self.output, gradient, &[&self.input, &self.trained])?.into_iter();
        let mut next = || gradients.next().expect("one gradient for each of two inputs");
        Ok((next(), next()))
    }
}

/// The gradients in `inputs` of a function whose value is `output`, from the gradient in that.
pub(crate) fn gradients(output: &Tensor, gradient: &Tensor, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    // The scalar whose gradient in the output is the one given.
    let weighted =
        tch::with_grad(|| output.reshape([-1]).dot(&gradient.to_kind(output.kind()).reshape([-1])));
    Ok(Tensor::f_run_backward(&[&weighted], inputs, false, false)?)
}

/// Adds the gradient in the embedding, `[total, hidden]` of the rows of a micro-batch, to `sum`, `[vocab * hidden]` f32.
pub(crate) fn embedding_backward(
    config: &ModelConfig,
    microbatch: &Microbatch,
    gradient: &Tensor,
    sum: &Tensor,
) {
    let gradient = gradient.to_kind(Kind::Float);
    let tokens = microbatch.packed.tokens();
    let dense = Tensor::embedding_dense_backward(&gradient, tokens, config.vocab_size, -1, false);
    let _ = sum.shallow_clone().g_add_(&dense.view([-1]));
}
