//! Small models and what drives engines over them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{
    Backend, Engine, EngineConfig, Event, Finished, PolicyWeights, Request, SampleRequest, TokenLogprob,
};
use model::{Architecture, Dimensions, ModelConfig, Packed, Weights};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use types::{PolicyVersion, SamplingParams};

/// A model and what transformers computes with it.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) value: Value,
    pub(crate) config: ModelConfig,
    pub(crate) weights: Weights,
}

impl Case {
    /// The causal models of the model crate's parity tests.
    pub(crate) fn causal() -> Vec<Self> {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(parity().join("cases")).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let cases: Vec<Self> = paths.iter().filter_map(|path| Self::read(path)).collect();
        assert_eq!(cases.len(), 16);
        cases
    }

    fn read(path: &Path) -> Option<Self> {
        let value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let config = ModelConfig::parse(value["config_v5"].to_string().as_bytes()).unwrap();
        if value["head"] != "causal" {
            return None;
        }
        let weights = Weights::zeros(&config, Kind::Float, Device::Cpu);
        fill(&weights, value["salt"].as_u64().unwrap());
        Some(Self { name: value["name"].as_str().unwrap().to_owned(), value, config, weights })
    }

    pub(crate) fn token_rows(&self, field: &str) -> Vec<Vec<u32>> {
        serde_json::from_value(self.value[field].clone()).unwrap()
    }

    pub(crate) fn engine(&self, config: &EngineConfig) -> Engine {
        engine(&self.config, &self.weights, config)
    }
}

fn parity() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/parity")
}

/// A bijection of 64 bits without visible structure (SplitMix64's finalizer).
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// The same numbers as `fill` of the model crate's `parity/make.py`.
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

/// A model of a few thousand parameters whose distributions are neither flat nor certain.
pub(crate) fn small_model() -> (ModelConfig, Weights) {
    model_of(97, 11)
}

/// The like with another vocabulary and other weights.
pub(crate) fn model_of(vocab_size: i64, seed: u64) -> (ModelConfig, Weights) {
    let dimensions = Dimensions {
        vocab_size,
        hidden_size: 32,
        intermediate_size: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        max_positions: 256,
    };
    let mut config = ModelConfig::new(Architecture::Llama, dimensions).unwrap();
    config.initializer_range = 0.3;
    let weights = Weights::random(&config, seed, Kind::Float, Device::Cpu);
    (config, weights)
}

pub(crate) fn engine(model: &ModelConfig, weights: &Weights, config: &EngineConfig) -> Engine {
    Engine::new(model, policy(model, weights, config, 0), None, config).unwrap()
}

pub(crate) fn policy(
    model: &ModelConfig,
    weights: &Weights,
    config: &EngineConfig,
    version: u64,
) -> PolicyWeights {
    PolicyWeights::prepare(model, weights, PolicyVersion(version), config).unwrap()
}

/// A configuration for small models; few blocks, so that tests notice when one is lost.
pub(crate) fn small_config() -> EngineConfig {
    EngineConfig { threads: 2, max_sequences: Some(8), kv_cache_blocks: Some(256), ..EngineConfig::default() }
}

/// The backends that run on every machine.
pub(crate) const BACKENDS: [Backend; 2] = [Backend::Native, Backend::Aten];

/// The like for a backend.
pub(crate) fn config_of(backend: Backend) -> EngineConfig {
    EngineConfig { backend, ..small_config() }
}

/// Asserts that responses are the same: to the bit with the native backend, but for rounding with torch's
/// operators.
pub(crate) fn assert_same(
    backend: Backend,
    found: &BTreeMap<u64, Finished>,
    expected: &BTreeMap<u64, Finished>,
) {
    if backend == Backend::Native {
        assert_eq!(found, expected);
    }
    assert!(found.keys().eq(expected.keys()), "{found:?}");
    for (id, found) in found {
        assert_near(found, &expected[id]);
    }
}

/// Asserts that two responses are the same but for the rounding of numbers.
pub(crate) fn assert_near(found: &Finished, expected: &Finished) {
    let difference = largest_difference(&found.rollout_logprobs, &expected.rollout_logprobs);
    assert!(difference < 1e-4, "log-probs of response {} differ by {difference}", found.id);
    let masses = [found, expected].map(|response| response.surviving_mass.clone().unwrap_or_default());
    let difference = largest_difference(&masses[0], &masses[1]);
    assert!(difference < 1e-4, "surviving masses of response {} differ by {difference}", found.id);
    let plain = |response: &Finished| Finished {
        rollout_logprobs: Vec::new(),
        surviving_mass: response.surviving_mass.as_ref().map(|_| Vec::new()),
        top_logprobs: Vec::new(),
        ..response.clone()
    };
    assert_eq!(plain(found), plain(expected));
    let tops = |response: &Finished| response.top_logprobs.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(tops(found), tops(expected));
    for (found, expected) in found.top_logprobs.iter().zip(&expected.top_logprobs) {
        assert_near_tops(found, expected);
    }
}

/// Asserts that the likeliest tokens of one place are the same. Tokens whose log-probs are equal but for
/// rounding may stand in another order, and at the end one may stand for another.
fn assert_near_tops(found: &[TokenLogprob], expected: &[TokenLogprob]) {
    for (ours, theirs) in found.iter().zip(expected) {
        // A temperature of almost 0 makes small differences of logits huge.
        let tolerance = if theirs.logprob > -1e3 { 1e-4 } else { -1e-2 * theirs.logprob };
        assert!((ours.logprob - theirs.logprob).abs() < tolerance, "{ours:?} and {theirs:?}");
        let same = expected.iter().find(|other| other.token == ours.token).or(expected.last());
        let difference = same.map_or(0.0, |same| (same.logprob - ours.logprob).abs());
        assert!(difference < tolerance, "{ours:?} has no counterpart in {expected:?}");
    }
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A prompt of `length` tokens of a vocabulary of at least 97.
pub(crate) fn prompt(length: usize, stream: u64) -> Vec<u32> {
    (0..length as u64).map(|at| (mix(at ^ mix(stream)) % 97) as u32).collect()
}

/// A request for one response.
pub(crate) fn request(id: u64, prompt: Vec<u32>, sampling: SamplingParams) -> Request {
    siblings(&[id], prompt, sampling)
}

/// A request for several responses; the seed of each is its id.
pub(crate) fn siblings(ids: &[u64], prompt: Vec<u32>, sampling: SamplingParams) -> Request {
    Request {
        prompt_tokens: prompt.into(),
        samples: ids.iter().map(|id| SampleRequest { id: *id, seed: *id }).collect(),
        sampling: Arc::new(sampling.try_into().unwrap()),
        eos_token_ids: Arc::from([]),
        min_tokens: 0,
        grammar: None,
        top_logprobs: 0,
        stream: false,
    }
}

/// Submits and steps until everything has ended; the responses by id.
pub(crate) fn run(engine: &mut Engine, requests: &[Request]) -> BTreeMap<u64, Finished> {
    for outcome in engine.submit(requests) {
        outcome.unwrap();
    }
    drain(engine)
}

/// Steps until everything has ended; the responses by id.
pub(crate) fn drain(engine: &mut Engine) -> BTreeMap<u64, Finished> {
    let mut finished = BTreeMap::new();
    let mut steps = 0;
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Finished(response) = event {
                assert!(finished.insert(response.id, *response).is_none(), "a response ended twice");
            }
        }
        steps += 1;
        assert!(steps < 100_000, "the engine does not come to an end");
    }
    let load = engine.load();
    assert_eq!(load.free_blocks, load.total_blocks, "blocks are lost");
    finished
}

/// Log-probabilities of the next token behind a sequence at a temperature, as the model crate computes them.
pub(crate) fn next_logprobs(
    model: &ModelConfig,
    weights: &Weights,
    sequence: &[u32],
    temperature: f64,
) -> Vec<f64> {
    let _guard = tch::no_grad_guard();
    let packed = Packed::new(&[sequence.to_vec()], model.vocab_size, Device::Cpu).unwrap();
    let network = weights.network(model);
    let hidden = model::forward(model, &network, &packed).narrow(0, sequence.len() as i64 - 1, 1);
    let logits = model::logits(&network.output, &hidden).to_kind(Kind::Double) / temperature;
    Vec::try_from(logits.log_softmax(-1, Kind::Double).view(-1)).unwrap()
}
