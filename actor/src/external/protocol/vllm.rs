//! vLLM: tokens in and out at `/inference/v1/generate` (`--tokens-only` or `--enable-scale-out`), control of
//! the server at the pages that `VLLM_SERVER_DEV_MODE=1` opens.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::{Answer, Call, Draw, Ending, Pause, parse, post};

#[derive(Deserialize)]
struct Response {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    token_ids: Option<Vec<u32>>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Logprobs {
    content: Option<Vec<Position>>,
}

#[derive(Deserialize)]
struct Position {
    logprob: f32,
    #[serde(default)]
    top_logprobs: Vec<Alternative>,
}

#[derive(Deserialize)]
struct Alternative {
    token: String,
    logprob: f32,
}

pub(super) fn draw(draw: &Draw<'_>) -> Call {
    // What is not said is taken from the model's generation_config.json.
    let body = json!({
        "request_id": draw.name,
        "token_ids": draw.tokens,
        "stream": false,
        "sampling_params": {
            "n": 1,
            "temperature": draw.sampling.temperature(),
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            // A signed 64-bit number.
            "seed": draw.seed >> 1,
            "max_tokens": draw.max_tokens,
            "min_tokens": 0,
            // The endings are ours alone.
            "ignore_eos": true,
            "stop_token_ids": draw.endings,
            "logprobs": draw.alternatives.max(1),
            "detokenize": false,
        },
    });
    post("/inference/v1/generate", &body)
}

pub(super) fn answer(body: &[u8]) -> Result<Answer, String> {
    let response: Response = parse(body)?;
    let [choice] = <[Choice; 1]>::try_from(response.choices)
        .map_err(|choices| format!("the answer has {} choices, one was asked for", choices.len()))?;
    let ending = match choice.finish_reason.as_deref() {
        Some("stop") => Ending::Stop,
        Some("length") => Ending::Length,
        Some("abort") => Ending::Aborted,
        other => return Err(format!("finish_reason is {other:?}, must be stop, length or abort")),
    };
    let tokens = choice.token_ids.unwrap_or_default();
    let positions = choice.logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
    let alternatives = positions.first().map(|first| first.top_logprobs.as_slice()).unwrap_or_default();
    let first_alternatives = alternatives.iter().filter_map(named).collect();
    let logprobs = positions.iter().map(|position| position.logprob).collect();
    // Who drew what it does not say after reload_weights.
    Ok(Answer { tokens, logprobs, first_alternatives, ending, weights: None, last_weights: None })
}

/// An alternative that is named by its id, as `--tokens-only` servers do.
fn named(alternative: &Alternative) -> Option<(u32, f32)> {
    let id = alternative.token.strip_prefix("token_id:")?.parse().ok()?;
    Some((id, alternative.logprob))
}

pub(super) fn pause(pause: Pause) -> Call {
    let query = match pause {
        Pause::Abort => "mode=abort&clear_cache=true",
        Pause::Keep => "mode=keep&clear_cache=false",
    };
    post(&format!("/pause?{query}"), &json!({}))
}

pub(super) fn load(folder: &Path) -> Call {
    let body = json!({"method": "reload_weights", "kwargs": {"weights_path": folder}});
    post("/collective_rpc", &body)
}

pub(super) fn resume() -> Call {
    post("/resume", &json!({}))
}
