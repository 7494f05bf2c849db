//! The decoder as pure functions over tensors (Vaswani et al., arXiv 1706.03762; Touvron et al., Llama, arXiv
//! 2302.13971): pre-norm blocks of grouped-query attention with rotary positions and a gated feed-forward
//! layer.
//!
//! Tokens of all sequences lie in one row dimension; there is no padding. Attention is an argument of
//! [`block`]: training and scoring pass [`packed_attention`], generation passes attention over its cache, and
//! both run the same network. Every function works with and without gradients.

use tch::Tensor;

use crate::attention::packed_attention;
use crate::config::ModelConfig;
use crate::feed_forward::{ExpertWeights, FeedForward, GatedWeights, gated};
use crate::packed::Packed;
use crate::rope::RopeRows;

/// The weights of one decoder block. Biases and head norms are present where the configuration has them.
#[derive(Debug)]
pub struct BlockWeights {
    /// Queries, keys and values, `[(heads + 2 kv_heads) * head_dim, hidden]`.
    pub qkv: Tensor,
    /// Attention output, `[hidden, heads * head_dim]`.
    pub output: Tensor,
    /// Bias of `qkv`.
    pub qkv_bias: Option<Tensor>,
    /// Bias of `output`.
    pub output_bias: Option<Tensor>,
    /// What follows attention.
    pub feed_forward: FeedForward,
    /// RMS norm before attention, `[hidden]`.
    pub attention_norm: Tensor,
    /// RMS norm before the feed-forward layer, `[hidden]`.
    pub mlp_norm: Tensor,
    /// RMS norms of the heads.
    pub head_norms: Option<HeadNorms>,
}

/// RMS norms of the heads before they are rotated.
#[derive(Debug)]
pub struct HeadNorms {
    /// Of each query head, `[head_dim]`.
    pub query: Tensor,
    /// Of each key head, `[head_dim]`.
    pub key: Tensor,
}

/// A part of a buffer that has elements.
fn present(part: &Tensor) -> Option<Tensor> {
    (part.numel() > 0).then(|| part.shallow_clone())
}

impl BlockWeights {
    /// Views of a block's flat buffer, `[numel]`, as [`crate::Layout`] lays it out. One split, so that the
    /// gradient of the buffer is one concatenation.
    ///
    /// # Panics
    /// When the buffer is not of this configuration's size.
    pub fn view(config: &ModelConfig, flat: &Tensor) -> Self {
        let (hidden, width) = (config.hidden_size, config.feed_forward_width());
        let query = config.heads * config.head_dim;
        let qkv = query + 2 * config.kv_heads * config.head_dim;
        let experts = config.experts.map_or(1, |experts| experts.count);
        // What the configuration does not have has no elements.
        let sizes = [
            qkv * hidden,
            hidden * query,
            if config.experts.is_some() { experts * hidden } else { 0 },
            experts * 2 * width * hidden,
            experts * hidden * width,
            if config.qkv_bias() { qkv } else { 0 },
            if config.attention_bias { hidden } else { 0 },
            if config.mlp_bias { 2 * width } else { 0 },
            if config.mlp_bias { hidden } else { 0 },
            hidden,
            hidden,
            if config.qk_norm() { config.head_dim } else { 0 },
            if config.qk_norm() { config.head_dim } else { 0 },
        ];
        let parts = flat.split_with_sizes(sizes, 0);
        let [query_norm, key_norm] = [11, 12].map(|at| present(&parts[at]));
        let feed_forward = match config.experts {
            None => FeedForward::Dense(GatedWeights {
                gate_up: parts[3].view([2 * width, hidden]),
                down: parts[4].view([hidden, width]),
                gate_up_bias: present(&parts[7]),
                down_bias: present(&parts[8]),
            }),
            Some(_) => FeedForward::Experts(ExpertWeights {
                router: parts[2].view([experts, hidden]),
                gate_up: parts[3].view([experts, 2 * width, hidden]),
                down: parts[4].view([experts, hidden, width]),
            }),
        };
        Self {
            qkv: parts[0].view([qkv, hidden]),
            output: parts[1].view([hidden, query]),
            qkv_bias: present(&parts[5]),
            output_bias: present(&parts[6]),
            feed_forward,
            attention_norm: parts[9].shallow_clone(),
            mlp_norm: parts[10].shallow_clone(),
            head_norms: query_norm.zip(key_norm).map(|(query, key)| HeadNorms { query, key }),
        }
    }
}

/// The weights behind the last block.
#[derive(Debug)]
pub struct OutputWeights {
    /// Final RMS norm, `[hidden]`.
    pub norm: Tensor,
    /// `[vocab, hidden]` for a causal head (the embedding itself when tied), `[1, hidden]` for a scalar head.
    pub head: Tensor,
}

impl OutputWeights {
    /// Views of the output group's flat buffer; `embedding` `[vocab, hidden]` is the head of a tied network.
    ///
    /// # Panics
    /// When the buffer is not of this configuration's size.
    pub fn view(config: &ModelConfig, flat: &Tensor, embedding: &Tensor) -> Self {
        if config.tied() {
            return Self { norm: flat.shallow_clone(), head: embedding.shallow_clone() };
        }
        let hidden = config.hidden_size;
        let parts = flat.split_with_sizes([flat.size()[0] - hidden, hidden], 0);
        Self { norm: parts[1].shallow_clone(), head: parts[0].view([-1, hidden]) }
    }
}

/// A whole network's weights, as the functions of this module take them.
#[derive(Debug)]
pub struct Network {
    /// Token embedding, `[vocab, hidden]`.
    pub embedding: Tensor,
    /// The decoder blocks, the first one first.
    pub blocks: Vec<BlockWeights>,
    /// Final norm and head.
    pub output: OutputWeights,
}

/// Embeds `tokens`, `[rows]` i64, as `[rows, hidden]`.
pub fn embed(embedding: &Tensor, tokens: &Tensor) -> Tensor {
    Tensor::embedding(embedding, tokens, -1, false, false)
}

/// RMS norm over the last dimension, with f32 statistics: `x / sqrt(mean(x²) + eps) * weight`
/// (Zhang and Sennrich, arXiv 1910.07467).
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    x.rms_norm(weight.size(), Some(weight), eps)
}

/// What went into a projection and what came out, parts of an autograd graph. The gradient in the output is
/// all that the gradient in the projection's matrix needs besides the input.
#[derive(Debug)]
pub struct ProjectionPass {
    /// `[rows, in]`.
    pub input: Tensor,
    /// `[rows, out]`; of those that add to the residual stream, the sum.
    pub output: Tensor,
}

/// The projections of a block, as [`BlockWeights`] has them.
#[derive(Debug)]
pub struct BlockPasses {
    /// Queries, keys and values.
    pub qkv: ProjectionPass,
    /// Attention output.
    pub output: ProjectionPass,
    /// Gate and up projections.
    pub gate_up: ProjectionPass,
    /// Down projection, whose output is the block's.
    pub down: ProjectionPass,
}

/// One decoder block: `x`, `[rows, hidden]`, to the same shape.
///
/// `attend` is given queries `[rows, heads, head_dim]` and keys and values `[rows, kv_heads, head_dim]`,
/// normalised and rotated, and returns `[rows, heads, head_dim]`.
///
/// # Panics
/// When a tensor's shape is not the configuration's.
pub fn block(
    config: &ModelConfig,
    weights: &BlockWeights,
    x: &Tensor,
    rope: &RopeRows,
    attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Tensor,
) -> Tensor {
    let normed = rms_norm(x, &weights.attention_norm, config.rms_norm_eps);
    let qkv = normed.linear(&weights.qkv, weights.qkv_bias.as_ref());
    let attended = attention(config, weights, &qkv, rope, attend);
    drop((normed, qkv));
    let x = add_linear(x, &attended, &weights.output, weights.output_bias.as_ref());
    drop(attended);
    let normed = rms_norm(&x, &weights.mlp_norm, config.rms_norm_eps);
    match &weights.feed_forward {
        FeedForward::Dense(layer) => {
            let gated = gated(&normed.linear(&layer.gate_up, layer.gate_up_bias.as_ref()));
            add_linear(&x, &gated, &layer.down, layer.down_bias.as_ref())
        }
        FeedForward::Experts(experts) => x + experts.apply(config, &normed),
    }
}

/// [`block`], with what went through its projections; the block's output is that of `down`.
///
/// # Panics
/// As [`block`], and for a mixture of experts.
pub fn block_passes(
    config: &ModelConfig,
    weights: &BlockWeights,
    x: &Tensor,
    rope: &RopeRows,
    attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Tensor,
) -> BlockPasses {
    let normed = rms_norm(x, &weights.attention_norm, config.rms_norm_eps);
    let qkv = normed.linear(&weights.qkv, weights.qkv_bias.as_ref());
    let attended = attention(config, weights, &qkv, rope, attend);
    let x = add_linear(x, &attended, &weights.output, weights.output_bias.as_ref());
    let mlp_normed = rms_norm(&x, &weights.mlp_norm, config.rms_norm_eps);
    let layer = weights.feed_forward.dense();
    let gate_up = mlp_normed.linear(&layer.gate_up, layer.gate_up_bias.as_ref());
    let gated = gated(&gate_up);
    let down = add_linear(&x, &gated, &layer.down, layer.down_bias.as_ref());
    BlockPasses {
        qkv: ProjectionPass { input: normed, output: qkv },
        output: ProjectionPass { input: attended, output: x },
        gate_up: ProjectionPass { input: mlp_normed, output: gate_up },
        down: ProjectionPass { input: gated, output: down },
    }
}

/// From queries, keys and values, `[rows, (heads + 2 kv_heads) * head_dim]`, to `[rows, heads * head_dim]`.
fn attention(
    config: &ModelConfig,
    weights: &BlockWeights,
    qkv: &Tensor,
    rope: &RopeRows,
    attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Tensor,
) -> Tensor {
    let (heads, kv_heads, head_dim) = (config.heads, config.kv_heads, config.head_dim);
    let qkv = qkv.view([-1, heads + 2 * kv_heads, head_dim]);
    let [queries_keys, values] = split(&qkv, [heads + kv_heads, kv_heads]);
    let queries_keys = match &weights.head_norms {
        Some(norms) => head_norm(config, &queries_keys, norms),
        None => queries_keys,
    };
    let [queries, keys] = split(&rope.rotate(&queries_keys), [heads, kv_heads]);
    attend(&queries, &keys, &values).reshape([-1, heads * head_dim])
}

/// Parts of the second dimension. One split, so that its gradient is one concatenation: that of a `narrow`
/// would be a matrix of zeros for each part.
fn split<const PARTS: usize>(x: &Tensor, sizes: [i64; PARTS]) -> [Tensor; PARTS] {
    x.split_with_sizes(sizes, 1).try_into().expect("as many parts as sizes")
}

/// RMS norm of each query and key head, `[rows, heads + kv_heads, head_dim]`, with one weight for queries and
/// one for keys.
fn head_norm(config: &ModelConfig, queries_keys: &Tensor, norms: &HeadNorms) -> Tensor {
    let query = norms.query.unsqueeze(0).expand([config.heads, config.head_dim], false);
    let key = norms.key.unsqueeze(0).expand([config.kv_heads, config.head_dim], false);
    let normed = queries_keys.rms_norm([config.head_dim], None::<&Tensor>, config.rms_norm_eps);
    normed * Tensor::cat(&[query, key], 0)
}

/// `x + input @ weight.T + bias`, the sum taken inside the matrix product.
fn add_linear(x: &Tensor, input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let sum = x.addmm(input, &weight.tr());
    match bias {
        Some(bias) => sum + bias,
        None => sum,
    }
}

/// The norm behind the last block, `[rows, hidden]` to the same shape.
pub fn final_norm(config: &ModelConfig, output: &OutputWeights, x: &Tensor) -> Tensor {
    rms_norm(x, &output.norm, config.rms_norm_eps)
}

/// Logits of `hidden`, `[rows, hidden]`, as `[rows, vocab]` in the weights' element type. For
/// log-probabilities of given tokens use [`crate::logprobs`], which never holds this matrix as a whole.
pub fn logits(output: &OutputWeights, hidden: &Tensor) -> Tensor {
    hidden.linear(&output.head, None::<&Tensor>)
}

/// The scalar head on `hidden`, `[rows, hidden]`, as `[rows]` f32.
pub fn scores(output: &OutputWeights, hidden: &Tensor) -> Tensor {
    use tch::Kind::Float;
    hidden.to_kind(Float).matmul(&output.head.to_kind(Float).tr()).squeeze_dim(-1)
}

/// The whole network up to and including the final norm: `[total, hidden]` for a packed batch.
pub fn forward(config: &ModelConfig, network: &Network, packed: &Packed) -> Tensor {
    let rope = packed.rope(config, network.embedding.kind());
    let mut x = embed(&network.embedding, packed.tokens());
    for (layer, weights) in network.blocks.iter().enumerate() {
        let window = config.window(layer);
        x = block(config, weights, &x, &rope, |queries, keys, values| {
            packed_attention(queries, keys, values, packed, window)
        });
    }
    final_norm(config, &network.output, &x)
}
