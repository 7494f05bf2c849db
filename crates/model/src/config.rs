//! What a network is: the fields of `config.json` that decide its shape and its numbers.
//!
//! Invariants of a [`ModelConfig`] that came out of [`ModelConfig::parse`] or passed
//! [`ModelConfig::validate`]:
//! 1. every dimension is positive and bounded, so that no product of them overflows an `i64`;
//! 2. `heads` is a multiple of `kv_heads`, `head_dim` is even;
//! 3. nothing the network does not implement is silently ignored: another activation, RoPE variant, head or
//!    quantisation is an error that names it.
//!
//! Fields of the file that are not understood are kept and written back, so that a folder read and written
//! again still means the same to other programs.

mod read;
mod write;

use serde_json::{Map, Value};
use tch::Kind;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The file is not a JSON object.
    #[error("config.json is not a JSON object: {0}")]
    Syntax(String),
    /// A field the network cannot do without is absent.
    #[error("config.json has no field {0}")]
    Missing(&'static str),
    /// A field has a value of the wrong type or outside its range.
    #[error("config.json: {field} is {found}, expected {expected}")]
    Invalid {
        /// The field's name.
        field: &'static str,
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: String,
    },
    /// A network of another kind.
    #[error("unsupported architecture {0}, expected one of {supported}", supported = supported())]
    Architecture(String),
    /// A feature of the network that is not implemented.
    #[error("config.json: unsupported {field} {found}")]
    Unsupported {
        /// The field's name.
        field: &'static str,
        /// What stands there.
        found: String,
    },
}

fn supported() -> String {
    let pairs = Architecture::ALL
        .iter()
        .flat_map(|architecture| [Head::Causal, Head::Scalar].map(|head| architecture.class(head)));
    pairs.collect::<Vec<_>>().join(", ")
}

/// The family of decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 1 to 3, and what shares its network: DeepSeek-Coder, TinyLlama, SmolLM.
    Llama,
    /// Mistral 7B: Llama with a sliding attention window.
    Mistral,
    /// Qwen 2 and 2.5: Llama with a bias on the query, key and value projections.
    Qwen2,
    /// Qwen 3: RMS norm on each query and key head, head dimension independent of the width.
    Qwen3,
    /// Qwen 3 with a mixture of experts in the place of every feed-forward layer.
    Qwen3Moe,
}

impl Architecture {
    /// All families that can be read.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Qwen3Moe];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3_moe",
        }
    }

    /// The class name transformers gives a network of this family with this head: the entry of
    /// `architectures`.
    pub fn class(self, head: Head) -> &'static str {
        match (self, head) {
            (Self::Llama, Head::Causal) => "LlamaForCausalLM",
            (Self::Llama, Head::Scalar) => "LlamaForSequenceClassification",
            (Self::Mistral, Head::Causal) => "MistralForCausalLM",
            (Self::Mistral, Head::Scalar) => "MistralForSequenceClassification",
            (Self::Qwen2, Head::Causal) => "Qwen2ForCausalLM",
            (Self::Qwen2, Head::Scalar) => "Qwen2ForSequenceClassification",
            (Self::Qwen3, Head::Causal) => "Qwen3ForCausalLM",
            (Self::Qwen3, Head::Scalar) => "Qwen3ForSequenceClassification",
            (Self::Qwen3Moe, Head::Causal) => "Qwen3MoeForCausalLM",
            (Self::Qwen3Moe, Head::Scalar) => "Qwen3MoeForSequenceClassification",
        }
    }
}

/// What the network computes from its last hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Head {
    /// Logits over the vocabulary: `lm_head.weight`, or the embedding when tied.
    Causal,
    /// One number per token, `score.weight` `[1, hidden]`: reward models (read at the last token) and
    /// critics.
    Scalar,
}

/// How rotary frequencies are stretched beyond the context they were trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all (Su et al., RoFormer, arXiv 2104.09864).
    Default,
    /// Positions divided by `factor` (Chen et al., position interpolation, arXiv 2306.15595).
    Linear {
        /// Divisor of the frequencies.
        factor: f64,
    },
    /// NTK-aware: the base grows with sequences longer than `max_positions`.
    Dynamic {
        /// Growth of the context.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the pre-training, in tokens.
        original_max_positions: i64,
    },
    /// YaRN (Peng et al., arXiv 2309.00071): low frequencies divided by `factor`, high ones kept, a ramp
    /// between, and all cosines and sines scaled.
    Yarn(Yarn),
}

/// YaRN's parameters, as transformers names them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// Divisor of the low frequencies.
    pub factor: f64,
    /// Context length of the pre-training, in tokens.
    pub original_max_positions: i64,
    /// Frequencies with more turns than this over that context are kept.
    pub beta_fast: f64,
    /// Frequencies with fewer turns are divided.
    pub beta_slow: f64,
    /// What cosines and sines are multiplied by, so that logits of attention have this factor squared.
    pub attention_factor: f64,
    /// Whether the ends of the ramp are whole numbers.
    pub truncate: bool,
}

/// Rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How positions beyond the trained ones are reached.
    pub scaling: RopeScaling,
}

/// Attention limited to the latest tokens, on some layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Keys a query sees, its own included.
    pub tokens: i64,
    /// For each layer, whether it is limited.
    pub layers: Vec<bool>,
}

/// A mixture of experts (Shazeer et al., arXiv 1701.06538): of `count` feed-forward layers each token runs
/// through `per_token`, which a router chooses, and their outputs are summed by the router's probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Experts of each block.
    pub count: i64,
    /// How many of them a token runs through.
    pub per_token: i64,
    /// Width of each of them.
    pub intermediate_size: i64,
    /// Whether the probabilities of the chosen ones are divided by their sum.
    pub normalized: bool,
}

/// The sizes of a new network; everything else takes its family's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dimensions {
    /// Tokens in the vocabulary.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width of the feed-forward layer.
    pub intermediate_size: i64,
    /// How many decoder blocks.
    pub layers: usize,
    /// How many query heads.
    pub heads: i64,
    /// Key and value heads.
    pub kv_heads: i64,
    /// Longest sequence, in tokens.
    pub max_positions: i64,
}

/// A decoder's shape and options.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family, which decides biases and norms.
    pub architecture: Architecture,
    /// What the network gives for each token.
    pub head: Head,
    /// Tokens in the vocabulary: rows of the embedding.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width of the feed-forward layer. A mixture of experts has none: its experts have their own.
    pub intermediate_size: i64,
    /// The experts of every block, of `qwen3_moe` and of no other family.
    pub experts: Option<Experts>,
    /// How many decoder blocks.
    pub layers: usize,
    /// How many query heads.
    pub heads: i64,
    /// Key and value heads; `heads / kv_heads` queries share one (Ainslie et al., GQA, arXiv 2305.13245).
    pub kv_heads: i64,
    /// Elements of one head.
    pub head_dim: i64,
    /// Longest sequence the positions were trained for, in tokens.
    pub max_positions: i64,
    /// Added to the mean square in RMS norm.
    pub rms_norm_eps: f64,
    /// How positions are rotated.
    pub rope: RopeConfig,
    /// Bias on all four attention projections (Llama and Qwen3 only; Qwen2 always has it on three of them).
    pub attention_bias: bool,
    /// Bias on the feed-forward projections (Llama only).
    pub mlp_bias: bool,
    /// Sliding window, if any layer has one.
    pub sliding_window: Option<SlidingWindow>,
    /// Whether the logits use the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Standard deviation of newly initialised matrices.
    pub initializer_range: f64,
    /// Element type the file announces, if it does.
    pub dtype: Option<Kind>,
    /// The token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a response.
    pub eos_token_ids: Vec<u32>,
    /// Padding token. Sluice never pads; other programs need it in a scalar head's folder.
    pub pad_token_id: Option<u32>,
    /// The object this was read from, whose unknown fields are written back; empty for a new network.
    pub source: Map<String, Value>,
}

impl ModelConfig {
    /// A new network of a family, with that family's defaults, no bias beyond them, no window, untied, f32.
    /// A mixture of experts has 8 of the width that the dimensions say, of which a token runs through 2.
    ///
    /// # Errors
    /// When the dimensions do not fit together.
    pub fn new(architecture: Architecture, dimensions: Dimensions) -> Result<Self, Error> {
        let Dimensions { heads, hidden_size, .. } = dimensions;
        let config = Self {
            architecture,
            head: Head::Causal,
            vocab_size: dimensions.vocab_size,
            hidden_size,
            intermediate_size: dimensions.intermediate_size,
            experts: (architecture == Architecture::Qwen3Moe).then_some(Experts {
                count: 8,
                per_token: 2,
                intermediate_size: dimensions.intermediate_size,
                normalized: true,
            }),
            layers: dimensions.layers,
            heads,
            kv_heads: dimensions.kv_heads,
            head_dim: hidden_size.checked_div(heads).unwrap_or(0),
            max_positions: dimensions.max_positions,
            rms_norm_eps: 1e-6,
            rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::Default },
            attention_bias: false,
            mlp_bias: false,
            sliding_window: None,
            tie_word_embeddings: false,
            initializer_range: 0.02,
            dtype: None,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
            source: Map::new(),
        };
        config.validate()?;
        Ok(config)
    }

    /// Keys a query of `layer` sees, its own included; `None` for all of them.
    pub fn window(&self, layer: usize) -> Option<i64> {
        let window = self.sliding_window.as_ref()?;
        window.layers.get(layer).copied().unwrap_or(false).then_some(window.tokens)
    }

    /// Whether the query, key and value projections have a bias.
    pub fn qkv_bias(&self) -> bool {
        self.architecture == Architecture::Qwen2 || self.attention_bias
    }

    /// Whether each query and key head is normalised before it is rotated.
    pub(crate) fn qk_norm(&self) -> bool {
        matches!(self.architecture, Architecture::Qwen3 | Architecture::Qwen3Moe)
    }

    /// Rows of the gate and of the up projection, of one expert where there are several.
    pub fn feed_forward_width(&self) -> i64 {
        self.experts.map_or(self.intermediate_size, |experts| experts.intermediate_size)
    }

    /// Whether the logits come from the embedding matrix, so that the folder holds no head.
    pub fn tied(&self) -> bool {
        self.head == Head::Causal && self.tie_word_embeddings
    }

    /// The same trunk with a scalar head: a reward model's or critic's configuration.
    #[must_use]
    pub fn with_scalar_head(mut self) -> Self {
        self.head = Head::Scalar;
        self
    }

    /// Checks the invariants of this module.
    ///
    /// # Errors
    /// Names the first field that breaks one.
    pub fn validate(&self) -> Result<(), Error> {
        let layers = i64::try_from(self.layers).unwrap_or(i64::MAX);
        let bounded = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 18),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", layers, 1 << 12),
            ("num_attention_heads", self.heads, 1 << 12),
            ("num_key_value_heads", self.kv_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("max_position_embeddings", self.max_positions, 1 << 31),
        ];
        for (field, value, most) in bounded {
            if !(1..=most).contains(&value) {
                return Err(invalid(field, value, format!("1 to {most}")));
            }
        }
        if self.heads % self.kv_heads != 0 {
            let expected = format!("a divisor of num_attention_heads {}", self.heads);
            return Err(invalid("num_key_value_heads", self.kv_heads, expected));
        }
        if self.head_dim % 2 != 0 {
            return Err(invalid("head_dim", self.head_dim, "an even number"));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(invalid("rms_norm_eps", self.rms_norm_eps, "a number of at least 0"));
        }
        if !(self.initializer_range.is_finite() && self.initializer_range >= 0.0) {
            return Err(invalid("initializer_range", self.initializer_range, "a number of at least 0"));
        }
        if self.attention_bias && matches!(self.architecture, Architecture::Mistral | Architecture::Qwen2) {
            return Err(invalid(
                "attention_bias",
                true,
                format!("false for {}", self.architecture.model_type()),
            ));
        }
        if self.mlp_bias && self.architecture != Architecture::Llama {
            return Err(invalid("mlp_bias", true, format!("false for {}", self.architecture.model_type())));
        }
        self.validate_experts()?;
        self.validate_rope()?;
        self.validate_window()
    }

    fn validate_experts(&self) -> Result<(), Error> {
        let Some(experts) = self.experts else {
            return match self.architecture {
                Architecture::Qwen3Moe => Err(Error::Missing("num_experts")),
                _ => Ok(()),
            };
        };
        if self.architecture != Architecture::Qwen3Moe {
            let expected = format!("absent for {}", self.architecture.model_type());
            return Err(invalid("num_experts", experts.count, expected));
        }
        let bounded = [
            ("num_experts", experts.count, 1 << 12),
            ("num_experts_per_tok", experts.per_token, experts.count),
            ("moe_intermediate_size", experts.intermediate_size, 1 << 20),
        ];
        for (field, value, most) in bounded {
            if !(1..=most).contains(&value) {
                return Err(invalid(field, value, format!("1 to {most}")));
            }
        }
        Ok(())
    }

    fn validate_rope(&self) -> Result<(), Error> {
        positive("rope_theta", self.rope.theta)?;
        match self.rope.scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => positive("rope factor", factor),
            RopeScaling::Dynamic { .. } if self.head_dim < 4 => {
                Err(invalid("head_dim", self.head_dim, "at least 4 with dynamic RoPE"))
            }
            RopeScaling::Dynamic { factor } => positive("rope factor", factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                positive("rope factor", factor)?;
                positive("low_freq_factor", low_freq_factor)?;
                positive("high_freq_factor", high_freq_factor)?;
                if low_freq_factor >= high_freq_factor {
                    let expected = format!("less than high_freq_factor {high_freq_factor}");
                    return Err(invalid("low_freq_factor", low_freq_factor, expected));
                }
                at_least_one_position(original_max_positions)
            }
            RopeScaling::Yarn(yarn) => {
                positive("rope factor", yarn.factor)?;
                positive("beta_fast", yarn.beta_fast)?;
                positive("beta_slow", yarn.beta_slow)?;
                positive("attention_factor", yarn.attention_factor)?;
                if self.rope.theta == 1.0 {
                    return Err(invalid("rope_theta", 1.0, "not 1 with YaRN"));
                }
                at_least_one_position(yarn.original_max_positions)
            }
        }
    }

    fn validate_window(&self) -> Result<(), Error> {
        let Some(window) = &self.sliding_window else { return Ok(()) };
        if self.architecture == Architecture::Qwen3Moe {
            return Err(invalid("sliding_window", window.tokens, "none for qwen3_moe"));
        }
        if window.tokens < 1 {
            return Err(invalid("sliding_window", window.tokens, "at least 1"));
        }
        if window.layers.len() != self.layers {
            let expected = format!("one for each of {} layers", self.layers);
            return Err(invalid("layer_types", format!("{} entries", window.layers.len()), expected));
        }
        Ok(())
    }
}

fn at_least_one_position(original_max_positions: i64) -> Result<(), Error> {
    match original_max_positions {
        1.. => Ok(()),
        found => Err(invalid("original_max_position_embeddings", found, "at least 1")),
    }
}

fn positive(field: &'static str, value: f64) -> Result<(), Error> {
    if value.is_finite() && value > 0.0 { Ok(()) } else { Err(invalid(field, value, "a positive number")) }
}

fn invalid(field: &'static str, found: impl ToString, expected: impl Into<String>) -> Error {
    Error::Invalid { field, found: shorten(&found.to_string()), expected: expected.into() }
}

/// A value from a file, short enough for a message.
fn shorten(text: &str) -> String {
    const MOST: usize = 120;
    let short: String = text.chars().take(MOST).collect();
    if short.len() < text.len() { short + "…" } else { short }
}
