//! A policy's weights as the native backend reads them: matrices packed, vectors as they are.

use model::{BlockWeights, GatedWeights, ModelConfig, OutputWeights, buffer};
use tch::Tensor;

use super::memory::Buffer;
use super::number::{Number, PANEL};
use super::panels::Panels;
use crate::Error;
use crate::backend::ReadGroup;

/// A projection with its bias.
#[derive(Debug)]
pub(crate) struct Projection<N: Number> {
    pub(crate) weights: Panels<N>,
    /// In the order of the panels' outputs.
    pub(crate) bias: Option<Vec<f32>>,
}

/// The weights of one block.
#[derive(Debug)]
pub(crate) struct Layer<N: Number> {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) qkv: Projection<N>,
    /// Norms of query and key heads.
    pub(crate) head_norms: Option<(Vec<f32>, Vec<f32>)>,
    pub(crate) output: Projection<N>,
    pub(crate) mlp_norm: Vec<f32>,
    pub(crate) feed_forward: FeedForward<N>,
}

/// What follows attention in a block.
#[derive(Debug)]
pub(crate) enum FeedForward<N: Number> {
    Dense(Gated<N>),
    Experts(ExpertLayer<N>),
}

/// A gated feed-forward layer.
#[derive(Debug)]
pub(crate) struct Gated<N: Number> {
    /// Panels of gates and of values by turns.
    pub(crate) gate_up: Projection<N>,
    pub(crate) down: Projection<N>,
}

/// The weights of a block's experts.
#[derive(Debug)]
pub(crate) struct ExpertLayer<N: Number> {
    /// One output for each expert.
    pub(crate) router: Panels<N>,
    pub(crate) experts: Vec<Gated<N>>,
}

/// The weights of a network.
#[derive(Debug)]
pub(crate) struct NativeWeights<N: Number> {
    /// `[vocab, hidden]`; none where the head is the embedding too.
    embedding: Option<Buffer<N>>,
    pub(crate) layers: Vec<Layer<N>>,
    pub(crate) final_norm: Vec<f32>,
    pub(crate) head: Panels<N>,
}

/// Where the embeddings of tokens are read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Embedding<'a, N: Number> {
    /// `[vocab, hidden]`.
    Rows(&'a [N]),
    /// Those of the head, one output each.
    Head(&'a Panels<N>),
}

impl<N: Number> NativeWeights<N> {
    /// Packs the weights of a network, converting their element type. A group is read, packed and released
    /// before the next: the output first, because it is among the largest, then embedding and blocks.
    pub(crate) fn pack(config: &ModelConfig, read: ReadGroup<'_>) -> Result<Self, Error> {
        let _guard = tch::no_grad_guard();
        let vocab = size(config.vocab_size);
        let output = OutputWeights::view(config, &read(1 + config.layers)?, &Tensor::new());
        let final_norm = numbers(&output.norm);
        let room = || Error::system("memory for the weights");
        let of_output = if config.tied() { None } else { Some(matrix(&output.head, vocab).map_err(room())?) };
        drop(output);
        let table = read(0)?;
        let (embedding, head) = match of_output {
            Some(head) => (Some(rows(&table).map_err(room())?), head),
            None => (None, matrix(&table, vocab).map_err(room())?),
        };
        drop(table);
        let layers = (1..=config.layers).map(|group| {
            let flat = read(group)?;
            layer(config, &BlockWeights::view(config, &flat)).map_err(room())
        });
        let layers = layers.collect::<Result<_, Error>>()?;
        Ok(Self { embedding, layers, final_norm, head })
    }

    /// The token embeddings.
    pub(crate) fn embedding(&self) -> Embedding<'_, N> {
        match &self.embedding {
            Some(table) => Embedding::Rows(table),
            None => Embedding::Head(&self.head),
        }
    }
}

fn layer<N: Number>(config: &ModelConfig, block: &BlockWeights) -> std::io::Result<Layer<N>> {
    Ok(Layer {
        attention_norm: numbers(&block.attention_norm),
        qkv: projection(&block.qkv, block.qkv_bias.as_ref())?,
        head_norms: block.head_norms.as_ref().map(|norms| (numbers(&norms.query), numbers(&norms.key))),
        output: projection(&block.output, block.output_bias.as_ref())?,
        mlp_norm: numbers(&block.mlp_norm),
        feed_forward: feed_forward(config, &block.feed_forward)?,
    })
}

fn feed_forward<N: Number>(
    config: &ModelConfig,
    weights: &model::FeedForward,
) -> std::io::Result<FeedForward<N>> {
    let experts = match weights {
        model::FeedForward::Dense(layer) => return gated(config, layer).map(FeedForward::Dense),
        model::FeedForward::Experts(experts) => experts,
    };
    let each = experts.gate_up.unbind(0).into_iter().zip(experts.down.unbind(0));
    let packed = each.map(|(gate_up, down)| {
        gated(config, &GatedWeights { gate_up, down, gate_up_bias: None, down_bias: None })
    });
    Ok(FeedForward::Experts(ExpertLayer {
        router: matrix(&experts.router, size(experts.router.size()[0]))?,
        experts: packed.collect::<std::io::Result<_>>()?,
    }))
}

fn gated<N: Number>(config: &ModelConfig, layer: &GatedWeights) -> std::io::Result<Gated<N>> {
    Ok(Gated { gate_up: gate_up(config, layer)?, down: projection(&layer.down, layer.down_bias.as_ref())? })
}

/// A row-major matrix and its bias.
fn projection<N: Number>(weight: &Tensor, bias: Option<&Tensor>) -> std::io::Result<Projection<N>> {
    let weights = matrix(weight, size(weight.size()[0]))?;
    Ok(Projection { weights, bias: bias.map(numbers) })
}

/// Panels of 32 gates, then the 32 values that they multiply, and so on.
fn gate_up<N: Number>(config: &ModelConfig, block: &GatedWeights) -> std::io::Result<Projection<N>> {
    let intermediate = size(config.feed_forward_width());
    let outputs = 2 * intermediate.next_multiple_of(PANEL);
    let source = |output: usize| {
        let (pair, place) = (output / (2 * PANEL), output % (2 * PANEL));
        let column = pair * PANEL + place % PANEL;
        (column < intermediate).then_some(column + place / PANEL * intermediate)
    };
    let inputs = size(config.hidden_size);
    let bias = block.gate_up_bias.as_ref().map(|bias| {
        let bias: Vec<f32> = numbers(bias);
        (0..outputs).map(|output| source(output).map_or(0.0, |row| bias[row])).collect()
    });
    let weights = with_numbers(&block.gate_up, |elements: &[N]| {
        Panels::pack(outputs, inputs, |output| source(output).map(|row| &elements[row * inputs..][..inputs]))
    });
    Ok(Projection { weights: weights?, bias })
}

/// Packs a row-major matrix.
fn matrix<N: Number>(tensor: &Tensor, outputs: usize) -> std::io::Result<Panels<N>> {
    with_numbers(tensor, |elements: &[N]| {
        let inputs = elements.len() / outputs;
        Panels::pack(outputs, inputs, |row| Some(&elements[row * inputs..][..inputs]))
    })
}

/// A matrix as it is.
fn rows<N: Number>(tensor: &Tensor) -> std::io::Result<Buffer<N>> {
    with_numbers(tensor, |elements: &[N]| {
        let mut buffer = Buffer::zeros(elements.len())?;
        buffer.copy_from_slice(elements);
        Ok(buffer)
    })
}

/// The elements of a tensor as numbers of this type.
fn numbers<N: Number>(tensor: &Tensor) -> Vec<N> {
    with_numbers(tensor, |elements: &[N]| elements.to_vec())
}

/// Calls `take` with the elements of a tensor as numbers of this type: copied only where they are not such in
/// the host's memory already.
fn with_numbers<N: Number, T>(tensor: &Tensor, take: impl FnOnce(&[N]) -> T) -> T {
    let tensor = tensor.to_kind(N::TORCH).to_device(tch::Device::Cpu).contiguous();
    // As bytes: tch 0.24.0 takes `half::bf16` for f16. Torch aligns tensors, and views begin at an element.
    buffer::with_bytes(&tensor, |bytes| take(bytemuck::cast_slice(bytes)))
}

/// A dimension of a validated configuration.
pub(crate) fn size(value: i64) -> usize {
    usize::try_from(value).expect("the model's configuration is validated")
}
