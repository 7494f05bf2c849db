//! Numbers equal to those of transformers: log-probabilities, greedy continuations and scores of small random
//! models of every family and option, from configurations in the shape of transformers 4 and 5. The
//! expectations in `parity/cases` are made by `parity/make.py`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use std::fs;
use std::path::{Path, PathBuf};

use model::{LoadOptions, Model, ModelConfig, NextTokens, Packed, Rope, SaveOptions, Weights};
use serde_json::Value;
use tch::{Device, IndexOp, Kind, Tensor};

struct Case {
    name: String,
    value: Value,
}

impl Case {
    fn all() -> Vec<Self> {
        // The tensors are tiny: threads would only wait for each other.
        tch::set_num_threads(1);
        let mut paths: Vec<PathBuf> =
            fs::read_dir(data("cases")).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert_eq!(paths.len(), 21);
        let read = |path: PathBuf| {
            let value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            Self { name: value["name"].as_str().unwrap().to_owned(), value }
        };
        paths.into_iter().map(read).collect()
    }

    fn with_head(head: &'static str) -> impl Iterator<Item = Self> {
        Self::all().into_iter().filter(move |case| case.value["head"] == head)
    }

    fn token_rows(&self, field: &str) -> Vec<Vec<u32>> {
        serde_json::from_value(self.value[field].clone()).unwrap()
    }

    fn number_rows(&self, field: &str) -> Vec<Vec<f64>> {
        serde_json::from_value(self.value[field].clone()).unwrap()
    }

    /// Writes the model with the configuration as this version of transformers wrote it, and loads it.
    fn load(&self, version: &str, kind: Kind) -> Model {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(&self.name);
        let config_bytes = self.value[version].to_string();
        let config = ModelConfig::parse(config_bytes.as_bytes()).unwrap();
        let weights = Weights::zeros(&config, Kind::Float, Device::Cpu);
        fill(&weights, self.value["salt"].as_u64().unwrap());
        model::folder::save(&path, &config, &weights, &SaveOptions::default()).unwrap();
        fs::write(path.join("config.json"), config_bytes).unwrap();
        let options = LoadOptions { kind: Some(kind), ..LoadOptions::default() };
        model::folder::load(&path, &options).unwrap()
    }
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// The same numbers as `fill` of `make.py`.
fn fill(weights: &Weights, salt: u64) {
    for parameter in weights.parameters() {
        let state = parameter.name.bytes().fold(salt, |state, byte| mix(state ^ u64::from(byte)));
        let vector = parameter.tensor.dim() == 1;
        let norm = vector && parameter.name.ends_with("norm.weight");
        let value = |index: u64| {
            let uniform = (mix(state ^ mix(index)) >> 40) as f32 * 2f32.powi(-23) - 1.0;
            match (norm, vector) {
                (true, _) => uniform * 0.25 + 1.0,
                (false, true) => uniform * 0.25,
                (false, false) => uniform * 0.5,
            }
        };
        let values: Vec<f32> = (0..parameter.tensor.numel() as u64).map(value).collect();
        let mut tensor = parameter.tensor;
        tensor.copy_(&Tensor::from_slice(&values).view(tensor.size().as_slice()));
    }
}

/// Log-probabilities of each sequence's tokens from its second on.
fn logprobs(model: &Model, sequences: &[Vec<u32>]) -> Vec<Vec<f64>> {
    let _guard = tch::no_grad_guard();
    let packed = Packed::new(sequences, model.config.vocab_size, Device::Cpu).unwrap();
    let network = model.weights.network(&model.config);
    let hidden = model::forward(&model.config, &network, &packed);
    let NextTokens { rows, targets } = packed.next_tokens();
    let hidden = hidden.index_select(0, &rows);
    let found = model::logprobs(&hidden, &network.output.head, &targets, Default::default()).logprobs;
    let mut found: &[f32] = &Vec::try_from(found).unwrap();
    let mut split = Vec::new();
    for sequence in sequences {
        let (head, tail) = found.split_at(sequence.len() - 1);
        split.push(head.iter().map(|value| f64::from(*value)).collect());
        found = tail;
    }
    assert!(found.is_empty());
    split
}

fn largest_difference(found: &[Vec<f64>], expected: &[Vec<f64>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected).flat_map(|(found, expected)| {
        assert_eq!(found.len(), expected.len());
        found.iter().zip(expected)
    });
    pairs.map(|(found, expected)| (found - expected).abs()).fold(0.0, f64::max)
}

/// Greedy decoding with a cache a sequence: the shape of an engine, without its cleverness.
fn greedy(model: &Model, prompts: &[Vec<u32>], new_tokens: usize) -> Vec<Vec<u32>> {
    let _guard = tch::no_grad_guard();
    let (config, network) = (&model.config, model.weights.network(&model.config));
    let rope = Rope::new(config, model.weights.kind(), Device::Cpu);
    let empty = || Tensor::zeros([0, config.kv_heads, config.head_dim], (model.weights.kind(), Device::Cpu));
    let mut caches: Vec<Vec<(Tensor, Tensor)>> =
        (0..config.layers).map(|_| prompts.iter().map(|_| (empty(), empty())).collect()).collect();
    let mut pending: Vec<Vec<u32>> = prompts.to_vec();
    let mut lengths: Vec<i64> = vec![0; prompts.len()];
    let mut responses = vec![Vec::new(); prompts.len()];
    for _ in 0..new_tokens {
        let tokens: Vec<i64> = pending.iter().flatten().map(|token| i64::from(*token)).collect();
        let mut positions = Vec::new();
        let mut totals = Vec::new();
        for (length, new) in lengths.iter_mut().zip(&pending) {
            positions.extend(*length..*length + new.len() as i64);
            *length += new.len() as i64;
            totals.extend(vec![*length; new.len()]);
        }
        let rows = rope.rows(&Tensor::from_slice(&positions), &Tensor::from_slice(&totals));
        let counts: Vec<i64> = pending.iter().map(|new| new.len() as i64).collect();
        let mut x = model::embed(&network.embedding, &Tensor::from_slice(&tokens));
        for (layer, (weights, caches)) in network.blocks.iter().zip(&mut caches).enumerate() {
            x = model::block(config, weights, &x, &rows, |queries, keys, values| {
                cached_attention((queries, keys, values), &counts, caches, config.window(layer))
            });
        }
        let hidden = model::final_norm(config, &network.output, &x);
        let mut end = 0;
        let last: Vec<i64> = counts.iter().map(|count| (end += count, end - 1).1).collect();
        let logits = model::logits(&network.output, &hidden.index_select(0, &Tensor::from_slice(&last)));
        let chosen: Vec<i64> = Vec::try_from(logits.argmax(-1, false)).unwrap();
        pending = chosen.iter().map(|token| vec![*token as u32]).collect();
        responses.iter_mut().zip(&chosen).for_each(|(response, token)| response.push(*token as u32));
    }
    responses
}

fn cached_attention(
    (queries, keys, values): (&Tensor, &Tensor, &Tensor),
    counts: &[i64],
    caches: &mut [(Tensor, Tensor)],
    window: Option<i64>,
) -> Tensor {
    let mut start = 0;
    let mut attended = Vec::new();
    for (count, (cached_keys, cached_values)) in counts.iter().zip(caches) {
        let rows = start..start + count;
        start += count;
        *cached_keys = Tensor::cat(&[&*cached_keys, &keys.i(rows.clone())], 0);
        *cached_values = Tensor::cat(&[&*cached_values, &values.i(rows.clone())], 0);
        let total = cached_keys.size()[0];
        let visible = Tensor::ones([*count, total], (Kind::Bool, Device::Cpu)).tril(total - count);
        let visible = visible.triu(total - count - window.unwrap_or(total) + 1);
        let heads_first = |tensor: &Tensor| tensor.transpose(0, 1).unsqueeze(0);
        let out = Tensor::scaled_dot_product_attention(
            &heads_first(&queries.i(rows)),
            &heads_first(cached_keys),
            &heads_first(cached_values),
            Some(&visible),
            0.0,
            false,
            None,
            true,
        );
        attended.push(out.squeeze_dim(0).transpose(0, 1));
    }
    Tensor::cat(&attended, 0)
}

#[test]
fn logprobs_equal_transformers() {
    for case in Case::with_head("causal") {
        let sequences = case.token_rows("sequences");
        let expected = case.number_rows("logprobs");
        for version in ["config_v4", "config_v5"] {
            let model = case.load(version, Kind::Float);
            let together = largest_difference(&logprobs(&model, &sequences), &expected);
            let alone: Vec<_> =
                sequences.iter().flat_map(|one| logprobs(&model, std::slice::from_ref(one))).collect();
            let alone = largest_difference(&alone, &expected);
            println!("{} {version}: {together:.1e} packed, {alone:.1e} alone", case.name);
            assert!(together < 1e-4 && alone < 1e-4, "{} {version}: {together} {alone}", case.name);
        }
    }
}

#[test]
fn greedy_continuations_equal_transformers() {
    for case in Case::with_head("causal") {
        let prompts = case.token_rows("prompts");
        let expected = case.token_rows("greedy");
        let model = case.load("config_v5", Kind::Float);
        assert_eq!(greedy(&model, &prompts, 200), expected, "{} in a ragged batch", case.name);
        let last = &prompts[3..];
        assert_eq!(greedy(&model, last, 200), expected[3..], "{} alone", case.name);
    }
}

#[test]
fn scores_equal_transformers() {
    for case in Case::with_head("scalar") {
        let sequences = case.token_rows("sequences");
        let expected: Vec<f64> = serde_json::from_value(case.value["scores"].clone()).unwrap();
        for version in ["config_v4", "config_v5"] {
            let model = case.load(version, Kind::Float);
            let _guard = tch::no_grad_guard();
            let packed = Packed::new(&sequences, model.config.vocab_size, Device::Cpu).unwrap();
            let network = model.weights.network(&model.config);
            let hidden = model::forward(&model.config, &network, &packed);
            let scores = model::scores(&network.output, &hidden.index_select(0, &packed.last_rows()));
            let found: Vec<f64> = Vec::try_from(scores.to_kind(Kind::Double)).unwrap();
            let worst = largest_difference(&[found], std::slice::from_ref(&expected));
            println!("{} {version}: {worst:.1e}", case.name);
            assert!(worst < 1e-4, "{} {version}: {worst}", case.name);
        }
    }
}

/// In half precision both implementations round; ours may stand no further from the f32 numbers than theirs.
#[test]
fn half_precision_is_as_close_to_f32_as_transformers() {
    let case = Case::all().into_iter().find(|case| case.name == "qwen3").unwrap();
    let sequences = case.token_rows("sequences");
    let exact = case.number_rows("logprobs");
    let rms = |rows: &[Vec<f64>]| {
        let squares: Vec<f64> =
            rows.iter().flatten().zip(exact.iter().flatten()).map(|(a, b)| (a - b).powi(2)).collect();
        (squares.iter().sum::<f64>() / squares.len() as f64).sqrt()
    };
    for (field, kind) in [("bfloat16", Kind::BFloat16), ("float16", Kind::Half)] {
        let model = case.load("config_v5", kind);
        assert_eq!(model.weights.kind(), kind);
        let ours = rms(&logprobs(&model, &sequences));
        let theirs = rms(&case.number_rows(field));
        println!("{field}: ours {ours:.2e}, transformers {theirs:.2e}");
        assert!(ours < 1.2 * theirs, "{field}: ours {ours}, transformers {theirs}");
    }
}

/// A folder that transformers wrote: half precision, two shards with an index.
#[test]
fn loads_a_sharded_folder_of_transformers() {
    let dir = data("sharded");
    let expected: Value = serde_json::from_slice(&fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let tokens: Vec<u32> = serde_json::from_value(expected["tokens"].clone()).unwrap();
    let numbers: Vec<f64> = serde_json::from_value(expected["logprobs"].clone()).unwrap();
    assert_eq!(model::folder::load(&dir, &LoadOptions::default()).unwrap().weights.kind(), Kind::BFloat16);
    let options = LoadOptions { kind: Some(Kind::Float), ..LoadOptions::default() };
    let model = model::folder::load(&dir, &options).unwrap();
    let worst = largest_difference(&logprobs(&model, &[tokens]), &[numbers]);
    assert!(worst < 1e-4, "{worst}");
}
