//! Reads `config.json` as transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and transformers 5
//! (`rope_parameters`, `dtype`) write it. Absent fields take the defaults of transformers' configuration
//! classes.

use serde_json::{Map, Value};
use tch::Kind;

use super::{
    Architecture, Error, Experts, Head, ModelConfig, RopeConfig, RopeScaling, SlidingWindow, Yarn, invalid,
    shorten,
};

/// transformers' default where a window is used without saying how wide.
const DEFAULT_WINDOW: i64 = 4096;

impl ModelConfig {
    /// Parses the bytes of a `config.json`.
    ///
    /// # Errors
    /// Names the field that is missing, wrong, or asks for something this network does not do.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => Self::from_object(object),
            Ok(other) => Err(Error::Syntax(format!("found {}", shorten(&other.to_string())))),
            Err(error) => Err(Error::Syntax(error.to_string())),
        }
    }

    /// Reads the object of a `config.json`.
    ///
    /// # Errors
    /// As [`ModelConfig::parse`].
    pub fn from_object(object: Map<String, Value>) -> Result<Self, Error> {
        let fields = Fields(&object);
        let (architecture, head) = architecture(&fields)?;
        refuse_unsupported(&fields, head)?;
        let llama = architecture == Architecture::Llama;
        let qwen = matches!(architecture, Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Qwen3Moe);
        let heads = fields.require_integer("num_attention_heads")?;
        let hidden_size = fields.require_integer("hidden_size")?;
        let layers = layer_count(&fields)?;
        let default_positions = match architecture {
            Architecture::Llama => 2048,
            Architecture::Mistral => 4096 * 32,
            Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Qwen3Moe => 32_768,
        };
        let default_kv_heads = match architecture {
            Architecture::Llama => heads,
            Architecture::Mistral => 8,
            Architecture::Qwen2 | Architecture::Qwen3 => 32,
            Architecture::Qwen3Moe => 4,
        };
        let default_head_dim = match architecture {
            Architecture::Qwen3 => 128,
            _ => hidden_size.checked_div(heads).unwrap_or(0),
        };
        let kv_heads = match object.get("num_key_value_heads") {
            Some(Value::Null) => heads,
            _ => fields.integer("num_key_value_heads")?.unwrap_or(default_kv_heads),
        };
        let max_positions = fields.integer("max_position_embeddings")?.unwrap_or(default_positions);
        let attention_bias = !matches!(architecture, Architecture::Mistral | Architecture::Qwen2)
            && fields.boolean("attention_bias")?.unwrap_or(false);
        let config = Self {
            architecture,
            head,
            vocab_size: fields.require_integer("vocab_size")?,
            hidden_size,
            intermediate_size: fields.require_integer("intermediate_size")?,
            experts: if architecture == Architecture::Qwen3Moe { Some(experts(&fields)?) } else { None },
            layers,
            heads,
            kv_heads,
            head_dim: fields.integer("head_dim")?.unwrap_or(default_head_dim),
            max_positions,
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope: rope(&fields, max_positions)?,
            attention_bias,
            mlp_bias: llama && fields.boolean("mlp_bias")?.unwrap_or(false),
            sliding_window: sliding_window(&fields, architecture, layers)?,
            tie_word_embeddings: fields.boolean("tie_word_embeddings")?.unwrap_or(false),
            initializer_range: fields.number("initializer_range")?.unwrap_or(0.02),
            dtype: dtype(&fields)?,
            bos_token_id: fields.token("bos_token_id", (!qwen).then_some(1))?,
            eos_token_ids: fields.tokens("eos_token_id", if qwen { &[] } else { &[2] })?,
            pad_token_id: fields.token("pad_token_id", None)?,
            source: Map::new(),
        };
        config.validate()?;
        Ok(Self { source: object, ..config })
    }
}

fn architecture(fields: &Fields) -> Result<(Architecture, Head), Error> {
    let model_type = fields.string("model_type")?;
    let class = match fields.0.get("architectures") {
        None | Some(Value::Null) => None,
        Some(Value::Array(names)) => names.first(),
        Some(other) => return Err(invalid("architectures", other, "a list of class names")),
    };
    let Some(class) = class else {
        let name = model_type.ok_or(Error::Missing("architectures"))?;
        let known = Architecture::ALL.into_iter().find(|known| known.model_type() == name);
        let known = known.ok_or_else(|| Error::Architecture(shorten(name)))?;
        return Ok((known, Head::Causal));
    };
    let pairs = Architecture::ALL
        .into_iter()
        .flat_map(|architecture| [Head::Causal, Head::Scalar].map(|head| (architecture, head)));
    let class = class.as_str().ok_or_else(|| invalid("architectures", class, "a list of class names"))?;
    let known = pairs.into_iter().find(|(architecture, head)| architecture.class(*head) == class);
    known.ok_or_else(|| Error::Architecture(shorten(class)))
}

/// Options that would change the numbers and that the network does not implement.
fn refuse_unsupported(fields: &Fields, head: Head) -> Result<(), Error> {
    if let Some(activation) = fields.string("hidden_act")?
        && !matches!(activation, "silu" | "swish")
    {
        return Err(unsupported("hidden_act", activation));
    }
    if let Some(quantization) = fields.present("quantization_config") {
        return Err(unsupported("quantization_config", quantization));
    }
    if let Some(fraction) = fields.number("partial_rotary_factor")?
        && fraction != 1.0
    {
        return Err(unsupported("partial_rotary_factor", fraction));
    }
    if head == Head::Scalar
        && let Some(Value::Object(labels)) = fields.0.get("id2label")
        && labels.len() != 1
    {
        return Err(invalid("id2label", format!("{} labels", labels.len()), "one label"));
    }
    Ok(())
}

/// Every block is a mixture: layers of one feed-forward layer between them are refused.
fn experts(fields: &Fields) -> Result<Experts, Error> {
    if let Some(step) = fields.integer("decoder_sparse_step")?
        && step != 1
    {
        return Err(unsupported("decoder_sparse_step", step));
    }
    if let Some(dense) = fields.present("mlp_only_layers")
        && dense.as_array().is_none_or(|layers| !layers.is_empty())
    {
        return Err(unsupported("mlp_only_layers", dense));
    }
    Ok(Experts {
        // As transformers 4 and 5 name them.
        count: fields.integer("num_experts")?.or(fields.integer("num_local_experts")?).unwrap_or(128),
        per_token: fields.integer("num_experts_per_tok")?.unwrap_or(8),
        intermediate_size: fields.integer("moe_intermediate_size")?.unwrap_or(768),
        normalized: fields.boolean("norm_topk_prob")?.unwrap_or(false),
    })
}

fn unsupported(field: &'static str, found: impl ToString) -> Error {
    Error::Unsupported { field, found: shorten(&found.to_string()) }
}

fn layer_count(fields: &Fields) -> Result<usize, Error> {
    let layers = fields.require_integer("num_hidden_layers")?;
    // Bounded before anything of this length is allocated.
    match usize::try_from(layers) {
        Ok(layers @ 1..=4096) => Ok(layers),
        _ => Err(invalid("num_hidden_layers", layers, "1 to 4096")),
    }
}

fn rope(fields: &Fields, max_positions: i64) -> Result<RopeConfig, Error> {
    let parameters = fields.object("rope_parameters")?;
    let scaling = fields.object("rope_scaling")?;
    let empty = Map::new();
    let variant = Fields(scaling.or(parameters).unwrap_or(&empty));
    let nested = parameters.map_or(Ok(None), |parameters| Fields(parameters).number("rope_theta"))?;
    let theta = nested.or(fields.number("rope_theta")?).unwrap_or(10_000.0);
    if let Some(fraction) = variant.number("partial_rotary_factor")?
        && fraction != 1.0
    {
        return Err(unsupported("partial_rotary_factor", fraction));
    }
    let name = variant.string("rope_type")?.or(variant.string("type")?).unwrap_or("default");
    let scaling = match name {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: rope_factor(&variant)? },
        "dynamic" => RopeScaling::Dynamic { factor: rope_factor(&variant)? },
        "llama3" => RopeScaling::Llama3 {
            factor: rope_factor(&variant)?,
            low_freq_factor: variant.number("low_freq_factor")?.ok_or(Error::Missing("low_freq_factor"))?,
            high_freq_factor: variant
                .number("high_freq_factor")?
                .ok_or(Error::Missing("high_freq_factor"))?,
            original_max_positions: variant
                .integer("original_max_position_embeddings")?
                .unwrap_or(max_positions),
        },
        "yarn" => RopeScaling::Yarn(yarn(variant.0, max_positions)?),
        other => return Err(Error::Unsupported { field: "rope_type", found: shorten(other) }),
    };
    Ok(RopeConfig { theta, scaling })
}

fn rope_factor(variant: &Fields) -> Result<f64, Error> {
    variant.number("factor")?.ok_or(Error::Missing("rope factor"))
}

/// As transformers reads them (`_compute_yarn_parameters`): keys that it does not know, such as
/// `attn_factor`, change nothing.
pub(super) fn yarn(fields: &Map<String, Value>, max_positions: i64) -> Result<Yarn, Error> {
    let variant = Fields(fields);
    let original_max_positions =
        variant.integer("original_max_position_embeddings")?.unwrap_or(max_positions);
    let factor = variant.number("factor")?.unwrap_or(max_positions as f64 / original_max_positions as f64);
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let non_zero = |key| Ok::<_, Error>(variant.number(key)?.filter(|number| *number != 0.0));
    let attention_factor =
        match (variant.number("attention_factor")?, non_zero("mscale")?, non_zero("mscale_all_dim")?) {
            (Some(given), ..) => given,
            (None, Some(mscale), Some(all)) => scale(mscale) / scale(all),
            _ => scale(1.0),
        };
    Ok(Yarn {
        factor,
        original_max_positions,
        beta_fast: non_zero("beta_fast")?.unwrap_or(32.0),
        beta_slow: non_zero("beta_slow")?.unwrap_or(1.0),
        attention_factor,
        truncate: variant.boolean("truncate")?.unwrap_or(true),
    })
}

/// Mistral limits every layer when `sliding_window` is a number; Qwen limits the layers from
/// `max_window_layers` on, or those `layer_types` lists, and only with `use_sliding_window`.
fn sliding_window(
    fields: &Fields,
    architecture: Architecture,
    layers: usize,
) -> Result<Option<SlidingWindow>, Error> {
    let tokens = match fields.0.get("sliding_window") {
        Some(Value::Null) => None,
        _ => Some(fields.integer("sliding_window")?.unwrap_or(DEFAULT_WINDOW)),
    };
    let Some(tokens) = tokens else { return Ok(None) };
    match architecture {
        Architecture::Llama => Ok(None),
        Architecture::Mistral => Ok(Some(SlidingWindow { tokens, layers: vec![true; layers] })),
        // Without `layer_types`: a window would be every layer's.
        Architecture::Qwen3Moe => match fields.boolean("use_sliding_window")? {
            Some(true) => Err(unsupported("use_sliding_window", true)),
            _ => Ok(None),
        },
        Architecture::Qwen2 | Architecture::Qwen3 => {
            if !fields.boolean("use_sliding_window")?.unwrap_or(false) {
                return Ok(None);
            }
            let full = usize::try_from(fields.integer("max_window_layers")?.unwrap_or(28)).unwrap_or(0);
            let limited = match fields.present("layer_types") {
                Some(types) => limited_layers(types)?,
                None => (0..layers).map(|layer| layer >= full).collect(),
            };
            let any = limited.iter().any(|limited| *limited);
            Ok(any.then_some(SlidingWindow { tokens, layers: limited }))
        }
    }
}

fn limited_layers(types: &Value) -> Result<Vec<bool>, Error> {
    const EXPECTED: &str = "full_attention or sliding_attention";
    let Some(types) = types.as_array() else { return Err(invalid("layer_types", types, EXPECTED)) };
    let mut limited = Vec::with_capacity(types.len());
    for kind in types {
        limited.push(match kind.as_str() {
            Some("full_attention") => false,
            Some("sliding_attention") => true,
            _ => return Err(invalid("layer_types", kind, EXPECTED)),
        });
    }
    Ok(limited)
}

fn dtype(fields: &Fields) -> Result<Option<Kind>, Error> {
    let Some(name) = fields.string("dtype")?.or(fields.string("torch_dtype")?) else { return Ok(None) };
    match name.trim_start_matches("torch.") {
        "float32" | "auto" => Ok((name != "auto").then_some(Kind::Float)),
        "bfloat16" => Ok(Some(Kind::BFloat16)),
        "float16" => Ok(Some(Kind::Half)),
        other => Err(Error::Unsupported { field: "dtype", found: shorten(other) }),
    }
}

/// Typed access to a JSON object. A field that is `null` counts as absent.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn present(&self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    /// The field as `read` takes it out of its value.
    fn typed<T>(
        &self,
        field: &'static str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.present(field) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| invalid(field, value, expected))
    }

    fn integer(&self, field: &'static str) -> Result<Option<i64>, Error> {
        self.typed(field, "an integer", Value::as_i64)
    }

    fn require_integer(&self, field: &'static str) -> Result<i64, Error> {
        self.integer(field)?.ok_or(Error::Missing(field))
    }

    fn number(&self, field: &'static str) -> Result<Option<f64>, Error> {
        self.typed(field, "a number", Value::as_f64)
    }

    fn boolean(&self, field: &'static str) -> Result<Option<bool>, Error> {
        self.typed(field, "true or false", Value::as_bool)
    }

    fn string(&self, field: &'static str) -> Result<Option<&'a str>, Error> {
        self.typed(field, "a string", Value::as_str)
    }

    fn object(&self, field: &'static str) -> Result<Option<&'a Map<String, Value>>, Error> {
        self.typed(field, "an object", Value::as_object)
    }

    /// A token id; `default` only where the field is absent, because `null` means "none".
    fn token(&self, field: &'static str, default: Option<u32>) -> Result<Option<u32>, Error> {
        match self.0.get(field) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            // Some checkpoints write -1 for "no padding token".
            Some(value) if value.as_i64() == Some(-1) => Ok(None),
            Some(value) => token_id(field, value).map(Some),
        }
    }

    /// One token id or a list of them.
    fn tokens(&self, field: &'static str, default: &[u32]) -> Result<Vec<u32>, Error> {
        match self.0.get(field) {
            Some(Value::Array(ids)) => ids.iter().map(|id| token_id(field, id)).collect(),
            Some(Value::Null) => Ok(Vec::new()),
            None => Ok(default.to_vec()),
            Some(id) => Ok(vec![token_id(field, id)?]),
        }
    }
}

fn token_id(field: &'static str, value: &Value) -> Result<u32, Error> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| invalid(field, value, "a token id"))
}
