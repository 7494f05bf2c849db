//! What is drawn has the distribution that was asked for.

use std::collections::BTreeSet;

use engine::{Backend, EngineConfig, Finished, Request};
use types::SamplingParams;

use crate::fixture::{BACKENDS, config_of, engine, next_logprobs, prompt, run, siblings, small_model};

/// Responses of one token each, with seeds 0, 1, 2, ...
const DRAWS: u64 = 20_000;

fn draw(backend: Backend, sampling: SamplingParams) -> Vec<Finished> {
    draw_without(backend, sampling, &[])
}

/// The same where `banned` end a response and it needs a token more.
fn draw_without(backend: Backend, sampling: SamplingParams, banned: &[u32]) -> Vec<Finished> {
    let (model, weights) = small_model();
    let config = EngineConfig { max_waiting: DRAWS as usize, max_sequences: Some(64), ..config_of(backend) };
    let mut engine = engine(&model, &weights, &config);
    let ids: Vec<u64> = (0..DRAWS).collect();
    let min_tokens = usize::from(!banned.is_empty());
    let request = Request {
        top_logprobs: 3,
        min_tokens,
        eos_token_ids: banned.into(),
        ..siblings(&ids, prompt(12, 3), sampling)
    };
    run(&mut engine, &[request]).into_values().collect()
}

/// The probabilities of all tokens, by the definitions of transformers' logits processors, slowly; those of
/// `banned` are taken out first.
fn reference(sampling: &SamplingParams, banned: &[u32]) -> (Vec<f64>, f64) {
    let (model, weights) = small_model();
    let temperature = f64::from(sampling.temperature);
    let full: Vec<f64> =
        next_logprobs(&model, &weights, &prompt(12, 3), temperature).into_iter().map(f64::exp).collect();
    let mut order: Vec<usize> = (0..full.len()).filter(|token| !banned.contains(&(*token as u32))).collect();
    order.sort_by(|a, b| full[*b].total_cmp(&full[*a]));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k as usize);
    }
    let of_top_k: f64 = order.iter().map(|token| full[*token]).sum();
    let mut before = 0.0;
    order.retain(|token| {
        let kept = before < f64::from(sampling.top_p) * of_top_k;
        before += full[*token];
        kept
    });
    let least = f64::from(sampling.min_p) * full[order[0]];
    order.retain(|token| full[*token] >= least);
    let surviving: f64 = order.iter().map(|token| full[*token]).sum();
    let mut truncated = vec![0.0; full.len()];
    order.iter().for_each(|token| truncated[*token] = full[*token] / surviving);
    (truncated, surviving)
}

/// Pearson's statistic as a standard normal number (Wilson and Hilferty), tokens expected less than 5 times
/// put together.
fn deviation(counts: &[f64], probabilities: &[f64]) -> f64 {
    let (mut statistic, mut bins, mut rest) = (0.0, 0.0, (0.0, 0.0));
    for (count, probability) in counts.iter().zip(probabilities) {
        let expected = probability * DRAWS as f64;
        if expected < 5.0 {
            rest = (rest.0 + count, rest.1 + expected);
        } else {
            statistic += (count - expected).powi(2) / expected;
            bins += 1.0;
        }
    }
    if rest.1 > 0.0 {
        statistic += (rest.0 - rest.1).powi(2) / rest.1;
        bins += 1.0;
    } else if rest.0 > 0.0 {
        return f64::INFINITY;
    }
    let freedom: f64 = bins - 1.0;
    let spread = 2.0 / (9.0 * freedom);
    ((statistic / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

#[test]
fn tokens_are_drawn_with_their_probabilities() {
    let ways = [
        SamplingParams::default(),
        SamplingParams { temperature: 0.6, ..SamplingParams::default() },
        SamplingParams { temperature: 1.5, top_k: 10, ..SamplingParams::default() },
        SamplingParams { top_p: 0.7, ..SamplingParams::default() },
        SamplingParams { min_p: 0.1, ..SamplingParams::default() },
        SamplingParams { top_k: 30, top_p: 0.8, min_p: 0.05, temperature: 1.2, ..SamplingParams::default() },
    ];
    let expected: Vec<(Vec<f64>, f64)> = ways.iter().map(|way| reference(way, &[])).collect();
    let numbered = || ways.iter().enumerate();
    for (backend, (number, sampling)) in
        BACKENDS.into_iter().flat_map(|backend| numbered().map(move |way| (backend, way)))
    {
        let finished = draw(backend, SamplingParams { max_new_tokens: 1, ..sampling.clone() });
        let mut counts = vec![0.0; 97];
        finished.iter().for_each(|response| counts[response.response_tokens[0] as usize] += 1.0);
        for (other, (probabilities, _)) in expected.iter().enumerate() {
            let deviation = deviation(&counts, probabilities);
            if other == number {
                assert!(deviation < 4.0, "{backend:?} {sampling:?}: {deviation} standard deviations");
            } else {
                assert!(
                    deviation > 8.0,
                    "{backend:?} {sampling:?} looks like {:?}: {deviation}",
                    ways[other]
                );
            }
        }
        let surviving = expected[number].1;
        for response in &finished {
            match &response.surviving_mass {
                Some(mass) => {
                    assert!((f64::from(mass[0]) - surviving).abs() < 1e-5, "{sampling:?}: {mass:?}")
                }
                None => assert!((surviving - 1.0).abs() < 1e-12, "{sampling:?}: {surviving}"),
            }
        }
    }
}

#[test]
fn logprobs_are_those_before_truncation() {
    let (model, weights) = small_model();
    let sampling =
        SamplingParams { temperature: 0.8, top_k: 5, max_new_tokens: 1, ..SamplingParams::default() };
    let full = next_logprobs(&model, &weights, &prompt(12, 3), f64::from(sampling.temperature));
    let mut order: Vec<usize> = (0..97).collect();
    order.sort_by(|a, b| full[*b].total_cmp(&full[*a]));
    let drawn = BACKENDS.map(|backend| draw(backend, sampling.clone()));
    for response in drawn.iter().flat_map(|of_backend| of_backend.iter().take(200)) {
        let token = response.response_tokens[0] as usize;
        assert!((f64::from(response.rollout_logprobs[0]) - full[token]).abs() < 1e-5);
        let top: Vec<usize> = response.top_logprobs[0].iter().map(|top| top.token as usize).collect();
        assert_eq!(top, order[..3]);
        for entry in &response.top_logprobs[0] {
            assert!((f64::from(entry.logprob) - full[entry.token as usize]).abs() < 1e-5);
        }
    }
}

/// Before `min_tokens` the tokens that end a response have no mass; log-probs and what is told of the
/// likeliest tokens are those with it.
#[test]
fn what_ends_a_response_is_not_drawn_before_min_tokens() {
    let (model, weights) = small_model();
    let ways = [
        SamplingParams { max_new_tokens: 1, ..SamplingParams::default() },
        SamplingParams {
            max_new_tokens: 1,
            temperature: 1.3,
            top_k: 20,
            top_p: 0.8,
            min_p: 0.05,
            ..SamplingParams::default()
        },
    ];
    for sampling in &ways {
        let full = next_logprobs(&model, &weights, &prompt(12, 3), f64::from(sampling.temperature));
        let mut order: Vec<u32> = (0..97).collect();
        order.sort_by(|a, b| full[*b as usize].total_cmp(&full[*a as usize]));
        let banned = [order[0], order[1], order[5]];
        let (probabilities, surviving) = reference(sampling, &banned);
        for backend in BACKENDS {
            let drawn = draw_without(backend, sampling.clone(), &banned);
            let mut counts = vec![0.0; 97];
            drawn.iter().for_each(|response| counts[response.response_tokens[0] as usize] += 1.0);
            let apart = deviation(&counts, &probabilities);
            assert!(apart < 4.0, "{backend:?} {sampling:?}: {apart} standard deviations");
            assert!(deviation(&counts, &reference(sampling, &[]).0) > 8.0);
            for response in drawn.iter().take(300) {
                let token = response.response_tokens[0] as usize;
                assert!((f64::from(response.rollout_logprobs[0]) - full[token]).abs() < 1e-5);
                let mass = response.surviving_mass.as_ref().unwrap()[0];
                assert!((f64::from(mass) - surviving).abs() < 1e-5, "{mass} {surviving}");
                let top: Vec<u32> = response.top_logprobs[0].iter().map(|top| top.token).collect();
                assert_eq!(top, order[..3]);
            }
            let greedy = draw_without(backend, SamplingParams::greedy(1), &banned);
            let tokens: BTreeSet<u32> = greedy.iter().map(|response| response.response_tokens[0]).collect();
            assert_eq!(tokens, BTreeSet::from([order[2]]));
        }
    }
}

#[test]
fn a_repetition_penalty_holds_for_prompt_and_response() {
    BACKENDS.into_iter().for_each(penalised);
}

fn penalised(backend: Backend) {
    let (model, weights) = small_model();
    let mut engine = engine(&model, &weights, &config_of(backend));
    let penalty = 1e6;
    let sampling = SamplingParams { repetition_penalty: penalty, ..SamplingParams::greedy(60) };
    let prompt = prompt(12, 3);
    let response = run(&mut engine, &[siblings(&[0], prompt.clone(), sampling)]).remove(&0).unwrap();
    // A seen token comes again only when every logit of an unseen one is negative.
    let mut seen: Vec<u32> = prompt;
    for token in response.response_tokens {
        assert!(!seen.contains(&token), "{token} again after {} tokens", seen.len());
        seen.push(token);
    }
    let free = run(&mut engine, &[siblings(&[0], crate::fixture::prompt(12, 3), SamplingParams::greedy(60))]);
    let tokens: BTreeSet<u32> = free[&0].response_tokens.iter().copied().collect();
    assert!(tokens.len() < 60, "without a penalty nothing is repeated, so that this shows nothing");
}

/// A head of zeros makes all tokens equal: what is kept then is decided by the rules for equals alone.
#[test]
fn of_equal_tokens_the_lower_id_comes_first() {
    let (model, weights) = small_model();
    let _ = weights.parameter("lm_head.weight").unwrap().zero_();
    let one = |sampling: SamplingParams| SamplingParams { max_new_tokens: 1, ..sampling };
    // Of 97 tokens the 49th reaches half of the mass.
    let cases = [
        (SamplingParams::greedy(1), 1.0, 1),
        (one(SamplingParams { top_k: 5, ..SamplingParams::default() }), 1.0, 97),
        (one(SamplingParams { top_p: 0.5, ..SamplingParams::default() }), 49.0 / 97.0, 49),
        (
            one(SamplingParams { top_k: 5, min_p: 1.0, top_p: 0.5, ..SamplingParams::default() }),
            49.0 / 97.0,
            49,
        ),
    ];
    for (backend, (sampling, mass, tokens)) in
        BACKENDS.into_iter().flat_map(|backend| cases.iter().map(move |case| (backend, case)))
    {
        let mut engine = engine(&model, &weights, &config_of(backend));
        let ids: Vec<u64> = (0..400).collect();
        let request = Request { top_logprobs: 4, ..siblings(&ids, prompt(7, 0), sampling.clone()) };
        let mut drawn = std::collections::BTreeSet::new();
        for response in run(&mut engine, &[request]).into_values() {
            drawn.insert(response.response_tokens[0]);
            let found = response.surviving_mass.map_or(1.0, |masses| masses[0]);
            assert!((found - mass).abs() < 1e-6, "{backend:?} {sampling:?}: {found}");
            assert!((response.rollout_logprobs[0] + 97f32.ln()).abs() < 1e-6);
            let top: Vec<u32> = response.top_logprobs[0].iter().map(|top| top.token).collect();
            assert_eq!(top, [0, 1, 2, 3], "{backend:?}");
        }
        assert!(drawn.iter().all(|token| token < tokens), "{backend:?} {sampling:?}: {drawn:?}");
        assert!(drawn.len() > *tokens as usize * 9 / 10, "{backend:?} {sampling:?}: {drawn:?}");
    }
}
