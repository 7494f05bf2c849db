//! Whether the engine stays as fast and as small as it began: `engine_endurance MODEL_DIR [REQUESTS]`.
//!
//! Many short requests with prompts of 8 to 39 tokens and 8 to 39 new tokens, as many at a time as the engine
//! runs or twice that. For each tenth one line of JSON on standard output: tokens per second and resident
//! memory. Then the engine and a fresh one take turns with the same requests, so that what else the machine
//! does meets both: the last line has the median of the ratios.
#![expect(clippy::disallowed_types, reason = "it measures wall time")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use engine::{Engine, EngineConfig, PolicyWeights, Request, SampleRequest};
use model::{LoadOptions, folder};
use procfs::process::Process;
use types::{PolicyVersion, SamplingParams};

/// Turns of each engine, and the requests of each.
const TURNS: usize = 15;
const TURN_REQUESTS: u64 = 1500;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: engine_endurance MODEL_DIR [REQUESTS]");
    };
    let count: u64 = rest.first().map_or(Ok(100_000), |count| count.parse()).context("REQUESTS")?;
    let (mut engine, vocabulary) = engine(Path::new(model))?;
    let tenth = count / 10;
    for number in 0..10 {
        let rate = rate(&mut engine, number * tenth, tenth, vocabulary)?;
        let line = serde_json::json!({
            "requests": (number + 1) * tenth, "tokens_per_second": rate, "resident_kib": resident()?});
        println!("{line}");
    }
    let (mut fresh, _) = self::engine(Path::new(model))?;
    let mut ratios = Vec::with_capacity(TURNS);
    for turn in 0..TURNS {
        let first = count + turn as u64 * TURN_REQUESTS;
        let mut rates = [0.0; 2];
        // Who begins changes, so that a machine that grows slower is no advantage.
        for which in [turn % 2, 1 - turn % 2] {
            let engine = if which == 0 { &mut engine } else { &mut fresh };
            rates[which] = rate(engine, first, TURN_REQUESTS, vocabulary)?;
        }
        ratios.push(rates[0] / rates[1]);
    }
    ratios.sort_by(f64::total_cmp);
    let line = serde_json::json!({
        "worn_against_fresh": ratios[TURNS / 2], "least": ratios[0], "most": ratios[TURNS - 1]});
    println!("{line}");
    Ok(())
}

/// An engine, and the size of its vocabulary.
fn engine(model: &Path) -> anyhow::Result<(Engine, u32)> {
    let config = EngineConfig::default();
    let loaded = folder::open(model, &LoadOptions::default())?;
    let weights = PolicyWeights::prepare(&loaded.config, &loaded, PolicyVersion(0), &config)?;
    Ok((Engine::new(&loaded.config, weights, None, &config)?, u32::try_from(loaded.config.vocab_size)?))
}

/// Tokens per second over `count` requests.
fn rate(engine: &mut Engine, first: u64, count: u64, vocabulary: u32) -> anyhow::Result<f64> {
    let (ahead, end) = (2 * engine.config().max_sequences() as u64, first + count);
    let (mut submitted, mut ended) = (first, first);
    let (tokens, since) = (engine.totals().response_tokens, Instant::now());
    while ended < end {
        let room = (ended + ahead).min(end) - submitted;
        if room > 0 {
            let requests: Vec<Request> =
                (submitted..submitted + room).map(|id| request(id, vocabulary)).collect();
            for outcome in engine.submit(&requests) {
                outcome?;
            }
            submitted += room;
        }
        engine.step()?;
        let load = engine.load();
        ended = submitted - (load.running + load.waiting) as u64;
    }
    let new = engine.totals().response_tokens - tokens;
    Ok(new as f64 / since.elapsed().as_secs_f64())
}

/// Any numbers will do, as long as lengths differ.
fn request(id: u64, vocabulary: u32) -> Request {
    let length = 8 + (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59);
    let prompt_tokens: Vec<u32> = (0..length).map(|at| (id + at) as u32 % vocabulary).collect();
    let sampling = SamplingParams {
        max_new_tokens: 8 + (id.wrapping_mul(0xd134_2543_de82_ef95) >> 59) as u32,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    Request {
        prompt_tokens: prompt_tokens.into(),
        samples: vec![SampleRequest { id, seed: id }],
        sampling: Arc::new(sampling.try_into().expect("these are in range")),
        eos_token_ids: Arc::from([]),
        min_tokens: 0,
        grammar: None,
        top_logprobs: 0,
        stream: false,
    }
}

/// Resident memory of this process in KiB.
fn resident() -> anyhow::Result<u64> {
    let memory = Process::myself().and_then(|process| process.status()).context("read /proc/self/status")?;
    memory.vmrss.context("find VmRSS in /proc/self/status")
}
