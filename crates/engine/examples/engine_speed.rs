//! Measures the engine: `engine_speed MODEL_DIR REQUESTS.jsonl ENGINE_JSON [REPEATS]`.
//!
//! `ENGINE_JSON` is an engine's configuration, such as `{"max_sequences": 16, "dtype": "bf16"}`. A line of
//! the requests is `{"tokens": [..], "max_new_tokens": N}`; tokens are drawn at temperature 1 and end at
//! their number alone. For each repetition one line of JSON on standard output: new tokens, steps (and how
//! many of them were replayed from CUDA graphs), and seconds from the first submission to the last token,
//! without the loading of the model.
#![expect(clippy::disallowed_types, reason = "it measures wall time")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use engine::{Engine, EngineConfig, PolicyWeights, Request, SampleRequest};
use model::{LoadOptions, folder};
use serde::Deserialize;
use types::{PolicyVersion, SamplingParams};

#[derive(Deserialize)]
struct Line {
    tokens: Vec<u32>,
    max_new_tokens: u32,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, input, config, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: engine_speed MODEL_DIR REQUESTS.jsonl ENGINE_JSON [REPEATS]");
    };
    let repeats: usize = rest.first().map_or(Ok(1), |count| count.parse()).context("REPEATS")?;
    let config: EngineConfig = serde_json::from_str(config).context("ENGINE_JSON")?;
    // Repeats have the same prompts, which are to be computed.
    let config = EngineConfig { prefix_cache: false, ..config };
    let loaded = folder::open(Path::new(model), &LoadOptions::default())?;
    let weights = PolicyWeights::prepare(&loaded.config, &loaded, PolicyVersion(0), &config)?;
    let mut engine = Engine::new(&loaded.config, weights, None, &config)?;
    let text = std::fs::read_to_string(input).context("REQUESTS")?;
    let lines = text.lines().map(serde_json::from_str::<Line>);
    let requests = lines.collect::<Result<Vec<_>, _>>().context("REQUESTS")?;
    for repeat in 0..repeats as u64 {
        let mut submitted = Vec::with_capacity(requests.len());
        for (id, line) in (0..).zip(&requests) {
            let max_new_tokens = line.max_new_tokens;
            let sampling = SamplingParams { max_new_tokens, ignore_eos: true, ..SamplingParams::default() };
            submitted.push(Request {
                prompt_tokens: line.tokens.as_slice().into(),
                samples: vec![SampleRequest { id, seed: repeat << 32 | id }],
                sampling: Arc::new(sampling.try_into()?),
                eos_token_ids: Arc::from([]),
                min_tokens: 0,
                grammar: None,
                top_logprobs: 0,
                stream: false,
            });
        }
        let before = engine.totals();
        let started = Instant::now();
        for outcome in engine.submit(&submitted) {
            outcome?;
        }
        while !engine.is_idle() {
            engine.step()?;
        }
        let (seconds, after) = (started.elapsed().as_secs_f64(), engine.totals());
        println!(
            "{}",
            serde_json::json!({
                "new_tokens": after.response_tokens - before.response_tokens,
                "steps": after.steps - before.steps,
                "replayed_steps": after.replayed_steps - before.replayed_steps,
                "seconds": seconds,
            })
        );
    }
    Ok(())
}
