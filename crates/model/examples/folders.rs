//! Writes model folders with the numbers this crate computes from them, for `tests/parity/check_saved.py`,
//! which loads the folders with transformers and compares.

use std::fs;
use std::path::Path;

use model::tokenizer::train_bpe;
use model::{
    Architecture, Dimensions, Head, ModelConfig, Packed, RopeConfig, RopeScaling, SaveOptions, SlidingWindow,
    SpecialTokens, Weights, folder,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const DIMENSIONS: Dimensions = Dimensions {
    vocab_size: 300,
    hidden_size: 32,
    intermediate_size: 48,
    layers: 3,
    heads: 4,
    kv_heads: 2,
    max_positions: 256,
};

const TEXTS: [&str; 3] =
    ["def add(a, b):\n    return a + b\n", "naïve 你好 🙂  x", "<|user|>What is 2+2?<|end|>"];

fn main() -> Outcome<()> {
    let Some(target) = std::env::args_os().nth(1) else {
        return Err("usage: folders TARGET_FOLDER".into());
    };
    let target = Path::new(&target);
    fs::create_dir_all(target)?;
    write_tokenizer(&target.join("tokenizer"))?;
    for (name, config) in new_configs()?.into_iter().chain(read_configs()?) {
        let random = Weights::random(&config, 11, Kind::Float, Device::Cpu);
        // Ten times the usual deviation, so that the numbers depend on every part of the network.
        let flats = random.flats().iter().zip(&random.layout().groups).map(|(flat, group)| {
            let vectors = flat.narrow(0, group.decayed, group.numel - group.decayed);
            Tensor::cat(&[flat.narrow(0, 0, group.decayed) * 10.0, vectors], 0)
        });
        let weights = Weights::from_flats(&config, flats.collect())?;
        write_model(&target.join(name), &config, &weights, 20_000)?;
    }
    let config = ModelConfig::new(Architecture::Qwen2, DIMENSIONS)?;
    let half = Weights::random(&config, 11, Kind::BFloat16, Device::Cpu);
    write_model(&target.join("bfloat16"), &config, &half, 5_000_000_000)
}

fn new_configs() -> Outcome<Vec<(String, ModelConfig)>> {
    let mut configs = Vec::new();
    for architecture in Architecture::ALL {
        let plain = ModelConfig::new(architecture, DIMENSIONS)?;
        let kind = architecture.model_type();
        let llama3 = RopeScaling::Llama3 {
            factor: 4.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 32,
        };
        let limited = !matches!(architecture, Architecture::Llama | Architecture::Qwen3Moe);
        let layers = match architecture {
            Architecture::Mistral => vec![true; 3],
            _ => vec![false, true, true],
        };
        let options = ModelConfig {
            tie_word_embeddings: true,
            rope: RopeConfig { theta: 5e4, scaling: llama3 },
            sliding_window: limited.then_some(SlidingWindow { tokens: 6, layers }),
            ..plain.clone()
        };
        configs.push((format!("{kind}_scalar"), plain.clone().with_scalar_head()));
        configs.push((format!("{kind}_plain"), plain));
        configs.push((format!("{kind}_options"), options));
    }
    Ok(configs)
}

/// The configurations that transformers wrote, read and written again.
fn read_configs() -> Outcome<Vec<(String, ModelConfig)>> {
    let mut configs = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/cases"))? {
        let case: Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
        for version in ["config_v4", "config_v5"] {
            let config = ModelConfig::parse(case[version].to_string().as_bytes())?;
            configs.push((format!("{}_{version}", case["name"].as_str().unwrap_or_default()), config));
        }
    }
    Ok(configs)
}

fn write_model(path: &Path, config: &ModelConfig, weights: &Weights, shard_bytes: u64) -> Outcome<()> {
    let options = SaveOptions { companions: None, shard_bytes };
    folder::save(path, config, weights, &options)?;
    let vocab = u32::try_from(config.vocab_size)?;
    let tokens: Vec<u32> = (0..50).map(|at| (at * at * 7 + at * 3 + 1) % vocab).collect();
    let _guard = tch::no_grad_guard();
    let packed = Packed::new(&[&tokens], config.vocab_size, Device::Cpu)?;
    let network = weights.network(config);
    let hidden = model::forward(config, &network, &packed);
    let numbers = match config.head {
        Head::Causal => model::logits(&network.output, &hidden).to_kind(Kind::Float).view([-1]),
        Head::Scalar => model::scores(&network.output, &hidden.index_select(0, &packed.last_rows())),
    };
    let numbers: Vec<f32> = Vec::try_from(numbers)?;
    let expected = json!({ "tokens": tokens, "numbers": numbers });
    Ok(fs::write(path.join("expected.json"), expected.to_string())?)
}

fn write_tokenizer(path: &Path) -> Outcome<()> {
    let special = SpecialTokens {
        bos: None,
        eos: Some("<|end|>".to_owned()),
        pad: Some("<|pad|>".to_owned()),
        additional: vec!["<|user|>".to_owned()],
    };
    let tokenizer = train_bpe(TEXTS.iter().copied(), 300, &special)?;
    fs::create_dir_all(path)?;
    tokenizer.save(path, Some("{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"))?;
    let mut encoded = Vec::new();
    for text in TEXTS {
        let tokens = tokenizer.encode(text, true)?;
        encoded.push(json!({ "text": text, "tokens": tokens, "decoded": tokenizer.decode(&tokens, true)? }));
    }
    let expected = json!({ "texts": encoded, "eos": tokenizer.eos_ids(), "pad": tokenizer.pad_id() });
    Ok(fs::write(path.join("expected.json"), expected.to_string())?)
}
