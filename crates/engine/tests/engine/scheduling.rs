//! Who computes what, when, and who has to wait.

use engine::{EngineConfig, Event, Refusal, Request};
use types::SamplingParams;

use crate::fixture::{
    BACKENDS, assert_same, config_of, drain, engine, prompt, request, run, siblings, small_config,
    small_model,
};

fn plain(max_new_tokens: u32) -> SamplingParams {
    SamplingParams { max_new_tokens, ..SamplingParams::default() }
}

#[test]
fn siblings_share_one_prefill() {
    let (model, weights) = small_model();
    for backend in BACKENDS {
        let config = EngineConfig { max_sequences: Some(3), ..config_of(backend) };
        let ids = [0, 1, 2, 3, 4, 5];
        let mut shared = engine(&model, &weights, &config);
        let finished = run(&mut shared, &[siblings(&ids, prompt(100, 0), plain(4))]);
        let totals = shared.totals();
        assert_eq!((totals.computed_tokens, totals.shared_tokens), (100 + 5 + 6 * 3, 5 * 99));
        let mut apart = engine(&model, &weights, &EngineConfig { prefix_cache: false, ..config });
        let requests: Vec<Request> = ids.iter().map(|id| request(*id, prompt(100, 0), plain(4))).collect();
        assert_same(backend, &run(&mut apart, &requests), &finished);
        assert_eq!((apart.totals().computed_tokens, apart.totals().shared_tokens), (600 + 6 * 3, 0));
    }
}

#[test]
fn a_long_prompt_does_not_stall_responses() {
    let (model, weights) = small_model();
    let config = EngineConfig { prefill_chunk_tokens: Some(8), ..small_config() };
    let mut engine = engine(&model, &weights, &config);
    let streamed = Request { stream: true, ..request(0, prompt(4, 0), plain(60)) };
    assert_eq!(engine.submit(&[streamed]), [Ok(())]);
    let drawn = |events: &[Event], id: u64| events.iter().any(|event| event.id() == id);
    assert!(drawn(&engine.step().unwrap(), 0));
    assert_eq!(engine.submit(&[Request { stream: true, ..request(1, prompt(100, 1), plain(9)) }]), [Ok(())]);
    let mut steps = 0;
    loop {
        let events = engine.step().unwrap();
        assert!(drawn(&events, 0), "step {steps} drew nothing for the response under way");
        steps += 1;
        if drawn(&events, 1) {
            break;
        }
    }
    assert_eq!(steps, 13, "100 prompt tokens in chunks of 8");
    drain(&mut engine);
}

#[test]
fn what_cannot_be_served_is_refused_with_the_reason() {
    let (model, weights) = small_model();
    let config = EngineConfig { max_waiting: 4, kv_cache_blocks: Some(4), ..small_config() };
    let mut engine = engine(&model, &weights, &config);
    let ok = || request(0, prompt(5, 0), plain(3));
    let stop = SamplingParams { stop: vec!["x".to_owned()], ..plain(3) };
    let cases: Vec<(Request, Refusal)> = vec![
        (request(0, vec![], plain(3)), Refusal::EmptyPrompt),
        (siblings(&[], prompt(5, 0), plain(3)), Refusal::NoSample),
        (request(0, vec![1, 97], plain(3)), Refusal::Token { position: 1, token: 97, vocab_size: 97 }),
        (request(0, prompt(256, 0), plain(3)), Refusal::Context { tokens: 256, context: 256 }),
        (
            request(0, prompt(60, 0), plain(10)),
            Refusal::Pool { response_tokens: 10, needed_blocks: 5, pool_blocks: 4 },
        ),
        (request(0, prompt(5, 0), stop), Refusal::NoTokenizer),
        (siblings(&[0, 1, 0], prompt(5, 0), plain(3)), Refusal::DuplicateId(0)),
        (siblings(&[0, 1, 2, 3, 4], prompt(5, 0), plain(3)), Refusal::Busy { waiting: 0, most: 4 }),
    ];
    for (request, refusal) in cases {
        assert_eq!(engine.submit(&[request]), [Err(refusal)]);
        assert!(engine.is_idle());
    }
    // A refusal of one is none of the others, and leaves nothing behind.
    assert_eq!(engine.submit(&[ok(), ok()]), [Ok(()), Err(Refusal::DuplicateId(0))]);
    assert_eq!(drain(&mut engine).len(), 1);
}

#[test]
fn a_pool_that_is_too_small_for_all_serves_all_in_turn() {
    let (model, weights) = small_model();
    for backend in BACKENDS {
        let config = EngineConfig { max_sequences: Some(16), ..config_of(backend) };
        let mut tight =
            engine(&model, &weights, &EngineConfig { kv_cache_blocks: Some(6), ..config.clone() });
        let requests: Vec<Request> = (0..20).map(|id| request(id, prompt(20, id), plain(60))).collect();
        let finished = run(&mut tight, &requests);
        assert_eq!(finished.len(), 20);
        assert!(tight.totals().preemptions > 0);
        let mut wide = engine(&model, &weights, &config);
        assert_same(backend, &run(&mut wide, &requests), &finished);
        assert_eq!(wide.totals().preemptions, 0);
    }
}

#[test]
fn a_cancelled_response_leaves_nothing_behind() {
    let (model, weights) = small_model();
    for backend in BACKENDS {
        let config = EngineConfig { max_sequences: Some(2), ..config_of(backend) };
        let requests =
            [siblings(&[0, 1, 2, 3], prompt(40, 0), plain(30)), request(4, prompt(9, 1), plain(30))];
        let mut reference = run(&mut engine(&model, &weights, &config), &requests);
        let mut engine = engine(&model, &weights, &config);
        engine.submit(&requests);
        for _ in 0..5 {
            engine.step().unwrap();
        }
        assert_eq!(engine.load().running, 2);
        // One that runs, one that waits, one twice, one that never was.
        assert_eq!([0, 3, 3, 99].map(|id| engine.cancel(id)), [true, true, false, false]);
        let finished = drain(&mut engine);
        assert_eq!(finished.keys().copied().collect::<Vec<_>>(), [1, 2, 4]);
        reference.retain(|id, _| finished.contains_key(id));
        assert_same(backend, &finished, &reference);
        assert_eq!(engine.totals().cancelled, 2);
        // Its id is free again.
        assert_eq!(run(&mut engine, &[request(0, prompt(3, 0), plain(2))]).len(), 1);
    }
}
