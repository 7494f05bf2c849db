//! Model folders: what is written is read back, what is broken is named, and nothing panics.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use std::fs;
use std::path::{Path, PathBuf};

use model::folder::{self, Error, MANIFEST};
use model::{Architecture, Dimensions, LoadOptions, ModelConfig, SaveOptions, Weights};
use proptest::prelude::*;
use serde_json::{Value, json};
use tch::{Device, Kind};
use tempfile::TempDir;

const DIMENSIONS: Dimensions = Dimensions {
    vocab_size: 37,
    hidden_size: 16,
    intermediate_size: 24,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    max_positions: 64,
};

struct Saved {
    _parent: TempDir,
    path: PathBuf,
}

fn config(architecture: Architecture) -> ModelConfig {
    ModelConfig::new(architecture, DIMENSIONS).unwrap()
}

fn saved_with(config: &ModelConfig, options: &SaveOptions) -> Saved {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("model");
    let weights = Weights::random(config, 1, Kind::Float, Device::Cpu);
    folder::save(&path, config, &weights, options).unwrap();
    Saved { _parent: parent, path }
}

fn saved() -> Saved {
    saved_with(&config(Architecture::Llama), &SaveOptions::default())
}

fn load(path: &Path) -> Result<model::Model, Error> {
    folder::load(path, &LoadOptions::default())
}

fn unverified(path: &Path) -> Result<model::Model, Error> {
    folder::load(path, &LoadOptions { verify: false, ..LoadOptions::default() })
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Rewrites the header of the weights file.
fn edit_header(path: &Path, edit: impl FnOnce(&mut Value)) {
    let file = path.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let header = header.to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(&bytes[8 + length..]);
    fs::write(file, out).unwrap();
}

fn edit_config(path: &Path, edit: impl FnOnce(&mut Value)) {
    let file = path.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    edit(&mut config);
    fs::write(file, config.to_string()).unwrap();
}

#[test]
fn weights_come_back_bit_for_bit() {
    for architecture in Architecture::ALL {
        for tie_word_embeddings in [false, true] {
            for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
                let config = ModelConfig { tie_word_embeddings, ..config(architecture) };
                let weights = Weights::random(&config, 1, kind, Device::Cpu);
                let parent = tempfile::tempdir().unwrap();
                let path = parent.path().join("model");
                folder::save(&path, &config, &weights, &SaveOptions::default()).unwrap();
                let loaded = load(&path).unwrap();
                assert_eq!(loaded.weights.kind(), kind);
                assert_eq!(loaded.config.dtype, Some(kind));
                for (mine, theirs) in weights.flats().iter().zip(loaded.weights.flats()) {
                    assert_eq!(model::hash_tensor(mine), model::hash_tensor(theirs));
                }
            }
        }
    }
}

#[test]
fn equal_weights_give_equal_bytes_and_nothing_else_stays() {
    let options = SaveOptions { shard_bytes: 3000, ..SaveOptions::default() };
    let config = config(Architecture::Qwen3);
    let (first, second) = (saved_with(&config, &options), saved_with(&config, &options));
    let names = names(&first.path);
    assert_eq!(names, self::names(&second.path));
    for name in &names {
        assert_eq!(
            fs::read(first.path.join(name)).unwrap(),
            fs::read(second.path.join(name)).unwrap(),
            "{name}"
        );
    }
    let beside = fs::read_dir(first.path.parent().unwrap()).unwrap().count();
    assert_eq!(beside, 1, "a temporary folder was left");
}

#[test]
fn shards_have_an_index_and_load() {
    let options = SaveOptions { shard_bytes: 3000, ..SaveOptions::default() };
    let sharded = saved_with(&config(Architecture::Llama), &options);
    let index: Value =
        serde_json::from_slice(&fs::read(sharded.path.join("model.safetensors.index.json")).unwrap())
            .unwrap();
    let loaded = load(&sharded.path).unwrap();
    assert_eq!(index["metadata"]["total_size"], loaded.weights.bytes());
    assert_eq!(index["weight_map"].as_object().unwrap().len(), loaded.weights.parameters().count());
    let shards: Vec<String> =
        names(&sharded.path).into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    assert!(shards.len() > 3, "{shards:?}");
    for name in &shards {
        let bytes = fs::read(sharded.path.join(name)).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
        assert!(header.data_len() <= 3000 || header.tensors().len() == 1);
    }
    let whole = saved();
    let equal = load(&whole.path).unwrap().weights;
    for (mine, theirs) in equal.flats().iter().zip(loaded.weights.flats()) {
        assert!(mine.equal(theirs));
    }

    fs::remove_file(sharded.path.join(&shards[1])).unwrap();
    let error = load(&sharded.path).unwrap_err();
    assert!(error.to_string().contains(&shards[1]), "{error}");
    for file in ["../model.safetensors", "/etc/hostname", "..", ""] {
        let index = json!({ "weight_map": { "a": file } }).to_string();
        fs::write(sharded.path.join("model.safetensors.index.json"), index).unwrap();
        assert!(matches!(load(&sharded.path), Err(Error::Index { .. })), "{file}");
    }
}

#[test]
fn an_index_that_names_the_wrong_file_is_refused() {
    let options = SaveOptions { shard_bytes: 3000, ..SaveOptions::default() };
    let sharded = saved_with(&config(Architecture::Llama), &options);
    let path = sharded.path.join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let other = index["weight_map"]["model.embed_tokens.weight"].clone();
    index["weight_map"]["model.norm.weight"] = other;
    fs::write(&path, index.to_string()).unwrap();
    let error = load(&sharded.path).unwrap_err();
    assert!(matches!(&error, Error::Index { reason, .. } if reason.contains("model.norm.weight")), "{error}");
}

#[test]
fn a_tied_head_is_saved_once_and_may_be_there_twice_only_if_equal() {
    let tied = ModelConfig { tie_word_embeddings: true, ..config(Architecture::Qwen2) };
    let saved = saved_with(&tied, &SaveOptions::default());
    let bytes = fs::read(saved.path.join("model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert!(!header.tensors().contains_key("lm_head.weight"));

    let untied = saved_with(&config(Architecture::Qwen2), &SaveOptions::default());
    edit_config(&untied.path, |config| config["tie_word_embeddings"] = json!(true));
    let error = load(&untied.path).unwrap_err();
    assert!(matches!(error, Error::Untied { .. }), "{error}");

    let weights = Weights::random(&config(Architecture::Qwen2), 1, Kind::Float, Device::Cpu);
    let mut head = weights.parameter("lm_head.weight").unwrap();
    head.copy_(&weights.parameter("model.embed_tokens.weight").unwrap());
    let equal = untied.path.with_file_name("equal");
    folder::save(&equal, &config(Architecture::Qwen2), &weights, &SaveOptions::default()).unwrap();
    edit_config(&equal, |config| config["tie_word_embeddings"] = json!(true));
    load(&equal).unwrap();
}

#[test]
fn a_changed_file_is_a_hash_mismatch_that_names_it() {
    let saved = saved();
    let file = saved.path.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = load(&saved.path).unwrap_err();
    assert!(matches!(&error, Error::Hash { path, .. } if *path == file), "{error}");
    unverified(&saved.path).unwrap();
    fs::write(saved.path.join(MANIFEST), "{}").unwrap();
    assert!(matches!(load(&saved.path), Err(Error::Manifest { .. })));
    fs::write(saved.path.join(MANIFEST), r#"{"files": {}}"#).unwrap();
    assert!(matches!(load(&saved.path), Err(Error::Manifest { .. })));
    fs::remove_file(saved.path.join(MANIFEST)).unwrap();
    load(&saved.path).unwrap();
}

#[test]
fn what_does_not_fit_is_named() {
    let error_after = |edit: &dyn Fn(&Path)| {
        let saved = saved();
        fs::remove_file(saved.path.join(MANIFEST)).unwrap();
        edit(&saved.path);
        load(&saved.path).unwrap_err().to_string()
    };
    let rename = |from: &'static str, to: &'static str| {
        move |path: &Path| {
            edit_header(path, |header| {
                let entry = header.as_object_mut().unwrap().remove(from).unwrap();
                header[to] = entry;
            });
        }
    };
    let missing = error_after(&rename("model.layers.1.mlp.up_proj.weight", "x.rotary_emb.inv_freq"));
    assert!(missing.contains("no tensor model.layers.1.mlp.up_proj.weight"), "{missing}");
    let norm = "model.layers.0.input_layernorm.weight";
    let unexpected = error_after(&|path| edit_config(path, |config| config["num_hidden_layers"] = json!(1)));
    assert!(unexpected.contains("unexpected tensor model.layers.1."), "{unexpected}");
    assert!(unexpected.contains("LlamaForCausalLM"), "{unexpected}");
    let shape = error_after(&|path| edit_header(path, |header| header[norm]["shape"] = json!([4, 4])));
    assert!(shape.contains(norm) && shape.contains("[4, 4]") && shape.contains("[16]"), "{shape}");
    let element = error_after(&|path| edit_header(path, |header| header[norm]["dtype"] = json!("I32")));
    assert!(element.contains(norm) && element.contains("I32"), "{element}");
    let architecture =
        error_after(&|path| edit_config(path, |config| config["architectures"] = json!(["GPT2LMHeadModel"])));
    assert!(
        architecture.contains("GPT2LMHeadModel") && architecture.contains("Qwen3ForCausalLM"),
        "{architecture}"
    );
    let truncated = error_after(&|path| {
        let file = fs::File::options().write(true).open(path.join("model.safetensors")).unwrap();
        file.set_len(file.metadata().unwrap().len() - 100).unwrap();
    });
    assert!(truncated.contains("model.safetensors is truncated"), "{truncated}");
    let none = error_after(&|path| fs::remove_file(path.join("model.safetensors")).unwrap());
    assert!(none.contains("neither model.safetensors nor"), "{none}");
    let no_config = error_after(&|path| fs::remove_file(path.join("config.json")).unwrap());
    assert!(no_config.contains("config.json"), "{no_config}");
    let nowhere = load(Path::new("/nonexistent/model")).unwrap_err();
    assert!(matches!(nowhere, Error::Io { .. }), "{nowhere}");
}

#[test]
fn a_folder_that_is_there_is_not_overwritten() {
    let saved = saved();
    let before = fs::read(saved.path.join("model.safetensors")).unwrap();
    let config = config(Architecture::Llama);
    let weights = Weights::zeros(&config, Kind::Float, Device::Cpu);
    let error = folder::save(&saved.path, &config, &weights, &SaveOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Exists(_)), "{error}");
    assert_eq!(fs::read(saved.path.join("model.safetensors")).unwrap(), before);
    let double = Weights::zeros(&config, Kind::Double, Device::Cpu);
    let other = saved.path.with_file_name("double");
    assert!(matches!(
        folder::save(&other, &config, &double, &SaveOptions::default()),
        Err(Error::Unwritable(Kind::Double))
    ));
    // A file where the folder of the model should be: the system's error, and no leftover.
    let below = saved.path.join("config.json").join("model");
    assert!(matches!(
        folder::save(&below, &config, &weights, &SaveOptions::default()),
        Err(Error::Io { .. })
    ));
    assert_eq!(fs::read_dir(saved.path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn companions_travel_with_the_model() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("tokenizer.json"), "{}").unwrap();
    fs::write(source.path().join("chat_template.jinja"), "{{ x }}").unwrap();
    fs::write(source.path().join("training_args.bin"), "not this").unwrap();
    let options = SaveOptions { companions: Some(source.path().to_owned()), ..SaveOptions::default() };
    let saved = saved_with(&config(Architecture::Llama), &options);
    let expected = ["chat_template.jinja", "config.json", "model.safetensors", MANIFEST, "tokenizer.json"]
        .map(str::to_owned);
    assert_eq!(names(&saved.path), expected);
    let listed = folder::companions(&saved.path).unwrap();
    assert_eq!(listed, [("tokenizer.json", b"{}".to_vec()), ("chat_template.jinja", b"{{ x }}".to_vec())]);
}

/// Damages one file of a model folder: an error that names the folder's file, or the model.
fn fuzz_file(name: &str, others: &[Vec<u8>], options: &LoadOptions) {
    let saved = saved();
    let mut good = others.to_vec();
    good.push(fs::read(saved.path.join(name)).unwrap());
    fuzz::run(name, &good, |bytes| {
        fs::write(saved.path.join(name), bytes).unwrap();
        if let Err(error) = folder::load(&saved.path, options) {
            let said = error.to_string();
            assert!(said.contains(saved.path.to_str().unwrap()) && said.len() < 4096, "{said}");
        }
    });
}

#[test]
fn fuzzed_weights_are_named_or_loaded() {
    let other = saved_with(&config(Architecture::Qwen2), &SaveOptions::default());
    let other = fs::read(other.path.join("model.safetensors")).unwrap();
    let unverified = LoadOptions { verify: false, ..LoadOptions::default() };
    fuzz_file("model.safetensors", &[other], &unverified);
}

#[test]
fn fuzzed_configurations_are_named_or_loaded() {
    let unverified = LoadOptions { verify: false, ..LoadOptions::default() };
    fuzz_file("config.json", &[], &unverified);
}

#[test]
fn fuzzed_manifests_are_named_or_right() {
    fuzz_file(MANIFEST, &[], &LoadOptions::default());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever `config.json` says: an error, or dimensions within their bounds.
    #[test]
    fn junk_configurations_never_panic(field in 0usize..18, value in json_value()) {
        let mut object = config(Architecture::Qwen2).to_object(Kind::Float);
        let name = object.keys().nth(field % object.len()).unwrap().clone();
        object.insert(name, value);
        if let Ok(config) = ModelConfig::from_object(object) {
            config.validate().unwrap();
        }
    }

    #[test]
    fn junk_bytes_are_no_configuration(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        prop_assert!(ModelConfig::parse(&bytes).is_err());
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..70).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        proptest::collection::vec(any::<i8>(), 0..4).prop_map(|items| json!(items)),
        Just(json!({ "rope_type": "linear" })),
        Just(json!({ "rope_type": "llama3", "factor": 0, "low_freq_factor": 4, "high_freq_factor": 1 })),
    ]
}
