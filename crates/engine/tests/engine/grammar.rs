//! Responses that follow a grammar, on both backends.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::{
    Backend, Engine, EngineConfig, Finished, Grammar, GrammarCompiler, GrammarSource, Refusal, Request,
    SampleRequest,
};
use model::tokenizer::train_bpe;
use model::{SpecialTokens, Tokenizer};
use serde_json::{Value, json};
use types::{FinishReason, SamplingParams};

use crate::fixture::{
    BACKENDS, assert_same, config_of, model_of, next_logprobs, policy, prompt, request, run, small_config,
};

const END: u32 = 299;

/// A tokenizer of 300 tokens, none special: pieces of JSON among them.
fn tokenizer() -> Arc<Tokenizer> {
    let texts = [r#"{"name": "a quick fox", "sizes": [12, 345], "is": true} {"name": "no", "sizes": []}"#; 8];
    Arc::new(train_bpe(texts.iter(), 300, &SpecialTokens::default()).unwrap())
}

fn compile(source: &GrammarSource) -> Grammar {
    GrammarCompiler::new(&tokenizer()).unwrap().compile(source).unwrap()
}

fn schema() -> GrammarSource {
    GrammarSource::JsonSchema(json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "sizes": {"type": "array", "items": {"$ref": "#/$defs/size"}, "maxItems": 3},
        },
        "required": ["name", "sizes"],
        "additionalProperties": false,
        "$defs": {"size": {"type": "integer", "minimum": 0, "maximum": 99}},
    }))
}

/// A request for eight siblings that follow a grammar and may end.
fn asked(source: &GrammarSource, max_new_tokens: u32) -> Request {
    let sampling = SamplingParams { max_new_tokens, ..SamplingParams::default() };
    Request {
        samples: (0..8).map(|id| SampleRequest { id, seed: id }).collect(),
        eos_token_ids: Arc::from([END]),
        grammar: Some(compile(source)),
        ..request(0, prompt(10, 0), sampling)
    }
}

fn drawn(request: &Request, config: &EngineConfig) -> BTreeMap<u64, Finished> {
    let (model, weights) = model_of(300, 11);
    let mut engine =
        Engine::new(&model, policy(&model, &weights, config, 0), Some(tokenizer()), config).unwrap();
    run(&mut engine, std::slice::from_ref(request))
}

/// What a response says, without the token that ended it.
fn text(finished: &Finished) -> String {
    let tokens = finished.response_tokens.iter().copied().filter(|token| *token != END);
    tokenizer().decode(&tokens.collect::<Vec<_>>(), false).unwrap()
}

#[test]
fn every_response_is_json_of_the_schema() {
    let native = drawn(&asked(&schema(), 200), &config_of(Backend::Native));
    for backend in BACKENDS {
        let found = drawn(&asked(&schema(), 200), &config_of(backend));
        let mut said = Vec::new();
        for finished in found.values() {
            let text = text(finished);
            assert_eq!(finished.finish_reason, FinishReason::Stop, "{text}");
            assert_eq!(finished.response_tokens.last(), Some(&END), "the drawn end belongs to it");
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(value["name"].as_str().unwrap().chars().count() <= 8, "{text}");
            let sizes = value["sizes"].as_array().unwrap();
            assert!(sizes.iter().all(|size| size.as_u64().unwrap() <= 99) && sizes.len() <= 3, "{text}");
            let mass = finished.surviving_mass.as_ref().unwrap();
            assert_eq!(mass.len(), finished.response_tokens.len());
            assert!(mass.iter().all(|mass| *mass > 0.0 && *mass < 1.0), "{mass:?}");
            said.push(text);
        }
        said.sort_unstable();
        said.dedup();
        assert!(said.len() > 4, "siblings say the same: {said:?}");
        assert_same(backend, &found, &native);
    }
}

#[test]
fn logprobs_are_those_of_the_whole_distribution() {
    let (model, weights) = model_of(300, 11);
    let request = asked(&schema(), 200);
    for finished in drawn(&request, &small_config()).values().take(3) {
        let mut sequence = request.prompt_tokens.to_vec();
        for (token, logprob) in finished.response_tokens.iter().zip(&finished.rollout_logprobs) {
            let expected = next_logprobs(&model, &weights, &sequence, 1.0)[*token as usize];
            assert!((f64::from(*logprob) - expected).abs() < 1e-4, "{logprob} and {expected}");
            sequence.push(*token);
        }
    }
}

#[test]
fn what_is_computed_again_goes_on_where_it_was() {
    let whole = drawn(&asked(&schema(), 200), &small_config());
    // Room for about three of the eight.
    let short = EngineConfig { kv_cache_blocks: Some(40), prefix_cache: false, ..small_config() };
    assert_eq!(drawn(&asked(&schema(), 200), &short), whole);
}

#[test]
fn texts_patterns_and_grammars_are_followed() {
    let choice = GrammarSource::Choice(vec!["quick \"fox\"".to_owned(), "a \\ b\n".to_owned()]);
    let said: Vec<String> = drawn(&asked(&choice, 60), &small_config()).values().map(text).collect();
    assert!(said.iter().all(|said| said == "quick \"fox\"" || said == "a \\ b\n"), "{said:?}");
    let lark = GrammarSource::Lark("start: \"[\" sum \"]\"\nsum: /[0-9]{1,2}/ | sum \"+\" sum".to_owned());
    for (_, finished) in drawn(&asked(&lark, 120), &small_config()) {
        let said = text(&finished);
        let is_cut = finished.finish_reason == FinishReason::Length;
        let inner = said.strip_prefix('[').unwrap();
        let inner = if is_cut { inner } else { inner.strip_suffix(']').unwrap() };
        assert!(inner.chars().all(|c| c.is_ascii_digit() || c == '+'), "{said}");
    }
    let any = drawn(&asked(&GrammarSource::json_object(), 30), &small_config());
    assert!(any.values().all(|finished| text(finished).starts_with('{')));
}

/// Nothing can follow, and no token ends a response: it is over.
#[test]
fn a_complete_response_ends_where_no_token_can_end_it() {
    let pattern = GrammarSource::Regex("[0-9]{3}".to_owned());
    let request = Request { eos_token_ids: Arc::from([]), ..asked(&pattern, 60) };
    for finished in drawn(&request, &small_config()).values() {
        assert_eq!(finished.finish_reason, FinishReason::Stop);
        let said = text(finished);
        assert!(said.len() == 3 && said.chars().all(|c| c.is_ascii_digit()), "{said}");
    }
    // A stop token that the grammar has in its middle does not end it there.
    let digit = tokenizer().encode("7", false).unwrap()[0];
    let sampling =
        SamplingParams { stop_token_ids: vec![digit], max_new_tokens: 60, ..SamplingParams::default() };
    let request = Request { sampling: Arc::new(sampling.try_into().unwrap()), ..request };
    assert!(drawn(&request, &small_config()).values().all(|finished| text(finished).len() >= 3));
}

#[test]
fn what_cannot_be_followed_is_refused() {
    let compiler = GrammarCompiler::new(&tokenizer()).unwrap();
    for source in [
        GrammarSource::Regex("[".to_owned()),
        GrammarSource::JsonSchema(json!({"type": "nonsense"})),
        GrammarSource::JsonSchema(json!({"$ref": "https://elsewhere.example/schema"})),
        GrammarSource::Lark("start: missing".to_owned()),
        GrammarSource::Lark("x".repeat(1 << 20)),
    ] {
        let error = compiler.compile(&source).unwrap_err();
        assert!(!error.to_string().is_empty() && !error.to_string().contains('\n'), "{error}");
    }
    let (model, weights) = model_of(300, 11);
    let config = small_config();
    let mut engine = Engine::new(&model, policy(&model, &weights, &config, 0), None, &config).unwrap();
    let both = Request { min_tokens: 3, ..asked(&schema(), 60) };
    let refused = engine.submit(&[both])[0].clone().unwrap_err();
    assert!(matches!(&refused, Refusal::Sampling(problem) if problem.contains("min_tokens")), "{refused}");
}
