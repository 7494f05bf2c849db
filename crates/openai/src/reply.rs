//! Responses in the shape of OpenAI's interface, whole or in chunks.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{self, Stream};
use model::chat::ToolCall;
use serde_json::{Map, Value, json};
use types::{FinishReason, Span};

use crate::answer::{Ending, Piece, Running, Usage};
use crate::choice::{Spelled, TokenText};
use crate::error::ApiError;
use crate::kind::Kind;

/// What all parts of a reply have in common.
#[derive(Debug)]
pub(crate) struct Head {
    kind: Kind,
    id: String,
    model: String,
    created: u64,
}

impl Head {
    pub(crate) fn new(kind: Kind, model: &str, created: u64) -> Self {
        use std::hash::{BuildHasher, RandomState};
        let prefix = match kind {
            Kind::Completion => "cmpl",
            Kind::Chat => "chatcmpl",
        };
        let id = format!("{prefix}-{:016x}", RandomState::new().hash_one(created));
        Self { kind, id, model: model.to_owned(), created }
    }

    fn object(&self, chunk: bool, choices: Value, usage: Option<Usage>) -> Value {
        let object = match (self.kind, chunk) {
            (Kind::Completion, _) => "text_completion",
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
        };
        let mut reply = json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(Usage { prompt_tokens, response_tokens }) = usage {
            reply["usage"] = json!({
                "prompt_tokens": prompt_tokens,
                "completion_tokens": response_tokens,
                "total_tokens": prompt_tokens + response_tokens,
            });
        }
        reply
    }

    /// A choice of a whole reply, or of a chunk.
    fn choice(&self, chunk: bool, piece: &Piece) -> Value {
        let Piece { choice, text, tokens, calls, end } = piece;
        let finish = end.as_ref().map(|end| match end.reason {
            FinishReason::Stop if !calls.is_empty() => "tool_calls",
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        });
        let mut reply = match self.kind {
            Kind::Completion => {
                let logprobs = tokens.as_deref().map(completion_logprobs);
                json!({"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish})
            }
            Kind::Chat => {
                let logprobs = tokens.as_deref().map(chat_logprobs);
                let mut message = match chunk {
                    true if text.is_empty() => json!({}),
                    true => json!({"content": text}),
                    false if text.is_empty() && !calls.is_empty() => {
                        json!({"role": "assistant", "content": null})
                    }
                    false => json!({"role": "assistant", "content": text}),
                };
                if !calls.is_empty() {
                    message["tool_calls"] = self.tool_calls(chunk, *choice, calls);
                }
                let name = if chunk { "delta" } else { "message" };
                json!({"index": choice, name: message, "logprobs": logprobs, "finish_reason": finish})
            }
        };
        if let Some(Ending { spans, .. }) = end {
            reply["weight_versions"] = weight_versions(spans);
        }
        reply
    }

    /// Calls of tools; those of a chunk are numbered.
    fn tool_calls(&self, chunk: bool, choice: usize, calls: &[ToolCall]) -> Value {
        let calls = calls.iter().enumerate().map(|(number, call)| {
            let arguments = Value::Object(call.arguments.clone()).to_string();
            let id = call.id.clone().unwrap_or_else(|| self.call_id(choice, number));
            let mut reply =
                json!({"id": id, "type": "function", "function": {"name": call.name, "arguments": arguments}});
            if chunk {
                reply["index"] = json!(number);
            }
            reply
        });
        calls.collect()
    }

    /// Nine letters and digits, as Mistral's chat templates want the ids of calls in a history.
    fn call_id(&self, choice: usize, number: usize) -> String {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        (&self.id, choice, number).hash(&mut hasher);
        let mut rest = hasher.finish();
        let digit = |value: u64| char::from_digit((value % 36) as u32, 36).unwrap_or('0');
        let digits = (0..9).map(|_| {
            let last = digit(rest);
            rest /= 36;
            last
        });
        digits.collect()
    }
}

/// Which version of the weights drew which tokens of a response, as vLLM says it: of tokens `start` to `end`,
/// the last of them not included.
fn weight_versions(spans: &[Span]) -> Value {
    let mut start = 0;
    let mut versions = Vec::with_capacity(spans.len());
    for span in spans {
        let end = start + span.tokens.get();
        versions.push(json!({"version": span.version.0, "start": start, "end": end}));
        start = end;
    }
    Value::Array(versions)
}

/// The whole reply, once all responses have ended.
pub(crate) async fn whole(head: &Head, mut running: Running) -> Result<Value, ApiError> {
    let mut choices = vec![Value::Null; running.choices()];
    let mut versions = Vec::new();
    while let Some(piece) = running.next().await? {
        let spans = piece.end.iter().flat_map(|end| &end.spans);
        versions.extend(spans.map(|span| span.version));
        choices[piece.choice] = head.choice(false, &piece);
    }
    let mut reply = head.object(false, Value::Array(choices), Some(running.usage));
    versions.sort_unstable();
    versions.dedup();
    let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
    reply["system_fingerprint"] = json!(format!("weights {}", versions.join(", ")));
    Ok(reply)
}

/// Where a stream is.
enum Stage {
    /// In a chat, each response begins with a chunk that says whose it is.
    Roles(usize),
    Pieces,
    Usage,
    Done,
    Over,
}

/// The reply as server-sent events.
pub(crate) fn stream(
    head: Head,
    running: Running,
    include_usage: bool,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let first = if head.kind == Kind::Chat { Stage::Roles(0) } else { Stage::Pieces };
    let events = stream::unfold((head, running, first), move |(head, mut running, stage)| async move {
        let (data, stage) = next_data(&head, &mut running, stage, include_usage).await?;
        Some((Ok(Event::default().data(data)), (head, running, stage)))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn next_data(
    head: &Head,
    running: &mut Running,
    stage: Stage,
    include_usage: bool,
) -> Option<(String, Stage)> {
    let mut stage = stage;
    loop {
        match stage {
            Stage::Roles(choice) if choice < running.choices() => {
                let delta = json!({"role": "assistant", "content": ""});
                let choices =
                    json!([{"index": choice, "delta": delta, "logprobs": null, "finish_reason": null}]);
                return Some((head.object(true, choices, None).to_string(), Stage::Roles(choice + 1)));
            }
            Stage::Roles(_) => stage = Stage::Pieces,
            Stage::Pieces => match running.next().await {
                Ok(Some(piece)) => {
                    let choices = json!([head.choice(true, &piece)]);
                    return Some((head.object(true, choices, None).to_string(), Stage::Pieces));
                }
                Ok(None) => stage = if include_usage { Stage::Usage } else { Stage::Done },
                Err(error) => return Some((error.body().to_string(), Stage::Over)),
            },
            Stage::Usage => {
                let usage = head.object(true, json!([]), Some(running.usage));
                return Some((usage.to_string(), Stage::Done));
            }
            Stage::Done => return Some(("[DONE]".to_owned(), Stage::Over)),
            Stage::Over => return None,
        }
    }
}

fn completion_logprobs(tokens: &[TokenText]) -> Value {
    json!({
        "tokens": tokens.iter().map(|token| token.spelled.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.spelled.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top_logprobs).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
    })
}

/// The likeliest tokens at the place of one, with their log-probs; of several with one text the likeliest.
fn top_logprobs(token: &TokenText) -> Map<String, Value> {
    let mut likeliest = Map::new();
    for Spelled { text, logprob, .. } in &token.top {
        likeliest.entry(text.clone()).or_insert_with(|| json!(logprob));
    }
    likeliest
}

fn chat_logprobs(tokens: &[TokenText]) -> Value {
    let mut content = Vec::with_capacity(tokens.len());
    for token in tokens {
        let mut entry = chat_logprob(&token.spelled);
        entry["top_logprobs"] = token.top.iter().map(chat_logprob).collect();
        content.push(entry);
    }
    json!({"content": content})
}

fn chat_logprob(token: &Spelled) -> Value {
    json!({"token": token.text, "logprob": token.logprob, "bytes": token.bytes})
}
