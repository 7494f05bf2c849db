//! A policy's weights as the native backend reads them: matrices packed, vectors as they are.

use model::{BlockWeights, ModelConfig, Weights, buffer};
use tch::Tensor;

use super::memory::Buffer;
use super::number::{Number, PANEL};
use super::panels::Panels;

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
    /// Panels of gates and of values by turns.
    pub(crate) gate_up: Projection<N>,
    pub(crate) down: Projection<N>,
}

/// The weights of a network.
#[derive(Debug)]
pub(crate) struct NativeWeights<N: Number> {
    /// `[vocab, hidden]`.
    pub(crate) embedding: Buffer<N>,
    pub(crate) layers: Vec<Layer<N>>,
    pub(crate) final_norm: Vec<f32>,
    pub(crate) head: Panels<N>,
}

impl<N: Number> NativeWeights<N> {
    /// Packs the weights of a network, converting their element type.
    ///
    /// # Errors
    /// When the system has no room for them.
    pub(crate) fn pack(config: &ModelConfig, weights: &Weights) -> std::io::Result<Self> {
        let _guard = tch::no_grad_guard();
        let network = weights.network(config);
        let table: Vec<N> = numbers(&network.embedding);
        let mut embedding = Buffer::zeros(table.len())?;
        embedding.copy_from_slice(&table);
        let tied = config.tied();
        let head = if tied { table } else { numbers(&network.output.head) };
        let vocab = size(config.vocab_size);
        Ok(Self {
            embedding,
            layers: network.blocks.iter().map(|block| layer(config, block)).collect::<Result<_, _>>()?,
            final_norm: numbers(&network.output.norm),
            head: matrix(&head, vocab)?,
        })
    }
}

fn layer<N: Number>(config: &ModelConfig, block: &BlockWeights) -> std::io::Result<Layer<N>> {
    let plain = |weight: &Tensor, bias: &Option<Tensor>| {
        let weights = matrix(&numbers::<N>(weight), size(weight.size()[0]))?;
        Ok::<_, std::io::Error>(Projection { weights, bias: bias.as_ref().map(numbers) })
    };
    Ok(Layer {
        attention_norm: numbers(&block.attention_norm),
        qkv: plain(&block.qkv, &block.qkv_bias)?,
        head_norms: block.head_norms.as_ref().map(|(query, key)| (numbers(query), numbers(key))),
        output: plain(&block.output, &block.output_bias)?,
        mlp_norm: numbers(&block.mlp_norm),
        gate_up: gate_up(config, block)?,
        down: plain(&block.down, &block.down_bias)?,
    })
}

/// Panels of 32 gates, then the 32 values that they multiply, and so on.
fn gate_up<N: Number>(config: &ModelConfig, block: &BlockWeights) -> std::io::Result<Projection<N>> {
    let intermediate = size(config.intermediate_size);
    let outputs = 2 * intermediate.next_multiple_of(PANEL);
    let source = |output: usize| {
        let (pair, place) = (output / (2 * PANEL), output % (2 * PANEL));
        let column = pair * PANEL + place % PANEL;
        (column < intermediate).then_some(column + place / PANEL * intermediate)
    };
    let inputs = size(config.hidden_size);
    let elements: Vec<N> = numbers(&block.gate_up);
    let row = |output: usize| source(output).map(|row| &elements[row * inputs..][..inputs]);
    let bias = block.gate_up_bias.as_ref().map(|bias| {
        let bias: Vec<f32> = numbers(bias);
        (0..outputs).map(|output| source(output).map_or(0.0, |row| bias[row])).collect()
    });
    Ok(Projection { weights: Panels::pack(outputs, inputs, row)?, bias })
}

/// Packs a row-major matrix.
fn matrix<N: Number>(elements: &[N], outputs: usize) -> std::io::Result<Panels<N>> {
    let inputs = elements.len() / outputs;
    Panels::pack(outputs, inputs, |row| Some(&elements[row * inputs..][..inputs]))
}

/// The elements of a tensor as numbers of this type.
fn numbers<N: Number>(tensor: &Tensor) -> Vec<N> {
    let tensor = tensor.to_kind(N::TORCH).to_device(tch::Device::Cpu).contiguous();
    // As bytes: tch 0.24.0 takes `half::bf16` for f16.
    buffer::with_bytes(&tensor, |bytes| bytemuck::allocation::pod_collect_to_vec(bytes))
}

/// A dimension of a validated configuration.
pub(crate) fn size(value: i64) -> usize {
    usize::try_from(value).expect("the model's configuration is validated")
}
