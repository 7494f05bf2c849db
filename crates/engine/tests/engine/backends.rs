//! Torch's operators against the engine's own code: the same requests, the same responses.

use std::collections::BTreeMap;

use engine::{Backend, Device, Engine, EngineConfig, Error, Event, Finished, PolicyWeights, Request};
use model::{ModelConfig, Weights};
use types::{DType, PolicyVersion, SamplingParams};

use crate::determinism::requests;
use crate::fixture::{
    BACKENDS, Case, assert_near, config_of, engine, largest_difference, policy, prompt, request, run,
    siblings, small_config, small_model,
};
use crate::parity::learner_logprobs;

/// What both backends answer, the native one first.
fn both(
    model: &ModelConfig,
    weights: &Weights,
    config: &EngineConfig,
    requests: &[Request],
) -> [BTreeMap<u64, Finished>; 2] {
    BACKENDS.map(|backend| {
        let config = EngineConfig { backend, ..config.clone() };
        run(&mut engine(model, weights, &config), requests)
    })
}

/// Asserts that responses are the same, all but one at most: a random number may lie so near the border of
/// two tokens that rounding decides.
fn assert_agreement([native, aten]: &[BTreeMap<u64, Finished>; 2]) {
    assert!(native.keys().eq(aten.keys()));
    let differing = native.iter().filter(|(id, native)| native.response_tokens != aten[id].response_tokens);
    let differing: Vec<u64> = differing.map(|(id, _)| *id).collect();
    assert!(differing.len() <= 1, "responses {differing:?} of {} differ", native.len());
    for (id, native) in native.iter().filter(|(id, _)| !differing.contains(id)) {
        assert_near(&aten[id], native);
    }
}

/// Requests that follow every rule, so that every step mixes them, among them lengths that differ by much.
fn mixed() -> Vec<Request> {
    let rules = [
        SamplingParams::default(),
        SamplingParams { temperature: 1e-30, ..SamplingParams::default() },
        SamplingParams { temperature: 1.7, top_k: 3, ..SamplingParams::default() },
        SamplingParams { top_k: 1000, repetition_penalty: 1.8, ..SamplingParams::default() },
        SamplingParams { min_p: 0.3, temperature: 0.5, ..SamplingParams::default() },
        SamplingParams { top_p: 0.4, repetition_penalty: 0.7, ..SamplingParams::default() },
        SamplingParams { repetition_penalty: 1.4, ..SamplingParams::greedy(1) },
    ];
    let request = |(id, sampling): (u64, &SamplingParams)| {
        let sampling = SamplingParams { max_new_tokens: 25 + id as u32, ..sampling.clone() };
        let prompt = prompt([2, 200, 31, 90][id as usize % 4], id);
        Request { top_logprobs: [0, 5, 64, 2][id as usize % 4], ..siblings(&[id], prompt, sampling) }
    };
    (100..).zip(rules.iter().cycle()).take(21).map(request).collect()
}

#[test]
fn responses_of_all_rules_agree_in_mixed_batches() {
    let (model, weights) = small_model();
    let all = [requests(), mixed()].concat();
    let config = EngineConfig { max_sequences: Some(30), prefill_chunk_tokens: Some(50), ..small_config() };
    let answers = both(&model, &weights, &config, &all);
    assert_agreement(&answers);
    let truncated = answers[1].values().filter(|response| response.surviving_mass.is_some());
    assert!(truncated.count() > 10, "too few responses are truncated for this to show much");
    // A pool that is too small for all of them.
    let tight = EngineConfig { kv_cache_blocks: Some(18), ..config };
    let tight = EngineConfig { backend: Backend::Aten, ..tight };
    let mut engine = engine(&model, &weights, &tight);
    let [native, _] = answers;
    assert_agreement(&[native, run(&mut engine, &all)]);
    assert!(engine.totals().preemptions > 5, "{} preemptions", engine.totals().preemptions);
}

/// A prompt longer than windows and pre-training, in chunks, with siblings, under several rules.
fn long(case: &Case) -> [Request; 3] {
    let drawn = SamplingParams { max_new_tokens: 60, temperature: 0.9, ..SamplingParams::default() };
    let vocab_size = case.config.vocab_size as u32;
    let prompt =
        |length, stream| prompt(length, stream).into_iter().map(|token| token % vocab_size).collect();
    [
        siblings(&[0, 1, 2], prompt(300, 1), drawn.clone()),
        siblings(&[3, 4], prompt(50, 2), SamplingParams { top_p: 0.95, ..drawn.clone() }),
        request(5, prompt(130, 3), SamplingParams { repetition_penalty: 1.1, ..drawn }),
    ]
}

fn long_config() -> EngineConfig {
    EngineConfig { prefill_chunk_tokens: Some(37), block_tokens: 32, ..small_config() }
}

/// Prompts and responses beyond windows and beyond the context of the pre-training, cut into short chunks,
/// with siblings.
#[test]
fn long_prompts_agree_for_every_option() {
    for case in Case::causal() {
        println!("{}", case.name);
        assert_agreement(&both(&case.config, &case.weights, &long_config(), &long(&case)));
    }
}

#[test]
fn half_precision_is_near_the_full_one_and_the_cache_half_as_large() {
    let (model, weights) = small_model();
    let full =
        EngineConfig { kv_cache_bytes: Some(1 << 20), kv_cache_blocks: None, ..config_of(Backend::Aten) };
    let blocks = |config: &EngineConfig| engine(&model, &weights, config).load().total_blocks;
    // 16 tokens of 2 layers with 2 heads of 8 elements for keys and as many for values.
    assert_eq!(blocks(&full), (1 << 20) / (16 * 2 * 2 * 8 * 2 * 4));
    for (dtype, tolerance) in [(DType::Bf16, 0.3), (DType::F16, 0.03)] {
        let config = EngineConfig { dtype: Some(dtype), ..full.clone() };
        assert_eq!(blocks(&config), 2 * blocks(&full));
        let finished = run(&mut engine(&model, &weights, &config), &requests());
        assert_eq!(finished.len(), 24);
        for (id, prompt) in [(0, prompt(1, 0)), (5, prompt(45, 4))] {
            let learner = learner_logprobs(&model, &weights, &prompt, &finished[&id], 1.0);
            let difference = largest_difference(&finished[&id].rollout_logprobs, &learner);
            assert!(difference < tolerance && difference > 0.0, "{dtype:?} response {id}: {difference}");
        }
    }
}

/// In half precision too the engine's numbers are the learner's, which runs the same operators.
#[test]
fn half_precision_has_the_learners_rounding() {
    let (model, weights) = small_model();
    let config = EngineConfig { dtype: Some(DType::Bf16), ..config_of(Backend::Aten) };
    let sampling = SamplingParams { max_new_tokens: 40, ..SamplingParams::default() };
    let prompt = prompt(33, 7);
    let finished = run(&mut engine(&model, &weights, &config), &[request(0, prompt.clone(), sampling)]);
    let half = weights.to(tch::Kind::BFloat16, tch::Device::Cpu);
    let mean_difference = |weights: &Weights| {
        let learner = learner_logprobs(&model, weights, &prompt, &finished[&0], 1.0);
        let differences = learner.iter().zip(&finished[&0].rollout_logprobs).map(|(a, b)| (a - b).abs());
        differences.sum::<f32>() / 40.0
    };
    let (own, full) = (mean_difference(&half), mean_difference(&weights));
    assert!(own < full, "{own} from the learner's bf16 numbers, {full} from the f32 ones");
}

/// What is not a number ends the responses that it concerns, and no others.
#[test]
fn numbers_that_are_none_fail_their_response() {
    let (model, weights) = small_model();
    let sound = request(1, vec![5; 20], SamplingParams::greedy(5));
    let expected = run(&mut engine(&model, &weights, &small_config()), std::slice::from_ref(&sound));
    let unused = |token: &u32| *token != 5 && !expected[&1].response_tokens.contains(token);
    let poison = (0..97).find(unused).unwrap();
    let embedding = weights.parameter("model.embed_tokens.weight").unwrap();
    let _ = embedding.select(0, i64::from(poison)).fill_(f64::NAN);
    for backend in BACKENDS {
        let mut engine = engine(&model, &weights, &config_of(backend));
        let poisoned =
            request(0, vec![5, poison, 5], SamplingParams { top_k: 4, ..SamplingParams::default() });
        engine.submit(&[poisoned, sound.clone()]).into_iter().for_each(Result::unwrap);
        let mut events = Vec::new();
        while !engine.is_idle() {
            events.extend(engine.step().unwrap());
        }
        let [Event::Failed { id: 0, problem, .. }, Event::Finished(sound)] = events.as_slice() else {
            panic!("{backend:?}: {events:?}");
        };
        assert!(problem.contains("log-probability of the drawn token is NaN"), "{problem}");
        assert_near(sound, &expected[&1]);
    }
}

fn config_problem(error: Error) -> String {
    match error {
        Error::Config(problems) => problems.join("; "),
        other => panic!("{other}"),
    }
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let (model, weights) = small_model();
    // No machine has a thousand GPUs.
    let config = EngineConfig { device: Device::Cuda(999), ..small_config() };
    let prepared = PolicyWeights::prepare(&model, &weights, PolicyVersion(0), &config).unwrap_err();
    let on_cpu = || policy(&model, &weights, &config_of(Backend::Aten), 0);
    let made = Engine::new(&model, on_cpu(), None, &config).unwrap_err();
    for problem in [prepared, made].map(config_problem) {
        assert!(problem.starts_with("device is cuda:999, but "), "{problem}");
        assert!(problem.contains("device = \"cpu\" works meanwhile"), "{problem}");
    }
    // Weights of another element type than the engine's are refused too, not run as they are.
    let half = EngineConfig { dtype: Some(DType::F16), ..config_of(Backend::Aten) };
    let error = Engine::new(&model, on_cpu(), None, &half).unwrap_err();
    assert!(matches!(error, Error::Weights), "{error}");
}

#[test]
fn a_cache_without_room_is_named() {
    let (model, weights) = small_model();
    let config =
        EngineConfig { kv_cache_blocks: Some(1 << 30), block_tokens: 4096, ..config_of(Backend::Aten) };
    let error = Engine::new(&model, policy(&model, &weights, &config, 0), None, &config).unwrap_err();
    let problem = config_problem(error);
    assert!(problem.starts_with("kv_cache_blocks asks for a cache of 1125899906842624 bytes"), "{problem}");
    assert!(
        problem.contains("cpu has no room") && problem.ends_with("set kv_cache_blocks lower"),
        "{problem}"
    );
}

/// Needs a GPU (`nextest` profile `gpu`).
#[cfg(feature = "cuda")]
mod gpu {
    use super::*;

    fn on_gpu(config: EngineConfig) -> EngineConfig {
        EngineConfig { device: Device::Cuda(0), backend: Backend::Aten, ..config }
    }

    #[test]
    fn responses_of_a_gpu_agree_with_the_native_ones() {
        let (model, weights) = small_model();
        let all = [requests(), mixed()].concat();
        let config = EngineConfig { max_sequences: Some(30), kv_cache_blocks: Some(40), ..small_config() };
        let on = |config: &EngineConfig| run(&mut engine(&model, &weights, config), &all);
        assert_agreement(&[on(&config), on(&on_gpu(config.clone()))]);
        for case in Case::causal() {
            let on = |config: &EngineConfig| run(&mut case.engine(config), &long(&case));
            assert_agreement(&[on(&long_config()), on(&on_gpu(long_config()))]);
        }
    }

    /// Replayed steps give the numbers of computed ones, of the weights that are in use, and take over most
    /// of the work.
    #[test]
    fn replayed_steps_have_the_numbers_of_computed_ones() {
        let (model, weights) = small_model();
        let other = Weights::random(&model, 77, tch::Kind::Float, tch::Device::Cpu);
        let config = EngineConfig { dtype: Some(DType::Bf16), ..on_gpu(small_config()) };
        let sampling = |id: u64| SamplingParams {
            max_new_tokens: 60,
            top_p: if id.is_multiple_of(2) { 1.0 } else { 0.9 },
            ..SamplingParams::default()
        };
        let requests: Vec<Request> =
            (0..11).map(|id| request(id, prompt(3 + 5 * id as usize, id), sampling(id))).collect();
        let errors = |cuda_graphs: bool| {
            let config = EngineConfig { cuda_graphs, ..config.clone() };
            let mut engine = engine(&model, &weights, &config);
            let errors = [(&weights, 0), (&other, 1)].map(|(weights, version)| {
                engine.swap_weights(policy(&model, weights, &config, version)).unwrap();
                let finished = run(&mut engine, &requests);
                let of_response = requests.iter().map(|request| {
                    let found = &finished[&request.samples[0].id];
                    let learner = learner_logprobs(&model, weights, &request.prompt_tokens, found, 1.0);
                    largest_difference(&found.rollout_logprobs, &learner)
                });
                of_response.fold(0.0, f32::max)
            });
            (errors, engine.totals())
        };
        let (computed, totals) = errors(false);
        assert_eq!(totals.replayed_steps, 0);
        let (replayed, totals) = errors(true);
        println!("computed {computed:?}, replayed {replayed:?}, {totals:?}");
        assert!(totals.replayed_steps * 10 > totals.steps * 7, "{totals:?}");
        for (computed, replayed) in computed.iter().zip(&replayed) {
            assert!(*replayed < 2.0 * computed + 0.02, "{replayed} against {computed}");
        }
    }

    /// FlashAttention over gathered blocks errs no more than the padded operators do on the CPU, whatever the
    /// option.
    #[test]
    fn half_precision_is_as_near_as_on_the_cpu() {
        for case in Case::causal() {
            let config = EngineConfig { dtype: Some(DType::Bf16), backend: Backend::Aten, ..long_config() };
            let mean_difference = |config: &EngineConfig| {
                let requests = long(&case);
                let finished = run(&mut case.engine(config), &requests);
                let differences = [0, 3].map(|id: u64| {
                    let request = requests.iter().find(|request| request.samples[0].id == id).unwrap();
                    let (prompt, found) = (&request.prompt_tokens, &finished[&id]);
                    let learner = learner_logprobs(&case.config, &case.weights, prompt, found, 0.9);
                    let sum: f32 =
                        learner.iter().zip(&found.rollout_logprobs).map(|(a, b)| (a - b).abs()).sum();
                    sum / learner.len() as f32
                });
                (differences[0] + differences[1]) / 2.0
            };
            let (here, there) = (mean_difference(&config), mean_difference(&on_gpu(config.clone())));
            println!("{}: {here} on the CPU, {there} on the GPU", case.name);
            assert!(there < 2.0 * here + 0.01, "{}: {there} against {here}", case.name);
        }
    }
}

#[test]
fn a_network_that_the_native_backend_cannot_run_is_run_by_torch() {
    let (mut model, _) = small_model();
    model.head_dim = 514;
    let weights = Weights::random(&model, 3, tch::Kind::Float, tch::Device::Cpu);
    let auto = config_of(Backend::Auto);
    let request = request(1, prompt(9, 1), SamplingParams { max_new_tokens: 8, ..SamplingParams::default() });
    let answers = run(&mut engine(&model, &weights, &auto), std::slice::from_ref(&request));
    let expected = run(&mut engine(&model, &weights, &config_of(Backend::Aten)), &[request]);
    assert_eq!(answers[&1].response_tokens, expected[&1].response_tokens);
    let native = config_of(Backend::Native);
    let refused = Engine::new(&model, policy(&model, &weights, &native, 0), None, &native).unwrap_err();
    assert!(matches!(refused, Error::HeadDim(514)), "{refused}");
}
