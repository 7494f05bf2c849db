//! Greedy continuations equal to those of transformers, log-probabilities equal to those of the learner.

use engine::{EngineConfig, Finished};
use model::{LogprobOptions, ModelConfig, NextTokens, Packed, Weights};
use tch::Device;
use types::{FinishReason, SamplingParams};

use crate::fixture::{BACKENDS, Case, assert_same, config_of, largest_difference, request, run};

/// Log-probabilities of the response tokens as the learner computes them: one packed forward pass.
pub(crate) fn learner_logprobs(
    model: &ModelConfig,
    weights: &Weights,
    prompt: &[u32],
    response: &Finished,
    temperature: f64,
) -> Vec<f32> {
    let _guard = tch::no_grad_guard();
    let sequence = [prompt, &response.response_tokens].concat();
    let packed = Packed::new(&[sequence], model.vocab_size, Device::Cpu).unwrap();
    let network = weights.network(model);
    let hidden = model::forward(model, &network, &packed);
    let NextTokens { rows, targets } = packed.next_tokens();
    let options = LogprobOptions { temperature, entropy: false };
    let found =
        model::logprobs(&hidden.index_select(0, &rows), &network.output.head, &targets, options).logprobs;
    let found: Vec<f32> = Vec::try_from(found).unwrap();
    found[prompt.len() - 1..].to_vec()
}

#[test]
fn greedy_continuations_equal_transformers_in_ragged_batches() {
    let cases = Case::causal();
    for (backend, case) in
        BACKENDS.into_iter().flat_map(|backend| cases.iter().map(move |case| (backend, case)))
    {
        let (prompts, expected) = (case.token_rows("prompts"), case.token_rows("greedy"));
        let requests: Vec<_> = prompts
            .iter()
            .enumerate()
            .map(|(id, prompt)| request(id as u64, prompt.clone(), SamplingParams::greedy(200)))
            .collect();
        // Chunks shorter than the longest prompt, so that prompts are cut.
        let config = EngineConfig { prefill_chunk_tokens: Some(11), ..config_of(backend) };
        let finished = run(&mut case.engine(&config), &requests);
        for (id, expected) in expected.iter().enumerate() {
            let found = &finished[&(id as u64)];
            assert_eq!(&found.response_tokens, expected, "{} prompt {id}", case.name);
            assert_eq!(found.finish_reason, FinishReason::Length);
            let learner = learner_logprobs(&case.config, &case.weights, &prompts[id], found, 1.0);
            let difference = largest_difference(&found.rollout_logprobs, &learner);
            println!(
                "{backend:?} {} prompt {id}: log-probs differ from the learner's by {difference:.1e}",
                case.name
            );
            assert!(difference < 2e-5, "{} prompt {id}: {difference}", case.name);
        }
        let alone = run(&mut case.engine(&config), &requests[3..]);
        let together = finished.into_iter().filter(|(id, _)| *id >= 3).collect();
        assert_same(backend, &alone, &together);
    }
}
