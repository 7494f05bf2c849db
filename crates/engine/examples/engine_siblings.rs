//! What the prefill of siblings costs: `engine_siblings MODEL_DIR [PROMPT_TOKENS] [REPEATS]`.
//!
//! Times one request of 1 and one of 8 responses, one new token each, by turns, on different prompts; prints
//! the medians of both in seconds and of their ratio as JSON.
#![expect(clippy::disallowed_types, reason = "it measures wall time")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use engine::{Engine, EngineConfig, PolicyWeights, Request, SampleRequest};
use model::{LoadOptions, folder};
use types::{PolicyVersion, SamplingParams};

const SIBLINGS: u64 = 8;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: engine_siblings MODEL_DIR [PROMPT_TOKENS] [REPEATS]");
    };
    let length: u64 = rest.first().map_or(Ok(512), |count| count.parse()).context("PROMPT_TOKENS")?;
    let repeats: u64 = rest.get(1).map_or(Ok(21), |count| count.parse()).context("REPEATS")?;
    let config = EngineConfig::default();
    let loaded = folder::open(Path::new(model), &LoadOptions::default())?;
    let weights = PolicyWeights::prepare(&loaded.config, &loaded, PolicyVersion(0), &config)?;
    let mut engine = Engine::new(&loaded.config, weights, None, &config)?;
    let vocabulary = u64::try_from(loaded.config.vocab_size)?;

    let mut seconds = |round: u64, count: u64| -> anyhow::Result<f64> {
        // Another prompt each time, so that nothing of an earlier one can be used again.
        let token = |at: u64| ((round * SIBLINGS + count) * 7 + at * (round + 3)) % vocabulary;
        let prompt_tokens = (0..length).map(|at| u32::try_from(token(at))).collect::<Result<Vec<_>, _>>()?;
        let sampling = SamplingParams { max_new_tokens: 1, ignore_eos: true, ..SamplingParams::default() };
        let request = Request {
            prompt_tokens: prompt_tokens.into(),
            samples: (0..count).map(|id| SampleRequest { id, seed: id }).collect(),
            sampling: Arc::new(sampling.try_into()?),
            eos_token_ids: Arc::from([]),
            min_tokens: 0,
            grammar: None,
            top_logprobs: 0,
            stream: false,
        };
        let started = Instant::now();
        for outcome in engine.submit(&[request]) {
            outcome?;
        }
        while !engine.is_idle() {
            engine.step()?;
        }
        Ok(started.elapsed().as_secs_f64())
    };
    let mut rounds = Vec::new();
    for round in 0..=repeats {
        let (one, many) = (seconds(round, 1)?, seconds(round, SIBLINGS)?);
        // The first round fills the caches.
        if round > 0 {
            rounds.push([one, many, many / one]);
        }
    }
    let median = |column: usize| {
        let mut values: Vec<f64> = rounds.iter().map(|round| round[column]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "{}",
        serde_json::json!({"one": median(0), "eight": median(1), "ratio": median(2), "prompt_tokens": length})
    );
    Ok(())
}
