//! Which parameters a network has, and where each lies.
//!
//! Parameters form groups: the embedding, each decoder block, and the output (final norm and head). A group
//! is one contiguous flat buffer in which its parameters lie one after the other without gaps. The buffers in
//! order, and the parameters in order within them, are the order of the weight manifest.
//!
//! One buffer per group makes the operations of training and serving few and large: an optimizer step, a
//! shard (ZeRO), a broadcast or a hash works on a buffer, and projections that read the same input lie side
//! by side, so that queries, keys and values (and gate and up) are one matrix product. The Hugging Face names
//! remain: a named parameter is a view.
//!
//! Invariant: within a group, matrices come first and vectors (biases, norms) last, so that weight decay,
//! which applies to matrices only, applies to a prefix.

use crate::config::{Head, ModelConfig};

/// One named parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Its name in a Hugging Face folder.
    pub name: String,
    /// Its dimensions, as transformers stores them.
    pub shape: Vec<i64>,
    /// Index of its first element in the group's buffer.
    pub offset: i64,
}

impl ParameterSpec {
    /// How many numbers it is.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}

/// What a group of parameters is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupKind {
    /// The token embedding.
    Embedding,
    /// Decoder block with this index.
    Block(usize),
    /// Final norm and head.
    Output,
}

/// One group of parameters: one flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLayout {
    /// What it is for.
    pub kind: GroupKind,
    /// Its parameters in order.
    pub parameters: Vec<ParameterSpec>,
    /// Elements of the buffer.
    pub numel: i64,
    /// Elements of the leading matrices: those that weight decay applies to.
    pub decayed: i64,
}

impl GroupLayout {
    fn new(kind: GroupKind, parameters: Vec<(String, Vec<i64>)>) -> Self {
        let mut offset = 0;
        let mut decayed = 0;
        let mut specs = Vec::with_capacity(parameters.len());
        for (name, shape) in parameters {
            let spec = ParameterSpec { name, shape, offset };
            offset += spec.numel();
            if spec.shape.len() > 1 {
                decayed = offset;
            }
            specs.push(spec);
        }
        Self { kind, parameters: specs, numel: offset, decayed }
    }
}

/// Every group of a network, in order: embedding, blocks, output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Embedding, blocks, output.
    pub groups: Vec<GroupLayout>,
}

impl Layout {
    /// The layout of a network.
    pub fn new(config: &ModelConfig) -> Self {
        let embedding = ("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, config.hidden_size]);
        let mut groups = vec![GroupLayout::new(GroupKind::Embedding, vec![embedding])];
        for layer in 0..config.layers {
            groups.push(GroupLayout::new(GroupKind::Block(layer), block_parameters(config, layer)));
        }
        groups.push(GroupLayout::new(GroupKind::Output, output_parameters(config)));
        Self { groups }
    }

    /// Parameters in manifest order.
    pub fn parameters(&self) -> impl Iterator<Item = &ParameterSpec> {
        self.groups.iter().flat_map(|group| &group.parameters)
    }

    /// Elements of all groups.
    pub fn numel(&self) -> i64 {
        self.groups.iter().map(|group| group.numel).sum()
    }
}

fn block_parameters(config: &ModelConfig, layer: usize) -> Vec<(String, Vec<i64>)> {
    let hidden = config.hidden_size;
    let query = config.heads * config.head_dim;
    let key = config.kv_heads * config.head_dim;
    let attention = [
        ("self_attn.q_proj", query, hidden, config.qkv_bias()),
        ("self_attn.k_proj", key, hidden, config.qkv_bias()),
        ("self_attn.v_proj", key, hidden, config.qkv_bias()),
        ("self_attn.o_proj", hidden, query, config.attention_bias),
    ];
    let projections: Vec<(String, i64, i64, bool)> = attention
        .into_iter()
        .map(|(part, rows, columns, bias)| (part.to_owned(), rows, columns, bias))
        .chain(feed_forward(config))
        .collect();
    let mut parameters = Vec::new();
    for (part, rows, columns, _) in &projections {
        parameters.push((format!("{part}.weight"), vec![*rows, *columns]));
    }
    for (part, rows, _, _) in projections.iter().filter(|(.., bias)| *bias) {
        parameters.push((format!("{part}.bias"), vec![*rows]));
    }
    parameters.push(("input_layernorm.weight".to_owned(), vec![hidden]));
    parameters.push(("post_attention_layernorm.weight".to_owned(), vec![hidden]));
    if config.qk_norm() {
        parameters.push(("self_attn.q_norm.weight".to_owned(), vec![config.head_dim]));
        parameters.push(("self_attn.k_norm.weight".to_owned(), vec![config.head_dim]));
    }
    for (name, _) in &mut parameters {
        name.insert_str(0, &format!("model.layers.{layer}."));
    }
    parameters
}

/// The projections behind attention: name, rows, columns, and whether there is a bias. Of experts the gate
/// and the up projection of each lie side by side, and behind all of them the down projections, so that each
/// kind is one tensor over the experts.
fn feed_forward(config: &ModelConfig) -> Vec<(String, i64, i64, bool)> {
    let (hidden, width, bias) = (config.hidden_size, config.feed_forward_width(), config.mlp_bias);
    let mut projections = Vec::new();
    let mut stems = vec!["mlp".to_owned()];
    if let Some(experts) = config.experts {
        projections.push(("mlp.gate".to_owned(), experts.count, hidden, false));
        stems = (0..experts.count).map(|expert| format!("mlp.experts.{expert}")).collect();
    }
    for stem in &stems {
        for part in ["gate_proj", "up_proj"] {
            projections.push((format!("{stem}.{part}"), width, hidden, bias));
        }
    }
    projections.extend(stems.iter().map(|stem| (format!("{stem}.down_proj"), hidden, width, bias)));
    projections
}

fn output_parameters(config: &ModelConfig) -> Vec<(String, Vec<i64>)> {
    let mut parameters = Vec::new();
    match config.head {
        Head::Causal if config.tie_word_embeddings => {}
        Head::Causal => {
            parameters.push(("lm_head.weight".to_owned(), vec![config.vocab_size, config.hidden_size]));
        }
        Head::Scalar => parameters.push(("score.weight".to_owned(), vec![1, config.hidden_size])),
    }
    parameters.push(("model.norm.weight".to_owned(), vec![config.hidden_size]));
    parameters
}
