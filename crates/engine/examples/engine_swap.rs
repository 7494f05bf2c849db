//! Measures an exchange of weights: `engine_swap MODEL_DIR ENGINE_JSON [COUNT]`.
//!
//! `ENGINE_JSON` is an engine's configuration. Prints one line of JSON: the bytes of the weights, and the
//! medians of the seconds in which they are brought into the engine's form on its device and exchanged.
#![expect(clippy::disallowed_types, reason = "it measures wall time")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use engine::{Engine, EngineConfig, Event, PolicyWeights, Request, SampleRequest};
use model::{LoadOptions, folder};
use types::{PolicyVersion, SamplingParams};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, config, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: engine_swap MODEL_DIR ENGINE_JSON [COUNT]");
    };
    let count: u64 = rest.first().map_or(Ok(3), |count| count.parse()).context("COUNT")?;
    let config: EngineConfig = serde_json::from_str(config).context("ENGINE_JSON")?;
    let loaded = folder::open(Path::new(model), &LoadOptions::default())?;
    let prepared = |version| PolicyWeights::prepare(&loaded.config, &loaded, PolicyVersion(version), &config);
    let mut engine = Engine::new(&loaded.config, prepared(0)?, None, &config)?;
    let (mut preparing, mut exchanging) = (Vec::new(), Vec::new());
    for version in 1..=count {
        let began = Instant::now();
        let weights = prepared(version)?;
        // What is under way on a device ends before the token that is drawn behind it.
        draw(&mut engine, version)?;
        preparing.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        let old = engine.swap_weights(weights)?;
        exchanging.push(began.elapsed().as_secs_f64());
        drop(old);
        draw(&mut engine, count + version)?;
    }
    let bytes = model::Layout::new(&loaded.config).numel() as u64 * config.dtype().size();
    let (prepare_seconds, swap_seconds) = (median(preparing), median(exchanging));
    println!(
        "{}",
        serde_json::json!({"bytes": bytes, "prepare_seconds": prepare_seconds, "swap_seconds": swap_seconds})
    );
    Ok(())
}

/// Draws one token.
fn draw(engine: &mut Engine, id: u64) -> anyhow::Result<()> {
    let sampling = SamplingParams { max_new_tokens: 1, ..SamplingParams::default() };
    let request = Request {
        prompt_tokens: [1, 2, 3].into(),
        samples: vec![SampleRequest { id, seed: id }],
        sampling: Arc::new(sampling.try_into()?),
        eos_token_ids: [].into(),
        min_tokens: 0,
        grammar: None,
        top_logprobs: 0,
        stream: false,
    };
    for outcome in engine.submit(&[request]) {
        outcome?;
    }
    while !engine.step()?.iter().any(|event| matches!(event, Event::Finished(_))) {}
    Ok(())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}
