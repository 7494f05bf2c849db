//! What ends a response.

use std::sync::Arc;

use engine::{Engine, Finished, Request};
use model::tokenizer::train_bpe;
use model::{SpecialTokens, Tokenizer};
use types::{FinishReason, SamplingParams};

use crate::fixture::{model_of, policy, prompt, request, run, small_config};

/// A tokenizer of 300 tokens, none special.
fn tokenizer() -> Arc<Tokenizer> {
    let texts = ["the quick brown fox jumps over the lazy dog; then the other quick brown fox jumps"; 8];
    Arc::new(train_bpe(texts.iter(), 300, &SpecialTokens::default()).unwrap())
}

fn generate(tokenizer: &Arc<Tokenizer>, id: u64, sampling: SamplingParams, eos: &[u32]) -> Finished {
    let (model, weights) = model_of(300, 11);
    let config = small_config();
    let weights = policy(&model, &weights, &config, 0);
    let mut engine = Engine::new(&model, weights, Some(Arc::clone(tokenizer)), &config).unwrap();
    let request = Request { eos_token_ids: eos.into(), ..request(id, prompt(10, 0), sampling) };
    run(&mut engine, &[request]).remove(&id).unwrap()
}

fn free() -> SamplingParams {
    SamplingParams { max_new_tokens: 50, ..SamplingParams::default() }
}

#[test]
fn stop_texts_are_found_wherever_the_borders_of_tokens_lie() {
    let tokenizer = tokenizer();
    let mut inside = 0;
    for id in 0..8 {
        let whole = generate(&tokenizer, id, free(), &[]);
        assert_eq!((whole.finish_reason, whole.response_tokens.len()), (FinishReason::Length, 50));
        let text = tokenizer.decode(&whole.response_tokens, true).unwrap();
        let characters: Vec<char> = text.chars().collect();
        // Three characters at a time, as far as they are characters.
        for window in characters.windows(3).filter(|window| window.iter().all(char::is_ascii)).step_by(5) {
            let stop: String = window.iter().collect();
            let sampling = SamplingParams { stop: vec!["never occurs".to_owned(), stop.clone()], ..free() };
            let stopped = generate(&tokenizer, id, sampling, &[]);
            assert_eq!(stopped.finish_reason, FinishReason::Stop, "{stop:?} in {text:?}");
            let length = stopped.response_tokens.len();
            assert_eq!(stopped.response_tokens, whole.response_tokens[..length]);
            let found = stopped.stop_text.unwrap();
            assert_eq!((found.text.as_str(), Some(found.at)), (stop.as_str(), text.find(&stop)));
            let shorter = tokenizer.decode(&stopped.response_tokens[..length - 1], true).unwrap();
            assert!(!shorter.contains(&stop), "{stop:?} was complete one token earlier");
            let text = tokenizer.decode(&stopped.response_tokens, true).unwrap();
            inside += usize::from(!text.ends_with(&stop));
        }
    }
    assert!(inside > 0, "no stop text ended inside a token, so that this shows little");
}

#[test]
fn stop_and_eos_ids_end_a_response_and_belong_to_it() {
    let tokenizer = tokenizer();
    let whole = generate(&tokenizer, 1, free(), &[]).response_tokens;
    let id = whole[7];
    let first = whole.iter().position(|token| *token == id).unwrap();
    let by_id = generate(&tokenizer, 1, SamplingParams { stop_token_ids: vec![id], ..free() }, &[]);
    let by_eos = generate(&tokenizer, 1, free(), &[id]);
    for response in [by_id, by_eos] {
        assert_eq!(response.response_tokens, whole[..=first]);
        assert_eq!((response.finish_reason, response.stop_text), (FinishReason::Stop, None));
    }
    let ignored = generate(&tokenizer, 1, SamplingParams { ignore_eos: true, ..free() }, &[id]);
    assert_eq!(ignored.response_tokens, whole);
}

#[test]
fn the_context_ends_a_response() {
    let tokenizer = tokenizer();
    let response =
        generate(&tokenizer, 0, SamplingParams { max_new_tokens: 10_000, ..SamplingParams::default() }, &[]);
    assert_eq!((response.response_tokens.len(), response.finish_reason), (246, FinishReason::Length));
}
