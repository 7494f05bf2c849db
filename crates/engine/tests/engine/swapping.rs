//! New weights between two steps.

use engine::{Backend, CacheOnSwap, EngineConfig, Error};
use types::{PolicyVersion, SamplingParams, Span};

use crate::fixture::{
    BACKENDS, config_of, drain, engine, model_of, next_logprobs, policy, prompt, siblings, small_model,
};

const PROMPT: usize = 20;

fn span(version: u64, tokens: u32) -> Span {
    Span { version: PolicyVersion(version), tokens: tokens.try_into().unwrap() }
}

/// Checks responses of which `before` tokens were drawn by the first weights.
fn swapped(backend: Backend, on_swap: CacheOnSwap) {
    let (model, first) = small_model();
    let (_, second) = model_of(97, 12);
    let config = EngineConfig { on_swap, ..config_of(backend) };
    let mut engine = engine(&model, &first, &config);
    let sampling = SamplingParams { max_new_tokens: 15, ..SamplingParams::default() };
    engine.submit(&[siblings(&[0, 1], prompt(PROMPT, 0), sampling)]);
    for _ in 0..6 {
        engine.step().unwrap();
    }
    let old = engine.swap_weights(policy(&model, &second, &config, 1)).unwrap();
    assert_eq!((old.version(), engine.version()), (PolicyVersion(0), PolicyVersion(1)));
    for (id, response) in drain(&mut engine) {
        let drawn: u32 = response.spans.iter().map(|span| span.tokens.get()).sum();
        assert_eq!((response.spans.len(), drawn), (2, 15), "response {id}");
        let before = response.spans[0].tokens.get();
        assert!((5..=6).contains(&before) && response.spans[0].version == PolicyVersion(0));
        let cached = PROMPT as u32 + 14;
        let kept = PROMPT as u32 + before - 1;
        let expected = match on_swap {
            CacheOnSwap::Keep => vec![span(0, kept), span(1, cached - kept)],
            CacheOnSwap::Recompute => vec![span(1, cached)],
        };
        assert_eq!(response.cache_spans, expected, "response {id}");
        for at in [0, before as usize - 1, before as usize, 14] {
            let sequence = [prompt(PROMPT, 0), response.response_tokens[..at].to_vec()].concat();
            let weights = if at < before as usize { &first } else { &second };
            let pure = next_logprobs(&model, weights, &sequence, 1.0)[response.response_tokens[at] as usize];
            let difference = (pure - f64::from(response.rollout_logprobs[at])).abs();
            // With the old cache kept, the new weights' numbers are a mixture, and must not look like pure
            // ones.
            let mixed = on_swap == CacheOnSwap::Keep && at >= before as usize;
            assert_eq!(difference > 1e-4, mixed, "response {id} token {at}: {difference}");
        }
    }
}

#[test]
fn a_kept_cache_is_recorded() {
    BACKENDS.into_iter().for_each(|backend| swapped(backend, CacheOnSwap::Keep));
}

#[test]
fn a_recomputed_cache_is_the_new_weights_own() {
    BACKENDS.into_iter().for_each(|backend| swapped(backend, CacheOnSwap::Recompute));
}

#[test]
fn another_number_for_the_same_weights_changes_nothing_but_the_number() {
    let (model, weights) = small_model();
    for backend in BACKENDS {
        // Also where a swap would compute the cache anew.
        let config = EngineConfig { on_swap: CacheOnSwap::Recompute, ..config_of(backend) };
        let sampling = SamplingParams { max_new_tokens: 15, ..SamplingParams::default() };
        let mut runs = Vec::new();
        for is_renumbered in [false, true] {
            let mut engine = engine(&model, &weights, &config);
            engine.submit(&[siblings(&[0, 1], prompt(PROMPT, 0), sampling.clone())]);
            for _ in 0..6 {
                engine.step().unwrap();
            }
            if is_renumbered {
                engine.renumber(PolicyVersion(3)).unwrap();
                assert_eq!(engine.version(), PolicyVersion(3));
                assert!(matches!(engine.renumber(PolicyVersion(2)), Err(Error::Version { .. })));
            }
            let responses = drain(&mut engine);
            runs.push((responses, engine.totals().computed_tokens));
        }
        let (renumbered, plain) = (runs.pop().unwrap(), runs.pop().unwrap());
        assert_eq!(renumbered.1, plain.1, "nothing is computed anew");
        for ((id, new), (_, old)) in renumbered.0.iter().zip(&plain.0) {
            assert_eq!(new.response_tokens, old.response_tokens, "response {id}");
            assert_eq!(new.rollout_logprobs, old.rollout_logprobs, "response {id}");
            let versions: Vec<u64> = new.spans.iter().map(|span| span.version.0).collect();
            assert_eq!(versions, [0, 3], "response {id}");
        }
    }
}

#[test]
fn weights_that_do_not_follow_are_refused() {
    let (model, weights) = small_model();
    for (backend, other_backend) in [(BACKENDS[0], BACKENDS[1]), (BACKENDS[1], BACKENDS[0])] {
        let config = config_of(backend);
        let mut engine = engine(&model, &weights, &config);
        engine.swap_weights(policy(&model, &weights, &config, 5)).unwrap();
        let error = engine.swap_weights(policy(&model, &weights, &config, 4)).unwrap_err();
        assert!(
            matches!(error, Error::Version { current: PolicyVersion(5), new: PolicyVersion(4) }),
            "{error}"
        );
        let (other_model, other) = model_of(98, 11);
        let half = EngineConfig { dtype: Some(types::DType::Bf16), ..config.clone() };
        let wrong = [
            policy(&other_model, &other, &config, 6),
            policy(&model, &weights, &half, 6),
            policy(&model, &weights, &config_of(other_backend), 6),
        ];
        for wrong in wrong {
            let error = engine.swap_weights(wrong).unwrap_err();
            assert!(matches!(error, Error::Weights), "{error}");
        }
        assert_eq!(engine.version(), PolicyVersion(5));
    }
}
