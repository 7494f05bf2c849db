//! What the cache keeps of those who have ended, and what that must not change.

use std::collections::BTreeMap;

use engine::{Backend, CacheOnSwap, Engine, EngineConfig, Finished, Refusal, Request, Totals};
use model::{ModelConfig, RopeScaling, Weights};
use types::{DType, FinishReason, SamplingParams};

use crate::fixture::{
    BACKENDS, assert_near, assert_same, config_of, drain, engine, model_of, policy, prompt, request, run,
    siblings, small_config, small_model,
};

fn plain(max_new_tokens: u32) -> SamplingParams {
    SamplingParams { max_new_tokens, ..SamplingParams::default() }
}

/// What an episode is to the engine: each turn is a request whose prompt is all that was before, and what was
/// said to it.
struct Episode {
    id: u64,
    sequence: Vec<u32>,
    turns: Vec<Finished>,
}

impl Episode {
    fn new(id: u64, prompt: Vec<u32>) -> Self {
        Self { id, sequence: prompt, turns: Vec::new() }
    }

    fn request(&self, tokens: u32) -> Request {
        request(self.id + 1000 * self.turns.len() as u64, self.sequence.clone(), plain(tokens))
    }

    /// Takes a turn, and an observation of so many tokens.
    fn take(&mut self, turn: Finished, observed: usize) {
        self.sequence.extend(&turn.response_tokens);
        self.sequence.extend(prompt(observed, turn.id ^ 77));
        self.turns.push(turn);
    }
}

/// Plays episodes of turns of these lengths side by side; each turn is observed with as many tokens.
fn play(engine: &mut Engine, episodes: u64, turns: &[(u32, usize)]) -> Vec<Episode> {
    let mut all: Vec<Episode> =
        (0..episodes).map(|id| Episode::new(id, prompt(11 + 3 * id as usize, id))).collect();
    for (tokens, observed) in turns {
        let requests: Vec<Request> = all.iter().map(|episode| episode.request(*tokens)).collect();
        let mut finished = run(engine, &requests);
        for (episode, request) in all.iter_mut().zip(&requests) {
            episode.take(finished.remove(&request.samples[0].id).unwrap(), *observed);
        }
    }
    all
}

fn turns_of(episodes: &[Episode]) -> BTreeMap<u64, Finished> {
    episodes.iter().flat_map(|episode| &episode.turns).map(|turn| (turn.id, turn.clone())).collect()
}

/// Turns whose ends and beginnings lie everywhere in a block: behind it, in front of it, in its middle.
const TURNS: [(u32, usize); 6] = [(5, 1), (16, 16), (12, 5), (1, 4), (17, 30), (9, 3)];

#[test]
fn a_turn_behind_a_kept_prefix_has_the_bits_of_a_whole_prefill() {
    let (model, weights) = small_model();
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for block_tokens in [16, 48] {
            let kept = EngineConfig { dtype: Some(dtype), block_tokens, ..config_of(Backend::Native) };
            let apart = EngineConfig { prefix_cache: false, ..kept.clone() };
            let mut with = engine(&model, &weights, &kept);
            let mut without = engine(&model, &weights, &apart);
            let [found, expected] = [&mut with, &mut without].map(|engine| play(engine, 7, &TURNS));
            assert_eq!(turns_of(&found), turns_of(&expected), "{dtype:?}, blocks of {block_tokens}");
            assert_eq!(without.totals().reused_tokens, 0);
            assert!(with.totals().reused_tokens > 7 * 5 * 20, "{:?}", with.totals());
        }
    }
}

#[test]
fn a_turn_behind_a_kept_prefix_is_near_a_whole_prefill_with_torchs_operators() {
    let (model, weights) = small_model();
    let kept = config_of(Backend::Aten);
    let apart = EngineConfig { prefix_cache: false, ..kept.clone() };
    let mut with = engine(&model, &weights, &kept);
    let found = play(&mut with, 5, &TURNS);
    let expected = play(&mut engine(&model, &weights, &apart), 5, &TURNS);
    for (id, turn) in turns_of(&expected) {
        assert_near(&turns_of(&found)[&id], &turn);
    }
    assert!(with.totals().reused_tokens > 5 * 5 * 20, "{:?}", with.totals());
}

#[test]
fn six_turns_cost_no_more_prefill_than_their_longest_sequence() {
    let (model, weights) = small_model();
    for backend in BACKENDS {
        let mut engine = engine(&model, &weights, &config_of(backend));
        let episodes = play(&mut engine, 4, &TURNS);
        // The observation behind the last turn was asked of nobody.
        let longest: usize = episodes.iter().map(|episode| episode.sequence.len() - TURNS[5].1).sum();
        let Totals { prefill_tokens, computed_tokens, response_tokens, reused_tokens, .. } = engine.totals();
        // Prompts, observations, and the last token of each turn but the last one, which nobody had fed back.
        let prompts: usize = (0..4).map(|id| 11 + 3 * id).sum();
        let observed: usize = TURNS[..5].iter().map(|(_, observed)| observed).sum();
        assert_eq!(prefill_tokens as usize, prompts + 4 * (observed + 5), "{backend:?}");
        assert!(prefill_tokens as f64 <= 1.1 * longest as f64);
        assert_eq!(computed_tokens, prefill_tokens + response_tokens - 4 * 6);
        // Without the cache each turn computes all before it.
        let config = EngineConfig { prefix_cache: false, ..config_of(backend) };
        let mut without = crate::fixture::engine(&model, &weights, &config);
        play(&mut without, 4, &TURNS);
        assert_eq!(without.totals().prefill_tokens, prefill_tokens + reused_tokens);
    }
}

#[test]
fn the_same_tokens_are_computed_once_for_whoever_begins_with_them() {
    let (model, weights) = small_model();
    for backend in BACKENDS {
        let mut engine = engine(&model, &weights, &config_of(backend));
        let first = run(&mut engine, &[siblings(&[0, 1, 2], prompt(50, 0), plain(4))]);
        let before = engine.totals();
        assert_eq!((before.reused_tokens, before.shared_tokens), (0, 98));
        // The same prompt again, as another attempt: whole blocks are there.
        let again = run(&mut engine, &[siblings(&[0, 1, 2], prompt(50, 0), plain(4))]);
        assert_same(backend, &again, &first);
        let after = engine.totals();
        assert_eq!((after.reused_tokens, after.shared_tokens), (48, 2 * 98));
        // One that differs in the second block shares the first one only; one that differs at once nothing.
        let mut other = prompt(50, 0);
        other[20] ^= 1;
        run(&mut engine, &[request(7, other.clone(), plain(4))]);
        assert_eq!(engine.totals().reused_tokens, 48 + 16);
        other[0] ^= 1;
        run(&mut engine, &[request(8, other, plain(4))]);
        assert_eq!(engine.totals().reused_tokens, 48 + 16);
    }
}

#[test]
fn memory_that_is_needed_drops_what_was_used_longest_ago() {
    let (model, weights) = small_model();
    let config = EngineConfig { kv_cache_blocks: Some(12), ..config_of(Backend::Native) };
    let mut engine = engine(&model, &weights, &config);
    // Three blocks each: two whole ones and one that is full in part.
    let ask = |engine: &mut Engine, id: u64| run(engine, &[request(id, prompt(36, id), plain(3))]);
    let first: Vec<_> = (0..4).map(|id| ask(&mut engine, id)).collect();
    assert_eq!((engine.load().free_blocks, engine.load().kept_blocks), (12, 12));
    // 0 is used again: its own end is not among its first tokens, and takes another's place.
    assert_eq!(ask(&mut engine, 0), first[0]);
    assert_eq!(engine.totals().reused_tokens, 32);
    assert_eq!(engine.totals().evicted_blocks, 1);
    ask(&mut engine, 4);
    let evicted = engine.totals().evicted_blocks;
    assert!((2..=4).contains(&evicted), "{evicted}");
    // 0 is still there, 1 is not.
    let before = engine.totals().reused_tokens;
    assert_eq!(ask(&mut engine, 0), first[0]);
    assert_eq!(engine.totals().reused_tokens, before + 32);
    assert_eq!(ask(&mut engine, 1), first[1]);
    assert_eq!(engine.totals().reused_tokens, before + 32);
}

#[test]
fn episodes_that_do_not_fit_together_are_the_same_in_turn() {
    let (model, weights) = small_model();
    let wide = EngineConfig { prefix_cache: false, ..small_config() };
    let expected = turns_of(&play(&mut engine(&model, &weights, &wide), 20, &TURNS));
    let longest = play(&mut engine(&model, &weights, &wide), 20, &TURNS)
        .iter()
        .map(|episode| (episode.sequence.len() - TURNS[5].1).div_ceil(16))
        .max()
        .unwrap();
    // From just enough for one to enough for some; the more there is, the more is found.
    let mut reused = Vec::new();
    for blocks in [longest, longest + 1, 2 * longest, 40, 80, 400] {
        let tight = EngineConfig {
            max_sequences: Some(16),
            kv_cache_blocks: Some(blocks),
            ..config_of(Backend::Native)
        };
        let mut engine = engine(&model, &weights, &tight);
        assert_eq!(turns_of(&play(&mut engine, 20, &TURNS)), expected, "{blocks} blocks");
        let totals = engine.totals();
        assert_eq!(totals.evicted_blocks > 0, blocks < 400, "{blocks} blocks: {totals:?}");
        reused.push(totals.reused_tokens);
    }
    assert!(reused.last() > reused.first(), "{reused:?}");
}

#[test]
fn a_request_that_fills_the_pool_is_served_though_a_block_is_kept_for_it() {
    let (model, weights) = small_model();
    for backend in BACKENDS {
        let config = EngineConfig { kv_cache_blocks: Some(4), ..config_of(backend) };
        let mut engine = engine(&model, &weights, &config);
        let mut episode = Episode::new(0, prompt(20, 0));
        let turn = run(&mut engine, &[episode.request(5)]);
        episode.take(turn.into_values().next().unwrap(), 3);
        // All four blocks: the part that is kept of the second one has no place to be copied to.
        let sequence = [episode.sequence.clone(), prompt(50 - episode.sequence.len(), 9)].concat();
        let asked = request(1, sequence, plain(15));
        let found = run(&mut engine, std::slice::from_ref(&asked));
        let apart = EngineConfig { prefix_cache: false, ..config };
        let expected = run(&mut crate::fixture::engine(&model, &weights, &apart), &[asked]);
        assert_same(backend, &found, &expected);
        assert!(engine.totals().reused_tokens >= 16, "{:?}", engine.totals());
    }
}

/// Plays an episode of which the weights change in front of a turn, behind it, and in its middle.
fn across_a_swap(on_swap: CacheOnSwap) {
    let (model, first) = small_model();
    let (_, second) = model_of(97, 12);
    let config = EngineConfig { on_swap, ..config_of(Backend::Native) };
    let mut engine = engine(&model, &first, &config);
    let mut episode = play(&mut engine, 1, &TURNS[..2]).remove(0);
    engine.swap_weights(policy(&model, &second, &config, 1)).unwrap();
    assert_eq!(engine.load().kept_blocks, 0, "what the old weights computed is found by nobody");
    let reused = engine.totals().reused_tokens;
    // A turn that begins with the new weights is theirs alone.
    let asked = episode.request(20);
    let turn = run(&mut engine, std::slice::from_ref(&asked)).into_values().next().unwrap();
    assert_eq!(engine.totals().reused_tokens, reused);
    assert_eq!(turn, alone(&model, &second, &asked, 1));
    episode.take(turn, 7);
    // One that is under way: what it leaves behind was computed by both, or again by the newer one.
    let asked = episode.request(20);
    engine.submit(std::slice::from_ref(&asked));
    for _ in 0..10 {
        engine.step().unwrap();
    }
    engine.swap_weights(policy(&model, &first, &config, 2)).unwrap();
    let turn = drain(&mut engine).into_values().next().unwrap();
    assert_eq!(turn.spans.len(), 2);
    episode.take(turn, 2);
    let reused = engine.totals().reused_tokens;
    let asked = episode.request(9);
    let turn = run(&mut engine, std::slice::from_ref(&asked)).into_values().next().unwrap();
    assert_eq!(turn, alone(&model, &first, &asked, 2));
    assert_eq!(engine.totals().reused_tokens > reused, on_swap == CacheOnSwap::Recompute);
}

/// What an engine that knows nothing answers.
fn alone(model: &ModelConfig, weights: &Weights, asked: &Request, version: u64) -> Finished {
    let config = EngineConfig { prefix_cache: false, ..config_of(Backend::Native) };
    let mut engine = engine(model, weights, &config);
    engine.swap_weights(policy(model, weights, &config, version)).unwrap();
    run(&mut engine, std::slice::from_ref(asked)).into_values().next().unwrap()
}

#[test]
fn a_swap_between_turns_and_in_one_leaves_nothing_of_the_old_weights() {
    across_a_swap(CacheOnSwap::Keep);
    across_a_swap(CacheOnSwap::Recompute);
}

#[test]
fn other_weights_under_the_same_version_are_other_weights() {
    let (model, first) = small_model();
    let (_, second) = model_of(97, 12);
    let config = config_of(Backend::Native);
    let mut engine = engine(&model, &first, &config);
    let asked = request(0, prompt(60, 0), plain(20));
    engine.submit(std::slice::from_ref(&asked));
    for _ in 0..10 {
        engine.step().unwrap();
    }
    engine.swap_weights(policy(&model, &second, &config, 0)).unwrap();
    drain(&mut engine);
    let again = run(&mut engine, std::slice::from_ref(&asked)).remove(&0).unwrap();
    assert_eq!(again, alone(&model, &second, &asked, 0));
    assert_eq!(engine.totals().reused_tokens, 0);
}

#[test]
fn a_cancelled_turn_leaves_what_it_computed() {
    let (model, weights) = small_model();
    let config = config_of(Backend::Native);
    let mut engine = engine(&model, &weights, &config);
    let asked = request(0, prompt(60, 0), plain(20));
    let expected = alone(&model, &weights, &asked, 0);
    engine.submit(std::slice::from_ref(&asked));
    for _ in 0..10 {
        engine.step().unwrap();
    }
    assert!(engine.cancel(0));
    let found = run(&mut engine, std::slice::from_ref(&asked)).remove(&0).unwrap();
    assert_eq!(found, expected);
    assert_eq!(engine.totals().reused_tokens, 48);
}

#[test]
fn keys_that_depend_on_the_length_of_a_prompt_are_not_reused() {
    let (mut model, weights) = small_model();
    model.max_positions = 64;
    model.rope.scaling = RopeScaling::Dynamic { factor: 4.0 };
    let config = config_of(Backend::Native);
    let apart = EngineConfig { prefix_cache: false, ..config.clone() };
    let mut with = engine(&model, &weights, &config);
    let mut without = engine(&model, &weights, &apart);
    // Sequences that grow from 40 tokens over 64 to 130.
    let turns = [(5, 10), (20, 10), (20, 10), (5, 10)];
    let found = play(&mut with, 3, &turns);
    assert!(found.iter().all(|episode| episode.sequence.len() > 90));
    assert_eq!(turns_of(&found), turns_of(&play(&mut without, 3, &turns)));
    assert!(with.totals().reused_tokens > 0);
}

#[test]
fn numbers_that_are_none_are_not_kept() {
    let (model, weights) = small_model();
    let config = config_of(Backend::Native);
    let mut engine = engine(&model, &weights, &config);
    let embedding = weights.parameters().into_iter().find(|parameter| parameter.name.contains("embed"));
    let _ = embedding.unwrap().tensor.get(5).fill_(f64::NAN);
    engine.swap_weights(policy(&model, &weights, &config, 1)).unwrap();
    let mut poisoned = prompt(40, 0);
    poisoned[20] = 5;
    run(&mut engine, &[request(0, prompt(40, 1), plain(2))]);
    let kept = engine.load().kept_blocks;
    assert!(run(&mut engine, &[request(1, poisoned, plain(4))]).is_empty());
    assert_eq!((engine.totals().failed, engine.load().kept_blocks), (1, kept));
}

#[test]
fn a_stop_token_anywhere_in_a_block_is_gone_on_from() {
    let (model, weights) = small_model();
    let config = config_of(Backend::Native);
    let free = run(&mut engine(&model, &weights, &config), &[request(0, prompt(20, 3), plain(40))]);
    let drawn = &free[&0].response_tokens;
    let mut lengths = Vec::new();
    for (at, token) in drawn.iter().enumerate().filter(|(at, token)| !drawn[..*at].contains(token)) {
        let sampling = SamplingParams { stop_token_ids: vec![*token], ..plain(40) };
        let mut engine = engine(&model, &weights, &config);
        let mut episode = Episode::new(0, prompt(20, 3));
        let turn = run(&mut engine, &[request(0, episode.sequence.clone(), sampling)]).remove(&0).unwrap();
        assert_eq!((turn.finish_reason, turn.response_tokens.len()), (FinishReason::Stop, at + 1));
        let cached = episode.sequence.len() + at;
        lengths.push(cached % 16);
        episode.take(turn, 2);
        let asked = episode.request(5);
        let next = run(&mut engine, std::slice::from_ref(&asked)).into_values().next().unwrap();
        assert_eq!(next, alone(&model, &weights, &asked, 0), "stopped behind {at} tokens");
        assert_eq!(engine.totals().reused_tokens, cached as u64, "stopped behind {at} tokens");
    }
    assert!([0, 1, 15].iter().all(|place| lengths.contains(place)), "{lengths:?}");
}

#[test]
fn an_episode_that_reaches_the_context_ends_there_and_leaves_all_its_blocks() {
    let (model, weights) = small_model();
    let config = EngineConfig { context_tokens: Some(64), ..config_of(Backend::Native) };
    let mut engine = engine(&model, &weights, &config);
    let mut episode = Episode::new(0, prompt(40, 0));
    let turn = run(&mut engine, &[episode.request(10)]).into_values().next().unwrap();
    episode.take(turn, 10);
    let last = run(&mut engine, &[episode.request(30)]).into_values().next().unwrap();
    assert_eq!((last.response_tokens.len(), last.finish_reason), (4, FinishReason::Length));
    assert_eq!(engine.totals().reused_tokens, 49);
    episode.take(last, 0);
    let refused = engine.submit(&[episode.request(1)]);
    assert_eq!(refused, [Err(Refusal::Context { tokens: 64, context: 64 })]);
    let load = engine.load();
    assert_eq!((load.free_blocks, load.running + load.waiting), (load.total_blocks, 0));
}

/// Requests that begin alike, groups of them, cancelled ones and swaps, in a pool that is always too small:
/// whatever was drawn by one version with a cache of its own has the bits that an engine draws that knows
/// nothing.
#[test]
fn whatever_happens_no_bit_depends_on_what_was_kept() {
    let (model, first) = small_model();
    let (_, second) = model_of(97, 12);
    for on_swap in [CacheOnSwap::Keep, CacheOnSwap::Recompute] {
        let config = EngineConfig {
            on_swap,
            kv_cache_blocks: Some(14),
            prefill_chunk_tokens: Some(40),
            max_sequences: Some(5),
            ..config_of(Backend::Native)
        };
        let mut engine = engine(&model, &first, &config);
        // With the version that was in use when each was asked.
        let mut asked: BTreeMap<u64, (u64, Request)> = BTreeMap::new();
        let (mut finished, mut version, mut compared) = (Vec::new(), 0, 0);
        for step in 0..2000u64 {
            let lot = |most: u64, what: u64| crate::fixture::mix(step << 8 | what) % most;
            match lot(10, 0) {
                0 => {
                    // One of three beginnings, cut anywhere, with an end of its own or none.
                    let mut tokens = prompt(1 + lot(90, 1) as usize, lot(3, 2));
                    tokens.extend(prompt(lot(3, 3) as usize * 7, step));
                    let ids: Vec<u64> = (0..=lot(3, 4)).map(|sibling| step * 10 + sibling).collect();
                    let request = siblings(&ids, tokens, plain(1 + lot(40, 5) as u32));
                    assert_eq!(engine.submit(std::slice::from_ref(&request)), [Ok(())]);
                    asked.extend(ids.iter().map(|id| (*id, (version, request.clone()))));
                }
                3 => {
                    let under_way: Vec<u64> = asked.keys().copied().collect();
                    if !under_way.is_empty() {
                        let id = under_way[lot(under_way.len() as u64, 6) as usize];
                        asked.remove(&id);
                        engine.cancel(id);
                    }
                }
                4 if lot(16, 7) == 0 => {
                    version += 1;
                    let weights = if version % 2 == 0 { &first } else { &second };
                    engine.swap_weights(policy(&model, weights, &config, version)).unwrap();
                }
                _ => {}
            }
            for event in engine.step().unwrap() {
                if let engine::Event::Finished(response) = event
                    && let Some((version, request)) = asked.remove(&response.id)
                {
                    finished.push((*response, version, request));
                }
            }
        }
        finished.extend(drain(&mut engine).into_iter().filter_map(|(id, response)| {
            let (version, request) = asked.remove(&id)?;
            Some((response, version, request))
        }));
        assert!(asked.is_empty() && finished.len() > 100, "{} responses", finished.len());
        for (response, asked_under, request) in finished {
            let [span] = &response.spans[..] else { continue };
            // One that had begun before a swap drew with what the old weights had computed; where it had to
            // leave later, its cache does not show that any more.
            if on_swap == CacheOnSwap::Keep && span.version.0 != asked_under {
                continue;
            }
            let weights = if span.version.0 % 2 == 0 { &first } else { &second };
            let samples = request.samples.iter().copied().filter(|sample| sample.id == response.id).collect();
            let expected = alone(&model, weights, &Request { samples, ..request }, span.version.0);
            assert_eq!(response, expected);
            compared += 1;
        }
        let totals = engine.totals();
        println!("{on_swap:?}: {compared} compared, version {version}, {totals:?}");
        assert!(compared > 80 && version > 3, "{compared} compared, version {version}");
        assert!(totals.reused_tokens > 500 && totals.evicted_blocks > 100, "{totals:?}");
        assert!(totals.preemptions > 0 && totals.cancelled > 10, "{totals:?}");
    }
}
