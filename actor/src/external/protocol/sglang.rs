//! SGLang: its native `/generate` with token ids, and the pages for weights.

use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::{Answer, Call, Draw, DrawnBy, Ending, Pause, parse, post};

#[derive(Deserialize)]
struct Response {
    meta_info: Meta,
}

#[derive(Deserialize)]
struct Meta {
    finish_reason: Option<Finish>,
    completion_tokens: Option<usize>,
    #[serde(default)]
    output_token_logprobs: Vec<Drawn>,
    #[serde(default)]
    output_top_logprobs: Vec<Option<Vec<Drawn>>>,
    weight_versions: Option<Vec<DrawnBy>>,
    weight_version: Option<String>,
}

#[derive(Deserialize)]
struct Finish {
    r#type: String,
}

/// Log-prob, token, and its text, which is nobody's business here.
#[derive(Deserialize)]
struct Drawn(f32, u32, #[serde(default)] IgnoredAny);

#[derive(Deserialize)]
struct Loaded {
    success: bool,
    #[serde(default)]
    message: String,
}

pub(super) fn draw(draw: &Draw<'_>) -> Call {
    let body = json!({
        "rid": draw.name,
        "input_ids": draw.tokens,
        "stream": false,
        "return_logprob": true,
        // Of no token of the prompt.
        "logprob_start_len": -1,
        "top_logprobs_num": draw.alternatives,
        "sampling_params": {
            "n": 1,
            "temperature": draw.sampling.temperature(),
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            // 32 bits, for deterministic servers alone: they give siblings the same without.
            "sampling_seed": draw.seed >> 33,
            "max_new_tokens": draw.max_tokens,
            // It would switch stop_token_ids off, too.
            "ignore_eos": draw.sampling.ignores_eos(),
            "stop_token_ids": draw.endings,
            "stop": draw.sampling.stop(),
            "no_stop_trim": true,
            "skip_special_tokens": false,
        },
    });
    post("/generate", &body)
}

pub(super) fn answer(body: &[u8]) -> Result<Answer, String> {
    let Response { meta_info: meta } = parse(body)?;
    let finish = meta.finish_reason.map(|finish| finish.r#type);
    let ending = match finish.as_deref() {
        Some("stop") => Ending::Stop,
        Some("length") => Ending::Length,
        Some("abort") => Ending::Aborted,
        other => return Err(format!("finish_reason is {other:?}, must be stop, length or abort")),
    };
    let tokens: Vec<u32> = meta.output_token_logprobs.iter().map(|drawn| drawn.1).collect();
    if let Some(stated) = meta.completion_tokens.filter(|stated| *stated != tokens.len()) {
        return Err(format!("completion_tokens is {stated}, but {} tokens have log-probs", tokens.len()));
    }
    let first = meta.output_top_logprobs.into_iter().next().flatten().unwrap_or_default();
    Ok(Answer {
        logprobs: meta.output_token_logprobs.iter().map(|drawn| drawn.0).collect(),
        first_alternatives: first.iter().map(|drawn| (drawn.1, drawn.0)).collect(),
        ending,
        weights: meta.weight_versions,
        last_weights: meta.weight_version,
        tokens,
    })
}

pub(super) fn pause(pause: Pause) -> Call {
    let mode = match pause {
        Pause::Abort => "abort",
        Pause::Keep => "in_place",
    };
    post("/pause_generation", &json!({"mode": mode}))
}

pub(super) fn load(folder: &Path, version: &str, pause: Pause) -> Call {
    let body = json!({
        "model_path": folder,
        "weight_version": version,
        "flush_cache": pause == Pause::Abort,
        "abort_all_requests": false,
    });
    post("/update_weights_from_disk", &body)
}

pub(super) fn loaded(body: &[u8]) -> Result<(), String> {
    let Loaded { success, message } = parse(body)?;
    if success { Ok(()) } else { Err(format!("the server did not take the weights up: {message}")) }
}

pub(super) fn resume() -> Call {
    post("/continue_generation", &json!({}))
}
