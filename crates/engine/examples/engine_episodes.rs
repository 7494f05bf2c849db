//! What tools that take their time cost the engine: `engine_episodes [PARALLEL] [TURN_TOKENS] [SECONDS]
//! [PAIRS]`.
//!
//! Keeps PARALLEL responses under way over a model of a million random weights, in turn as responses of one
//! turn and as episodes of six, whose tools take 0 to 2 s between two turns and say 24 tokens. Both draw the
//! same number of tokens. Prints the tokens drawn each second of both, of each pair, and their ratio as JSON.
#![expect(clippy::disallowed_types, reason = "it measures wall time")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use engine::{
    EngineClient, EngineConfig, EngineHandle, EngineParts, Event, PolicyWeights, Request, SampleRequest,
};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use model::{Architecture, Dimensions, ModelConfig, Weights};
use tch::{Device, Kind};
use types::{PolicyVersion, Sampling, SamplingParams};

const PROMPT_TOKENS: u64 = 64;
const OBSERVED_TOKENS: u64 = 24;
const VOCABULARY: i64 = 1024;
/// Longest time of a tool.
const TOOL: Duration = Duration::from_secs(2);
/// How long nothing is measured: until episodes stand at different turns.
const WARM_UP: Duration = Duration::from_secs(15);

/// What is kept under way.
#[derive(Debug, Clone, Copy)]
struct Load {
    parallel: u64,
    turns: u64,
    turn_tokens: u32,
}

/// A number that looks random.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 11
}

fn tokens(count: u64, stream: u64) -> impl Iterator<Item = u32> {
    (0..count).map(move |at| (mix(at + 1 + (stream << 20)) % VOCABULARY as u64) as u32)
}

/// The episodes under way, by their engine's id.
#[derive(Debug, Default)]
struct Episodes {
    under_way: HashMap<u64, (u64, Vec<u32>)>,
    begun: u64,
}

impl Episodes {
    fn begin(&mut self) -> u64 {
        self.begun += 1;
        self.under_way.insert(self.begun, (0, tokens(PROMPT_TOKENS, self.begun).collect()));
        self.begun
    }

    fn request(&self, id: u64, sampling: &Arc<Sampling>) -> Request {
        let (turn, sequence) = &self.under_way[&id];
        Request {
            prompt_tokens: sequence.as_slice().into(),
            samples: vec![SampleRequest { id, seed: id * 100 + turn }],
            sampling: Arc::clone(sampling),
            eos_token_ids: Arc::from([]),
            min_tokens: 0,
            grammar: None,
            top_logprobs: 0,
            stream: false,
        }
    }
}

async fn submit(client: &EngineClient, request: Request) -> anyhow::Result<()> {
    for outcome in client.submit(vec![request]).await? {
        outcome?;
    }
    Ok(())
}

/// Tokens drawn each second under a load.
async fn speed(handle: &EngineHandle, load: Load, measured: Duration) -> anyhow::Result<f64> {
    let Load { parallel, turns, turn_tokens } = load;
    let mut client = handle.client().await?;
    let params =
        SamplingParams { max_new_tokens: turn_tokens, ignore_eos: true, ..SamplingParams::default() };
    let sampling = Arc::new(params.try_into()?);
    let mut episodes = Episodes::default();
    let mut tools = FuturesUnordered::new();
    for _ in 0..parallel {
        let id = episodes.begin();
        submit(&client, episodes.request(id, &sampling)).await?;
    }
    let started = Instant::now();
    let mut from = None;
    loop {
        if from.is_none() && started.elapsed() >= WARM_UP {
            from = Some((Instant::now(), handle.totals_so_far().response_tokens));
        }
        if let Some((since, before)) = from.filter(|(since, _)| since.elapsed() >= measured) {
            let drawn = handle.totals_so_far().response_tokens - before;
            return Ok(drawn as f64 / since.elapsed().as_secs_f64());
        }
        tokio::select! {
            event = client.next_event() => {
                let Event::Finished(turn) = event? else { anyhow::bail!("a response failed") };
                let (done, sequence) = episodes.under_way.get_mut(&turn.id).context("an unknown response")?;
                *done += 1;
                if *done == turns {
                    episodes.under_way.remove(&turn.id);
                    let id = episodes.begin();
                    submit(&client, episodes.request(id, &sampling)).await?;
                    continue;
                }
                sequence.extend(&turn.response_tokens);
                let id = turn.id;
                let takes = TOOL.mul_f64((mix(id * 100 + *done) % 1000) as f64 / 1000.0);
                tools.push(async move { tokio::time::sleep(takes).await; id });
            }
            Some(id) = tools.next(), if !tools.is_empty() => {
                let (turn, sequence) = episodes.under_way.get_mut(&id).context("an unknown episode")?;
                sequence.extend(tokens(OBSERVED_TOKENS, id * 100 + *turn));
                submit(&client, episodes.request(id, &sampling)).await?;
            }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<u64> =
        std::env::args().skip(1).map(|argument| argument.parse()).collect::<Result<_, _>>()?;
    let argument = |place: usize, default: u64| arguments.get(place).copied().unwrap_or(default);
    let (parallel, turn_tokens) = (argument(0, 200), u32::try_from(argument(1, 48))?);
    let (measured, pairs) = (Duration::from_secs(argument(2, 25)), argument(3, 3));
    let dimensions = Dimensions {
        vocab_size: VOCABULARY,
        hidden_size: 128,
        intermediate_size: 352,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        max_positions: 1024,
    };
    let model = ModelConfig::new(Architecture::Llama, dimensions)?;
    let weights = Weights::random(&model, 1, Kind::Float, Device::Cpu);
    let config = EngineConfig::default();
    let weights = PolicyWeights::prepare(&model, &weights, PolicyVersion(0), &config)?;
    let handle = EngineHandle::start(EngineParts { model, weights, tokenizer: None, config }).await?;
    let mut ratios = Vec::new();
    for _ in 0..pairs {
        let one_turn = Load { parallel, turns: 1, turn_tokens: 6 * turn_tokens };
        let one_turn = speed(&handle, one_turn, measured).await?;
        let before = handle.totals().await?;
        let episodes = speed(&handle, Load { parallel, turns: 6, turn_tokens }, measured).await?;
        let after = handle.totals().await?;
        let figures = serde_json::json!({
            "one_turn": one_turn,
            "episodes": episodes,
            "ratio": episodes / one_turn,
            "reused_tokens": after.reused_tokens - before.reused_tokens,
            "prefill_tokens": after.prefill_tokens - before.prefill_tokens,
            "evicted_blocks": after.evicted_blocks - before.evicted_blocks,
        });
        println!("{figures}");
        ratios.push(episodes / one_turn);
    }
    ratios.sort_by(f64::total_cmp);
    println!("{}", serde_json::json!({ "median_ratio": ratios[ratios.len() / 2], "parallel": parallel }));
    Ok(())
}
