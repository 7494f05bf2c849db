//! Rotary position embedding in its five variants, computed as transformers does (`modeling_rope_utils`), so
//! that the frequencies have the same bits.

use tch::{Device, Kind, Tensor};

use crate::config::{ModelConfig, RopeScaling, Yarn};

/// The frequencies of a network, on one device.
#[derive(Debug)]
pub struct Rope {
    /// Exponents `2i / head_dim`, `[head_dim / 2]`, f32.
    exponents: Tensor,
    /// Frequencies, `[head_dim / 2]`, f32, for sequences within `max_positions`.
    frequencies: Tensor,
    theta: f64,
    head_dim: i64,
    max_positions: i64,
    dynamic_factor: Option<f64>,
    /// What cosines and sines are multiplied by.
    attention_factor: f64,
    kind: Kind,
}

impl Rope {
    /// The frequencies of `config`; rotations will be of element type `kind`.
    pub fn new(config: &ModelConfig, kind: Kind, device: Device) -> Self {
        let _guard = tch::no_grad_guard();
        let head_dim = config.head_dim;
        let even = Tensor::arange_start_step(0, head_dim, 2, (Kind::Float, device));
        let exponents = even / head_dim as f64;
        let frequencies = Tensor::pow_scalar(config.rope.theta, &exponents).reciprocal();
        let frequencies = match config.rope.scaling {
            RopeScaling::Default | RopeScaling::Dynamic { .. } => frequencies,
            RopeScaling::Linear { factor } => frequencies / factor,
            RopeScaling::Llama3 { .. } => llama3(&frequencies, config.rope.scaling),
            RopeScaling::Yarn(yarn) => stretched(&yarn, config, &exponents),
        };
        let dynamic_factor = match config.rope.scaling {
            RopeScaling::Dynamic { factor } => Some(factor),
            _ => None,
        };
        let attention_factor = match config.rope.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor,
            _ => 1.0,
        };
        let max_positions = config.max_positions;
        Self {
            exponents,
            frequencies,
            theta: config.rope.theta,
            head_dim,
            max_positions,
            dynamic_factor,
            attention_factor,
            kind,
        }
    }

    /// Whether a row's rotation depends on the length of its sequence besides its position. Then a key that
    /// was rotated when its sequence was shorter (a cached one) differs from the key of a whole forward pass
    /// once the sequence exceeds `max_positions`; transformers has the same property.
    pub fn depends_on_length(&self) -> bool {
        self.dynamic_factor.is_some()
    }

    /// The rotations of rows at `positions`, of sequences of `lengths` tokens, both `[rows]` i64.
    pub fn rows(&self, positions: &Tensor, lengths: &Tensor) -> RopeRows {
        let _guard = tch::no_grad_guard();
        let positions = positions.to_kind(Kind::Float).unsqueeze(-1);
        let angles = match self.dynamic_factor {
            None => positions * &self.frequencies, // [rows, head_dim / 2]
            Some(factor) => positions * self.dynamic_frequencies(factor, lengths),
        };
        let (mut cos, mut sin) = (angles.cos(), angles.sin());
        if self.attention_factor != 1.0 {
            (cos, sin) = (cos * self.attention_factor, sin * self.attention_factor);
        }
        let cos = Tensor::cat(&[&cos, &cos], -1).unsqueeze(1).to_kind(self.kind);
        let signed_sin = Tensor::cat(&[&sin.neg(), &sin], -1).unsqueeze(1).to_kind(self.kind);
        RopeRows { cos, signed_sin }
    }

    /// NTK-aware scaling: base `theta * (f * n / max - (f - 1)) ^ (d / (d - 2))` for sequences of `n > max`
    /// tokens.
    fn dynamic_frequencies(&self, factor: f64, lengths: &Tensor) -> Tensor {
        let most = self.max_positions as f64;
        let lengths = lengths.to_kind(Kind::Float).clamp_min(most).unsqueeze(-1);
        let growth = lengths * factor / most - (factor - 1.0);
        let dim = self.head_dim as f64;
        let base = growth.pow_tensor_scalar(dim / (dim - 2.0)) * self.theta; // [rows, 1]
        base.pow(&self.exponents).reciprocal()
    }
}

/// Llama 3.1's piecewise division of the frequencies (`_compute_llama3_parameters` in transformers).
fn llama3(frequencies: &Tensor, scaling: RopeScaling) -> Tensor {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } = scaling
    else {
        return frequencies.shallow_clone();
    };
    let context = original_max_positions as f64;
    let wavelengths = frequencies.reciprocal() * (2.0 * std::f64::consts::PI);
    let long = wavelengths.gt(context / low_freq_factor);
    let short = wavelengths.lt(context / high_freq_factor);
    let ramp = (wavelengths.reciprocal() * context - low_freq_factor) / (high_freq_factor - low_freq_factor);
    let between = (-&ramp + 1.0) * frequencies / factor + ramp * frequencies;
    let divided = (frequencies / factor).where_self(&long, &between);
    frequencies.where_self(&short, &divided)
}

/// YaRN's frequencies (`_compute_yarn_parameters` in transformers), of exponents `[head_dim / 2]`.
fn stretched(yarn: &Yarn, config: &ModelConfig, exponents: &Tensor) -> Tensor {
    let (dim, theta) = (config.head_dim as f64, config.rope.theta);
    let context = yarn.original_max_positions as f64;
    // The dimension whose frequency makes so many turns over the context.
    let dimension_of =
        |turns: f64| dim * (context / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (dimension_of(yarn.beta_fast), dimension_of(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let half = Tensor::arange(config.head_dim / 2, (Kind::Float, exponents.device()));
    let kept = ((half - low) / (high - low)).clamp(0.0, 1.0).neg() + 1.0;
    let wavelengths = Tensor::pow_scalar(theta, exponents);
    let divided = (&wavelengths * yarn.factor).reciprocal();
    divided * (kept.neg() + 1.0) + wavelengths.reciprocal() * kept
}

/// The rotations of some rows.
#[derive(Debug)]
pub struct RopeRows {
    /// Cosines, `[rows, 1, head_dim]`; both halves are equal.
    cos: Tensor,
    /// Sines, `[rows, 1, head_dim]`, negated in the first half.
    signed_sin: Tensor,
}

impl RopeRows {
    /// Rotates `heads`, `[rows, heads, head_dim]`: `x cos + [-x2, x1] sin`, with `[x1, x2]` the halves of
    /// `x`.
    pub fn rotate(&self, heads: &Tensor) -> Tensor {
        let half = heads.size()[2] / 2;
        (heads * &self.cos).addcmul(&heads.roll([half], [-1]), &self.signed_sin)
    }
}
