//! Tiny random networks with a tokenizer, and rollouts over their vocabulary.

use std::path::PathBuf;
use std::sync::OnceLock;

use model::{
    Architecture, Dimensions, LoadOptions, Model, ModelConfig, Packed, SaveOptions, ScalarInit,
    SpecialTokens, Tokenizer, Weights,
};
use tch::{Device, Kind, Tensor};
use types::{FinishReason, PolicyVersion, PromptId, Rollout, RolloutId, RolloutParts, Span};

const VOCABULARY: usize = 384;

/// The folders `policy` and `reward-model`, made once.
pub(crate) fn folder(name: &str) -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let dimensions = Dimensions {
            vocab_size: VOCABULARY as i64,
            hidden_size: 32,
            intermediate_size: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            max_positions: 512,
        };
        let mut config = ModelConfig::new(Architecture::Llama, dimensions).unwrap();
        // Large enough that different inputs have visibly different numbers.
        config.initializer_range = 0.3;
        let weights = Weights::random(&config, 1, Kind::Float, Device::Cpu);
        let (scalar_config, scalar) = weights.with_scalar_head(&config, ScalarInit::Normal { seed: 2 });
        let policy = dir.path().join("policy");
        model::folder::save(&policy, &config, &weights, &SaveOptions::default()).unwrap();
        tokenizer().save(&policy, None).unwrap();
        let options = SaveOptions { companions: Some(policy), ..SaveOptions::default() };
        model::folder::save(&dir.path().join("reward-model"), &scalar_config, &scalar, &options).unwrap();
        dir
    });
    dir.path().join(name)
}

/// A tokenizer of bytes and little more.
pub(crate) fn tokenizer() -> Tokenizer {
    let texts = ["def f(x):\n    return x + 1\n", "the answer is 42"];
    let special = SpecialTokens { eos: Some("<eos>".into()), ..SpecialTokens::default() };
    model::tokenizer::train_bpe(texts.into_iter(), VOCABULARY, &special).unwrap()
}

/// A network's hidden states for one sequence, and the network's head.
fn hidden(model: &Model, tokens: &[u32]) -> (Tensor, Tensor) {
    let _guard = tch::no_grad_guard();
    let packed = Packed::new(&[tokens], model.config.vocab_size, Device::Cpu).unwrap();
    let network = model.weights.network(&model.config);
    (model::forward(&model.config, &network, &packed), network.output.head)
}

fn load(name: &str) -> Model {
    model::folder::load(&folder(name), &LoadOptions::default()).unwrap()
}

/// Log-probs of the response at a temperature, the slow way: a full softmax a row.
pub(crate) fn expected_logprobs(rollout: &Rollout, temperature: f64) -> Vec<f32> {
    let tokens = [rollout.prompt_tokens(), rollout.response_tokens()].concat();
    let (hidden, head) = hidden(&load("policy"), &tokens);
    let logprobs = (hidden.matmul(&head.tr()) / temperature).log_softmax(-1, Kind::Float);
    let value = |at: usize| logprobs.double_value(&[at as i64 - 1, i64::from(tokens[at])]) as f32;
    (rollout.prompt_tokens().len()..tokens.len()).map(value).collect()
}

/// The reward model's score of a sequence, alone in its batch.
pub(crate) fn expected_score(tokens: &[u32]) -> f32 {
    let (hidden, head) = hidden(&load("reward-model"), tokens);
    hidden.matmul(&head.tr()).double_value(&[tokens.len() as i64 - 1, 0]) as f32
}

/// A rollout whose response is this text, with these fields.
pub(crate) fn rollout(ordinal: u64, response: &str, fields: &str) -> Rollout {
    let tokens = tokenizer().encode(response, false).unwrap();
    with_tokens(ordinal, &tokens, fields)
}

/// A rollout with these response tokens.
pub(crate) fn with_tokens(ordinal: u64, response_tokens: &[u32], fields: &str) -> Rollout {
    let length = response_tokens.len();
    Rollout::new(RolloutParts {
        id: RolloutId { prompt: PromptId { epoch: 0, ordinal }, sibling: 0, attempt: 0 },
        prompt_tokens: vec![7, 8, 9].into(),
        response_tokens: response_tokens.to_vec(),
        observations: Vec::new(),
        reward: None,
        rollout_logprobs: vec![-1.5; length],
        surviving_mass: None,
        spans: vec![Span {
            version: PolicyVersion(3),
            tokens: u32::try_from(length).unwrap().try_into().unwrap(),
        }],
        finish_reason: FinishReason::Stop,
        fields: fields.into(),
    })
    .unwrap()
}

/// Response tokens that differ from one number to the next, `length` of them.
pub(crate) fn tokens(number: u64, length: usize) -> Vec<u32> {
    (0..length as u64).map(|at| ((number * 31 + at * 7) % VOCABULARY as u64) as u32).collect()
}
