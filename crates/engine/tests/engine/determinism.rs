//! A response depends on its prompt, its seed and the weights, to the bit, whatever else the engine does.

use std::collections::BTreeMap;

use engine::{EngineConfig, Finished, Request};
use types::{DType, SamplingParams};

use crate::fixture::{engine, prompt, request, run, siblings, small_config, small_model};

/// Requests of many lengths and ways of drawing.
pub(crate) fn requests() -> Vec<Request> {
    let plain = |max_new_tokens| SamplingParams { max_new_tokens, ..SamplingParams::default() };
    let truncated = SamplingParams { top_k: 20, top_p: 0.9, min_p: 0.02, temperature: 0.7, ..plain(33) };
    let penalised = SamplingParams { repetition_penalty: 1.3, ..plain(25) };
    let mut requests = vec![
        request(0, prompt(1, 0), plain(40)),
        request(1, prompt(70, 1), truncated),
        request(2, prompt(17, 2), penalised),
        request(3, prompt(16, 3), SamplingParams::greedy(60)),
        siblings(&[4, 5, 6, 7], prompt(45, 4), plain(30)),
    ];
    requests.extend((8..24).map(|id| request(id, prompt(id as usize * 3, id), plain(5 + id as u32))));
    requests
}

fn together(config: &EngineConfig) -> (BTreeMap<u64, Finished>, u64) {
    let (model, weights) = small_model();
    let mut engine = engine(&model, &weights, config);
    let finished = run(&mut engine, &requests());
    (finished, engine.totals().preemptions)
}

#[test]
fn company_chunks_threads_and_preemption_change_no_bit() {
    let (model, weights) = small_model();
    let base = small_config();
    let (reference, preemptions) = together(&base);
    assert_eq!((reference.len(), preemptions), (24, 0));
    for request in requests() {
        let alone = run(&mut engine(&model, &weights, &base), std::slice::from_ref(&request));
        for (id, response) in alone {
            assert_eq!(response, reference[&id], "response {id} alone");
        }
    }
    let others = [
        EngineConfig { max_sequences: Some(3), ..base.clone() },
        EngineConfig { max_sequences: Some(24), prefill_chunk_tokens: Some(7), ..base.clone() },
        EngineConfig { threads: 1, ..base.clone() },
        EngineConfig { block_tokens: 48, ..base.clone() },
    ];
    for config in others {
        assert_eq!(together(&config).0, reference, "{config:?}");
    }
    // 9 blocks hold the largest request and little more.
    for prefix_cache in [false, true] {
        let tight = EngineConfig { kv_cache_blocks: Some(9), prefix_cache, ..base.clone() };
        let (finished, preemptions) = together(&tight);
        assert!(preemptions >= 5, "{preemptions} preemptions in a tight pool");
        assert_eq!(finished, reference);
    }
}

#[test]
fn other_seeds_prompts_and_weights_give_other_responses() {
    let (model, weights) = small_model();
    let sampling = SamplingParams { max_new_tokens: 20, ..SamplingParams::default() };
    let mut engine = engine(&model, &weights, &small_config());
    let request = |id, stream| request(id, prompt(10, stream), sampling.clone());
    let finished = run(&mut engine, &[request(0, 0), request(1, 0), request(2, 1)]);
    assert_ne!(finished[&0].response_tokens, finished[&1].response_tokens, "the seed");
    assert_ne!(finished[&0].response_tokens, finished[&2].response_tokens, "the prompt");
    let (model, other) = crate::fixture::model_of(97, 12);
    let finished_other = run(&mut crate::fixture::engine(&model, &other, &small_config()), &[request(0, 0)]);
    assert_ne!(finished[&0].response_tokens, finished_other[&0].response_tokens, "the weights");
}

#[test]
fn half_precision_is_deterministic_and_near_the_full_one() {
    let (model, weights) = small_model();
    for (dtype, tolerance) in [(DType::Bf16, 0.1), (DType::F16, 0.02)] {
        let config = EngineConfig { dtype: Some(dtype), ..small_config() };
        let (finished, _) = together(&config);
        let again =
            together(&EngineConfig { max_sequences: Some(3), prefill_chunk_tokens: Some(5), ..config }).0;
        assert_eq!(finished, again, "{dtype:?}");
        let learner = crate::parity::learner_logprobs(&model, &weights, &prompt(1, 0), &finished[&0], 1.0);
        let difference = crate::fixture::largest_difference(&finished[&0].rollout_logprobs, &learner);
        assert!(difference < tolerance && difference > 0.0, "{dtype:?}: {difference}");
    }
}
