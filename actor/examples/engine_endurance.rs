//! Whether the engine stays as fast and as small as it began: `engine_endurance MODEL_DIR [REQUESTS]`.
//!
//! Many short requests with prompts of 8 to 39 tokens and 8 to 39 new tokens, as many at a time as the engine runs or
//! twice that. For each tenth one line of JSON on standard output: tokens per second and resident memory.
#![expect(clippy::disallowed_types, reason = "it measures wall time")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use actor::engine::{Engine, EngineConfig, PolicyWeights, Request, SampleRequest};
use anyhow::Context as _;
use model::{LoadOptions, folder};
use types::{PolicyVersion, Sampling};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: engine_endurance MODEL_DIR [REQUESTS]");
    };
    let count: u64 = rest.first().map_or(Ok(100_000), |count| count.parse()).context("REQUESTS")?;
    let config = EngineConfig::default();
    let loaded = folder::open(Path::new(model), &LoadOptions::default())?;
    let weights = PolicyWeights::prepare(&loaded.config, &loaded, PolicyVersion(0), &config)?;
    let mut engine = Engine::new(&loaded.config, weights, None, &config)?;
    let vocabulary = u32::try_from(loaded.config.vocab_size)?;
    drop(loaded);

    let request = |id: u64| {
        // Any numbers will do, as long as lengths differ.
        let length = 8 + (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59);
        let prompt_tokens: Vec<u32> = (0..length).map(|at| (id + at) as u32 % vocabulary).collect();
        Request {
            prompt_tokens: prompt_tokens.into(),
            samples: vec![SampleRequest { id, seed: id }],
            sampling: Arc::new(Sampling {
                max_new_tokens: 8 + (id.wrapping_mul(0xd134_2543_de82_ef95) >> 59) as u32,
                ignore_eos: true,
                ..Sampling::default()
            }),
            eos_token_ids: Arc::from([]),
            top_logprobs: 0,
            stream: false,
        }
    };
    let ahead = 2 * config.max_sequences as u64;
    let (mut submitted, mut ended) = (0, 0);
    let (mut tokens, mut since, mut tenths) = (0, Instant::now(), 0);
    while ended < count {
        let room = (ended + ahead).min(count) - submitted;
        if room > 0 {
            let requests: Vec<Request> = (submitted..submitted + room).map(request).collect();
            for outcome in engine.submit(&requests) {
                outcome?;
            }
            submitted += room;
        }
        engine.step()?;
        let load = engine.load();
        ended = submitted - (load.running + load.waiting) as u64;
        if ended * 10 / count > tenths {
            tenths = ended * 10 / count;
            let new = engine.totals().response_tokens - tokens;
            let rate = new as f64 / since.elapsed().as_secs_f64();
            println!(
                "{}",
                serde_json::json!({"requests": ended, "tokens_per_second": rate, "resident_kib": resident()?})
            );
            (tokens, since) = (tokens + new, Instant::now());
        }
    }
    Ok(())
}

/// Resident memory of this process in KiB.
fn resident() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("find VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
