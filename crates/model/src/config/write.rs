//! Writes `config.json`. A file that was read keeps its unknown fields. The file is in the shape of
//! transformers 4, which every later version reads too; where it was read in the shape of transformers 5, it
//! is in both.

use serde_json::{Map, Value, json};
use tch::Kind;

use super::{Architecture, Head, ModelConfig, RopeScaling, Yarn, read};

impl ModelConfig {
    /// The object to write to `config.json` for weights of element type `kind`.
    pub fn to_object(&self, kind: Kind) -> Map<String, Value> {
        let eos_token_id = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        let mut object = self.source.clone();
        let fields = [
            ("architectures", json!([self.architecture.class(self.head)])),
            ("model_type", json!(self.architecture.model_type())),
            ("vocab_size", json!(self.vocab_size)),
            ("hidden_size", json!(self.hidden_size)),
            ("intermediate_size", json!(self.intermediate_size)),
            ("num_hidden_layers", json!(self.layers)),
            ("num_attention_heads", json!(self.heads)),
            ("num_key_value_heads", json!(self.kv_heads)),
            ("head_dim", json!(self.head_dim)),
            ("hidden_act", json!("silu")),
            ("max_position_embeddings", json!(self.max_positions)),
            ("rms_norm_eps", json!(self.rms_norm_eps)),
            ("initializer_range", json!(self.initializer_range)),
            ("tie_word_embeddings", json!(self.tie_word_embeddings)),
            ("bos_token_id", json!(self.bos_token_id)),
            ("pad_token_id", json!(self.pad_token_id)),
            ("eos_token_id", eos_token_id),
        ];
        object.extend(fields.map(|(field, value)| (field.to_owned(), value)));
        self.set_experts(&mut object);
        self.set_biases(&mut object);
        self.set_window(&mut object);
        self.set_rope(&mut object);
        self.set_labels(&mut object);
        set_dtype(&mut object, kind);
        object
    }

    /// The bytes of `config.json` for weights of element type `kind`: indented, in a stable order.
    pub fn to_bytes(&self, kind: Kind) -> Vec<u8> {
        let mut text = format!("{:#}", Value::Object(self.to_object(kind)));
        text.push('\n');
        text.into_bytes()
    }

    fn set_biases(&self, object: &mut Map<String, Value>) {
        if !matches!(self.architecture, Architecture::Mistral | Architecture::Qwen2) {
            object.insert("attention_bias".to_owned(), json!(self.attention_bias));
        }
        if self.architecture == Architecture::Llama {
            object.insert("mlp_bias".to_owned(), json!(self.mlp_bias));
        }
    }

    fn set_experts(&self, object: &mut Map<String, Value>) {
        let Some(experts) = self.experts else { return };
        let fields = [
            ("num_experts", json!(experts.count)),
            ("num_experts_per_tok", json!(experts.per_token)),
            ("moe_intermediate_size", json!(experts.intermediate_size)),
            ("norm_topk_prob", json!(experts.normalized)),
            ("decoder_sparse_step", json!(1)),
            ("mlp_only_layers", json!([])),
        ];
        object.extend(fields.map(|(field, value)| (field.to_owned(), value)));
        if object.contains_key("num_local_experts") {
            object.insert("num_local_experts".to_owned(), json!(experts.count));
        }
    }

    fn set_window(&self, object: &mut Map<String, Value>) {
        let tokens = self.sliding_window.as_ref().map(|window| window.tokens);
        match self.architecture {
            Architecture::Llama => {}
            Architecture::Qwen3Moe => {
                object.insert("use_sliding_window".to_owned(), json!(false));
            }
            Architecture::Mistral => {
                object.insert("sliding_window".to_owned(), json!(tokens));
            }
            Architecture::Qwen2 | Architecture::Qwen3 => {
                let mut types = Vec::with_capacity(self.layers);
                for layer in 0..self.layers {
                    let limited = self.window(layer).is_some();
                    types.push(if limited { "sliding_attention" } else { "full_attention" });
                }
                let leading = types.iter().take_while(|kind| **kind == "full_attention").count();
                object.insert("sliding_window".to_owned(), json!(tokens));
                object.insert("use_sliding_window".to_owned(), json!(tokens.is_some()));
                object.insert("max_window_layers".to_owned(), json!(leading));
                object.insert("layer_types".to_owned(), json!(types));
            }
        }
    }

    fn set_rope(&self, object: &mut Map<String, Value>) {
        let mut scaling = match self.rope.scaling {
            RopeScaling::Default => json!({ "rope_type": "default" }),
            RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            RopeScaling::Dynamic { factor } => json!({ "rope_type": "dynamic", "factor": factor }),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_positions,
                })
            }
            RopeScaling::Yarn(yarn) => self.yarn(object, yarn),
        };
        // transformers 4 would silently take the default frequencies from a file with `rope_parameters`
        // alone.
        let stretched = self.rope.scaling != RopeScaling::Default;
        let legacy = if stretched { scaling.clone() } else { Value::Null };
        object.insert("rope_scaling".to_owned(), legacy);
        object.insert("rope_theta".to_owned(), json!(self.rope.theta));
        if object.contains_key("rope_parameters") {
            scaling["rope_theta"] = json!(self.rope.theta);
            object.insert("rope_parameters".to_owned(), scaling);
        }
    }

    /// YaRN's parameters as the file had them, where they mean the same.
    fn yarn(&self, object: &Map<String, Value>, yarn: Yarn) -> Value {
        let before = [object.get("rope_scaling"), object.get("rope_parameters")];
        let before = before.into_iter().flatten().filter_map(Value::as_object).next();
        match before.filter(|before| read::yarn(before, self.max_positions).is_ok_and(|read| read == yarn)) {
            Some(before) => {
                let mut same = before.clone();
                same.remove("rope_theta");
                Value::Object(same)
            }
            None => json!({
                "rope_type": "yarn",
                "factor": yarn.factor,
                "original_max_position_embeddings": yarn.original_max_positions,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
                "attention_factor": yarn.attention_factor,
                "truncate": yarn.truncate,
            }),
        }
    }

    /// One label for a scalar head; a causal head's file says nothing about labels.
    fn set_labels(&self, object: &mut Map<String, Value>) {
        let labels = object.get("id2label").and_then(Value::as_object).map_or(0, Map::len);
        match self.head {
            Head::Scalar if labels != 1 => {
                object.insert("id2label".to_owned(), json!({ "0": "LABEL_0" }));
                object.insert("label2id".to_owned(), json!({ "LABEL_0": 0 }));
            }
            Head::Scalar => {}
            Head::Causal => {
                object.remove("id2label");
                object.remove("label2id");
            }
        }
    }
}

fn set_dtype(object: &mut Map<String, Value>, kind: Kind) {
    let name = match kind {
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        _ => "float32",
    };
    let field = if object.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    object.insert(field.to_owned(), json!(name));
}
