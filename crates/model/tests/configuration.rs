//! `config.json` of transformers 4 and 5, read and written.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use std::fs;
use std::path::Path;

use model::config::Error;
use model::{Architecture, Dimensions, Head, ModelConfig, RopeScaling, SlidingWindow};
use serde_json::{Map, Value, json};
use tch::Kind;

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// A small Llama with these fields changed.
fn with(changes: Value) -> Result<ModelConfig, Error> {
    let mut fields = object(json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 10, "hidden_size": 8,
        "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    }));
    fields.extend(object(changes));
    ModelConfig::from_object(fields)
}

/// Read, written and read again, every configuration means the same; the fields that were there are still
/// there.
#[test]
fn every_shape_survives_a_round_trip() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/cases");
    let mut count = 0;
    for entry in fs::read_dir(cases).unwrap() {
        let case: Value = serde_json::from_slice(&fs::read(entry.unwrap().path()).unwrap()).unwrap();
        for version in ["config_v4", "config_v5"] {
            let mut fields = object(case[version].clone());
            fields.insert("unknown_field".to_owned(), json!({ "kept": [1, 2] }));
            let config = ModelConfig::from_object(fields.clone()).unwrap();
            let written = config.to_object(Kind::Float);
            for (name, value) in &fields {
                let same = written.get(name) == Some(value) || value.is_null();
                let window = matches!(name.as_str(), "max_window_layers" | "sliding_window");
                assert!(
                    same || window,
                    "{} {version} {name}: {value} became {:?}",
                    case["name"],
                    written.get(name)
                );
            }
            let again = ModelConfig::parse(&config.to_bytes(Kind::Float)).unwrap();
            let expected = ModelConfig { dtype: Some(Kind::Float), source: again.source.clone(), ..config };
            assert_eq!(again, expected, "{} {version}", case["name"]);
            count += 1;
        }
    }
    assert_eq!(count, 42);
}

#[test]
fn yarn_is_read_as_transformers_reads_it() {
    let yarn = |fields: Value| {
        let mut scaling = object(fields);
        scaling.insert("rope_type".to_owned(), json!("yarn"));
        match with(json!({ "max_position_embeddings": 128, "rope_scaling": scaling })).unwrap().rope.scaling {
            RopeScaling::Yarn(yarn) => yarn,
            other => panic!("{other:?}"),
        }
    };
    let scale = |mscale: f64| 0.1 * mscale * 4f64.ln() + 1.0;
    let read = yarn(json!({ "factor": 4.0, "original_max_position_embeddings": 32, "attn_factor": 0.5 }));
    let turns = (read.beta_fast, read.beta_slow);
    assert_eq!((read.original_max_positions, turns, read.truncate), (32, (32.0, 1.0), true));
    assert_eq!(read.attention_factor, scale(1.0), "what nobody knows changes nothing");
    assert_eq!(yarn(json!({ "original_max_position_embeddings": 32 })).factor, 4.0);
    let scaled = yarn(json!({ "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5 }));
    assert_eq!(scaled.attention_factor, scale(1.0) / scale(0.5));
    let given = yarn(json!({ "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5, "attention_factor": 1.5 }));
    assert_eq!(given.attention_factor, 1.5);
    assert_eq!(yarn(json!({ "factor": 0.5 })).attention_factor, 1.0);
}

#[test]
fn both_shapes_of_rope_are_read() {
    let linear = RopeScaling::Linear { factor: 4.0 };
    let old = json!({ "rope_theta": 1e5, "rope_scaling": { "type": "linear", "factor": 4.0 } });
    let new = json!({ "rope_parameters": { "rope_type": "linear", "factor": 4, "rope_theta": 100_000 } });
    for fields in [old, new] {
        let config = with(fields).unwrap();
        assert_eq!((config.rope.theta, config.rope.scaling), (1e5, linear));
    }
    assert_eq!(with(json!({})).unwrap().rope.theta, 1e4);
    let other = with(json!({ "rope_scaling": { "rope_type": "longrope", "factor": 4.0 } })).unwrap_err();
    assert_eq!(other, Error::Unsupported { field: "rope_type", found: "longrope".to_owned() });
    let missing = with(json!({ "rope_scaling": { "rope_type": "dynamic" } })).unwrap_err();
    assert_eq!(missing, Error::Missing("rope factor"));
}

#[test]
fn windows_follow_each_familys_rule() {
    let qwen = |fields: Value| {
        let mut all = object(json!({
            "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, "sliding_window": 5, "max_window_layers": 2,
        }));
        all.extend(object(fields));
        with(Value::Object(all)).unwrap().sliding_window
    };
    assert_eq!(qwen(json!({})), None);
    let window = |layers: [bool; 3]| Some(SlidingWindow { tokens: 5, layers: layers.to_vec() });
    assert_eq!(qwen(json!({ "use_sliding_window": true })), window([false, false, true]));
    let types = json!(["sliding_attention", "full_attention", "full_attention"]);
    assert_eq!(
        qwen(json!({ "use_sliding_window": true, "layer_types": types })),
        window([true, false, false])
    );
    let mistral = |fields: Value| {
        let mut all = object(json!({ "architectures": ["MistralForCausalLM"], "num_key_value_heads": 2 }));
        all.extend(object(fields));
        with(Value::Object(all)).unwrap()
    };
    assert_eq!(mistral(json!({ "sliding_window": 5 })).sliding_window, window([true, true, true]));
    assert_eq!(mistral(json!({ "sliding_window": null })).sliding_window, None);
    assert_eq!(mistral(json!({})).window(2), Some(4096));
    assert_eq!(with(json!({ "sliding_window": 5 })).unwrap().sliding_window, None);
}

#[test]
fn tokens_and_types_are_read_in_every_spelling() {
    let ids = |fields: Value| {
        let config = with(fields).unwrap();
        (config.bos_token_id, config.eos_token_ids, config.pad_token_id)
    };
    assert_eq!(ids(json!({})), (Some(1), vec![2], None));
    assert_eq!(ids(json!({ "bos_token_id": null, "eos_token_id": null })), (None, vec![], None));
    assert_eq!(ids(json!({ "eos_token_id": [7, 8], "pad_token_id": 0 })), (Some(1), vec![7, 8], Some(0)));
    assert_eq!(ids(json!({ "pad_token_id": -1 })).2, None);
    assert!(with(json!({ "eos_token_id": "x" })).is_err());
    assert_eq!(with(json!({ "torch_dtype": "bfloat16" })).unwrap().dtype, Some(Kind::BFloat16));
    assert_eq!(with(json!({ "dtype": "float16" })).unwrap().dtype, Some(Kind::Half));
    assert!(with(json!({ "dtype": "float8_e4m3fn" })).is_err());
}

/// The fields of a mixture of experts with one of them said otherwise.
fn experts(field: &str, value: Value) -> Value {
    json!({ "architectures": ["Qwen3MoeForCausalLM"], "num_key_value_heads": 2, field: value })
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let refused = [
        (json!({ "hidden_act": "gelu" }), "unsupported hidden_act gelu"),
        (json!({ "quantization_config": { "bits": 4 } }), "unsupported quantization_config"),
        (json!({ "partial_rotary_factor": 0.5 }), "unsupported partial_rotary_factor 0.5"),
        (json!({ "architectures": ["MixtralForCausalLM"] }), "unsupported architecture MixtralForCausalLM"),
        (json!({ "architectures": null, "model_type": "gpt2" }), "unsupported architecture gpt2"),
        (
            json!({ "num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 2 }),
            "num_key_value_heads is 2",
        ),
        (json!({ "num_attention_heads": 0 }), "num_attention_heads is 0"),
        (json!({ "num_hidden_layers": 1_000_000_000_000_i64 }), "num_hidden_layers is 1000000000000"),
        (json!({ "head_dim": 3 }), "head_dim is 3, expected an even number"),
        (json!({ "vocab_size": null }), "no field vocab_size"),
        (json!({ "hidden_size": "8" }), "hidden_size is \"8\", expected an integer"),
        (
            json!({ "architectures": ["LlamaForSequenceClassification"], "id2label": { "0": "a", "1": "b" } }),
            "id2label is 2 labels, expected one label",
        ),
    ];
    let refused_experts = [
        (experts("decoder_sparse_step", json!(2)), "unsupported decoder_sparse_step 2"),
        (experts("mlp_only_layers", json!([0])), "unsupported mlp_only_layers [0]"),
        (experts("use_sliding_window", json!(true)), "unsupported use_sliding_window true"),
        (experts("num_experts", json!(4)), "num_experts_per_tok is 8, expected 1 to 4"),
        (experts("num_experts", json!(0)), "num_experts is 0"),
        (experts("moe_intermediate_size", json!(1_i64 << 40)), "moe_intermediate_size is 1099511627776"),
    ];
    for (fields, message) in refused.into_iter().chain(refused_experts) {
        let error = with(fields).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_new_scalar_head_is_written_with_one_label() {
    let dimensions = Dimensions {
        vocab_size: 10,
        hidden_size: 8,
        intermediate_size: 16,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        max_positions: 32,
    };
    let config = ModelConfig::new(Architecture::Qwen3, dimensions).unwrap().with_scalar_head();
    let written = config.to_object(Kind::BFloat16);
    assert_eq!(written["architectures"], json!(["Qwen3ForSequenceClassification"]));
    assert_eq!(written["id2label"], json!({ "0": "LABEL_0" }));
    assert_eq!(written["torch_dtype"], "bfloat16");
    assert_eq!(ModelConfig::from_object(written).unwrap().head, Head::Scalar);
    let impossible = Dimensions { heads: 3, kv_heads: 2, ..dimensions };
    assert!(ModelConfig::new(Architecture::Llama, impossible).is_err());
}
