//! What ends a response.

use std::sync::Arc;

use engine::{Engine, Finished, Refusal, Request};
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
fn nothing_ends_a_response_before_min_tokens() {
    let tokenizer = tokenizer();
    let least = |min_tokens: usize, sampling: SamplingParams, eos: &[u32]| {
        let (model, weights) = model_of(300, 11);
        let config = small_config();
        let weights = policy(&model, &weights, &config, 0);
        let mut engine = Engine::new(&model, weights, Some(Arc::clone(&tokenizer)), &config).unwrap();
        let request =
            Request { eos_token_ids: eos.into(), min_tokens, ..request(3, prompt(10, 0), sampling) };
        engine.submit(std::slice::from_ref(&request))[0]
            .clone()
            .map(|()| crate::fixture::drain(&mut engine).remove(&3).unwrap())
    };
    let whole = least(0, free(), &[]).unwrap().response_tokens;
    let (eos, stop) = (whole[4], whole[9]);
    let ends = |at: usize, token| whole.iter().skip(at).position(|drawn| *drawn == token);
    assert_eq!(least(0, free(), &[eos]).unwrap().response_tokens.last(), Some(&eos));
    for min_tokens in [1, 6, 20, 50] {
        let sampling = SamplingParams { stop_token_ids: vec![stop], ..free() };
        let found = least(min_tokens, sampling, &[eos]).unwrap();
        assert!(found.response_tokens.len() >= min_tokens);
        let early = &found.response_tokens[..min_tokens];
        assert!(!early.contains(&eos) && !early.contains(&stop), "{early:?} with {eos} and {stop}");
        assert_eq!(found.surviving_mass.as_ref().map(Vec::len), Some(found.response_tokens.len()));
        let later = &found.surviving_mass.unwrap()[min_tokens..];
        assert!(later.iter().all(|mass| *mass == 1.0), "{later:?}");
    }
    assert!(ends(0, eos).is_some() && ends(0, stop).is_some());
    // A stop text that ends before is passed over, one that ends at the last of the first tokens counts.
    let text = |tokens: &[u32]| tokenizer.decode(tokens, true).unwrap();
    let character = text(&whole).chars().find(char::is_ascii).unwrap().to_string();
    let stopped = |min_tokens| {
        least(min_tokens, SamplingParams { stop: vec![character.clone()], ..free() }, &[]).unwrap()
    };
    let first = stopped(0).response_tokens.len();
    let mut seen = first;
    for min_tokens in 1..=whole.len() {
        let found = stopped(min_tokens);
        let length = found.response_tokens.len();
        assert!(length >= min_tokens && found.response_tokens == whole[..length]);
        match found.stop_text {
            Some(at) => {
                assert!(text(&whole[..length])[at.at..].starts_with(&character));
                assert!(
                    at.at >= text(&whole[..min_tokens - 1]).len().saturating_sub(1),
                    "{min_tokens}: {at:?}"
                );
            }
            None => assert_eq!(length, whole.len()),
        }
        seen = seen.max(length);
    }
    assert!(seen > first, "the character comes once only, so that this shows nothing");
    assert!(
        matches!(least(51, free(), &[]), Err(Refusal::Sampling(problem)) if problem.contains("min_tokens is 51"))
    );
    let all: Vec<u32> = (0..300).collect();
    assert!(
        matches!(least(1, free(), &all), Err(Refusal::Sampling(problem)) if problem.contains("every token"))
    );
}

#[test]
fn the_context_ends_a_response() {
    let tokenizer = tokenizer();
    let response =
        generate(&tokenizer, 0, SamplingParams { max_new_tokens: 10_000, ..SamplingParams::default() }, &[]);
    assert_eq!((response.response_tokens.len(), response.finish_reason), (246, FinishReason::Length));
}
