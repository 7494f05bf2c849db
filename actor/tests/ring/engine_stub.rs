//! A server that speaks vLLM's and SGLang's protocols, in the shapes of vLLM 0.32 and SGLang 0.5, and fails
//! when it is told to. Its tokens and log-probs are functions of what stands before them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use service::axum::Router;
use service::axum::body::{Body, Bytes};
use service::axum::extract::State;
use service::axum::http::{Method, StatusCode, Uri};
use service::axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub(crate) const VOCABULARY: u32 = 300;

/// What goes wrong with the next answer with tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Status(u16),
    /// No JSON.
    Garbage,
    /// JSON of something else.
    OtherShape,
    /// The connection breaks within the answer.
    Truncated,
    /// A log-prob less than tokens.
    LogprobMissing,
    /// More tokens than were asked for.
    TooMany,
    /// A log-prob above 0.
    AboveZero,
    /// None at all.
    NoToken,
    /// No answer.
    Silent,
}

/// What the server is, and what it was asked.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    pub(crate) faults: VecDeque<Fault>,
    /// Each token takes this long.
    pub(crate) token_time: Duration,
    /// Log-probs are those of temperature 1, whatever is drawn at.
    pub(crate) raw_logprobs: bool,
    /// Weights are refused.
    pub(crate) refuses_weights: bool,
    /// Paths and bodies of all calls but those for health, in order.
    pub(crate) calls: Vec<(String, Value)>,
    /// Responses under way.
    pub(crate) under_way: usize,
    /// The name of the weights in use, and their folder.
    weights: (String, Option<PathBuf>),
    paused: Option<Pause>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    Abort,
    Keep,
}

/// The server; it ends when this is dropped.
pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    inside: Arc<Mutex<Inside>>,
    _task: JoinSet<()>,
}

/// The next token behind a sequence: any but the first hundred, which tests use as endings.
pub(crate) fn next_token(sequence: &[u32]) -> u32 {
    let hash = sequence.iter().fold(17_u32, |hash, token| hash.wrapping_mul(31).wrapping_add(*token));
    100 + hash % (VOCABULARY - 100)
}

/// What a sequence goes on with.
pub(crate) fn continuation(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut sequence = prompt.to_vec();
    for _ in 0..tokens {
        sequence.push(next_token(&sequence));
    }
    sequence.split_off(prompt.len())
}

pub(crate) fn logprob(token: u32, temperature: f64) -> f64 {
    -3.0 - 0.01 * f64::from(token) / temperature
}

impl Stub {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    /// Another process at an address, with weights of its own.
    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let inside = Arc::new(Mutex::new(Inside::default()));
        inside.lock().unwrap().weights.0 = "default".to_owned();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&inside));
        let mut task = JoinSet::new();
        task.spawn(async move { service::axum::serve(listener, router).await.unwrap() });
        Self { address, inside, _task: task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap()
    }

    /// The calls of a path.
    pub(crate) fn calls(&self, path: &str) -> Vec<Value> {
        let inside = self.inside();
        inside
            .calls
            .iter()
            .filter(|(asked, _)| asked.starts_with(path))
            .map(|(_, body)| body.clone())
            .collect()
    }

    /// The folder that was read last.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        self.inside().weights.1.clone()
    }
}

async fn answer(State(inside): State<Arc<Mutex<Inside>>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
    if (method, path.as_str()) == (Method::GET, "/health") {
        return StatusCode::OK.into_response();
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    inside.lock().unwrap().calls.push((path.clone(), body.clone()));
    let done = || service::axum::Json(json!({"status": "ok"})).into_response();
    match path.as_str() {
        "/pause?mode=abort&clear_cache=true" => inside.lock().unwrap().paused = Some(Pause::Abort),
        "/resume" | "/continue_generation" => inside.lock().unwrap().paused = None,
        "/pause_generation" => {
            let keeps = body["mode"] == "in_place";
            inside.lock().unwrap().paused = Some(if keeps { Pause::Keep } else { Pause::Abort });
        }
        "/collective_rpc" => {
            assert_eq!(body["method"], "reload_weights");
            let mut inside = inside.lock().unwrap();
            if inside.refuses_weights {
                return (StatusCode::INTERNAL_SERVER_ERROR, "no room for the weights").into_response();
            }
            inside.weights.1 = Some(body["kwargs"]["weights_path"].as_str().unwrap().into());
        }
        "/update_weights_from_disk" => {
            let mut inside = inside.lock().unwrap();
            if inside.refuses_weights {
                let refusal =
                    json!({"success": false, "message": "no room for the weights", "num_paused_requests": 0});
                return service::axum::Json(refusal).into_response();
            }
            let name = body["weight_version"].as_str().unwrap().to_owned();
            inside.weights = (name, Some(body["model_path"].as_str().unwrap().into()));
            return service::axum::Json(json!({"success": true, "message": "ok", "num_paused_requests": 0}))
                .into_response();
        }
        "/inference/v1/generate" => return drawn(&inside, &body, Shape::Vllm).await,
        "/generate" => return drawn(&inside, &body, Shape::Sglang).await,
        _ => return StatusCode::NOT_FOUND.into_response(),
    }
    done()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Vllm,
    Sglang,
}

/// A response that is under way as long as this lives: also when its connection is closed.
struct UnderWay(Arc<Mutex<Inside>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().unwrap().under_way -= 1;
    }
}

async fn drawn(inside: &Arc<Mutex<Inside>>, body: &Value, shape: Shape) -> Response {
    inside.lock().unwrap().under_way += 1;
    let _under_way = UnderWay(Arc::clone(inside));
    let (prompt, longest) = match shape {
        Shape::Vllm => ("token_ids", "max_tokens"),
        Shape::Sglang => ("input_ids", "max_new_tokens"),
    };
    let sampling = &body["sampling_params"];
    let numbers = |value: &Value| -> Vec<u32> {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|number| u32::try_from(number.as_u64().unwrap()).unwrap())
            .collect()
    };
    let mut sequence = numbers(&body[prompt]);
    let begins = sequence.len();
    let most = usize::try_from(sampling[longest].as_u64().unwrap()).unwrap();
    let endings = numbers(&sampling["stop_token_ids"]);
    let (mut ending, mut names): (&str, Vec<String>) = ("length", Vec::new());
    while sequence.len() < begins + most {
        let (paused, name, time) = {
            let inside = inside.lock().unwrap();
            (inside.paused, inside.weights.0.clone(), inside.token_time)
        };
        match paused {
            // One that comes while the server is paused waits; others end with what they have.
            Some(Pause::Abort) if sequence.len() > begins => {
                ending = "abort";
                break;
            }
            Some(_) => {
                tokio::time::sleep(Duration::from_millis(2)).await;
                continue;
            }
            None => {}
        }
        tokio::time::sleep(time).await;
        let token = next_token(&sequence);
        sequence.push(token);
        names.push(name);
        if endings.contains(&token) {
            ending = "stop";
            break;
        }
    }
    let tokens = sequence.split_off(begins);
    let drawn =
        Drawn { tokens, names, ending, sampling, asked: body, raw: inside.lock().unwrap().raw_logprobs };
    let measuring = body.to_string().contains("-measure-");
    let fault = if measuring { None } else { inside.lock().unwrap().faults.pop_front() };
    match fault {
        Some(Fault::Status(code)) => {
            (StatusCode::from_u16(code).unwrap(), "{\"error\": \"told to\"}").into_response()
        }
        Some(Fault::Garbage) => "<html>Bad Gateway</html>".into_response(),
        Some(Fault::OtherShape) => service::axum::Json(json!({"detail": [1, 2]})).into_response(),
        Some(Fault::Truncated) => truncated(&drawn.json(shape, None).to_string()),
        Some(Fault::Silent) => std::future::pending().await,
        fault => service::axum::Json(drawn.json(shape, fault)).into_response(),
    }
}

/// Half of an answer whose length says that there is more.
fn truncated(whole: &str) -> Response {
    let half = whole.as_bytes()[..whole.len() / 2].to_vec();
    let broken = tokio_stream::iter([Ok(half), Err(std::io::Error::other("the connection breaks"))]);
    let response = Response::builder().header("content-type", "application/json");
    response.header("content-length", whole.len()).body(Body::from_stream(broken)).unwrap()
}

/// What was drawn.
struct Drawn<'a> {
    tokens: Vec<u32>,
    /// The weights that drew each.
    names: Vec<String>,
    ending: &'a str,
    sampling: &'a Value,
    asked: &'a Value,
    raw: bool,
}

impl Drawn<'_> {
    fn json(mut self, shape: Shape, fault: Option<Fault>) -> Value {
        match fault {
            Some(Fault::TooMany) => {
                self.tokens.push(101);
                self.names.push("default".to_owned());
            }
            Some(Fault::NoToken) => {
                self.tokens.clear();
                self.names.clear();
            }
            _ => {}
        }
        let temperature = if self.raw { 1.0 } else { self.sampling["temperature"].as_f64().unwrap() };
        let temperature = if temperature == 0.0 { 1.0 } else { temperature };
        let mut logprobs: Vec<f64> = self.tokens.iter().map(|token| logprob(*token, temperature)).collect();
        match fault {
            Some(Fault::LogprobMissing) => drop(logprobs.pop()),
            Some(Fault::AboveZero) => logprobs[0] = 0.5,
            _ => {}
        }
        let top = (0..20).map(|token| (token * 7, logprob(token * 7, temperature)));
        match shape {
            Shape::Vllm => {
                let wanted = self.sampling["logprobs"].as_u64().unwrap() as usize;
                let top: Vec<Value> = top
                    .take(wanted)
                    .map(|(token, logprob)| json!({"token": format!("token_id:{token}"), "logprob": logprob, "bytes": null}))
                    .collect();
                let content: Vec<Value> = self
                    .tokens
                    .iter()
                    .zip(&logprobs)
                    .map(|(token, logprob)| {
                        json!({"token": format!("token_id:{token}"), "logprob": logprob, "bytes": null, "top_logprobs": top})
                    })
                    .collect();
                json!({
                    "request_id": self.asked["request_id"],
                    "choices": [{
                        "index": 0, "logprobs": {"content": content}, "finish_reason": self.ending,
                        "token_ids": self.tokens, "routed_experts": null,
                    }],
                    "prompt_logprobs": null, "kv_transfer_params": null,
                })
            }
            Shape::Sglang => {
                let wanted = self.asked["top_logprobs_num"].as_u64().unwrap() as usize;
                let top: Vec<Value> =
                    top.take(wanted).map(|(token, logprob)| json!([logprob, token, null])).collect();
                let tops: Vec<Value> = self.tokens.iter().map(|_| json!(top)).collect();
                let pairs: Vec<Value> = self
                    .tokens
                    .iter()
                    .zip(&logprobs)
                    .map(|(token, logprob)| json!([logprob, token, null]))
                    .collect();
                let mut versions: Vec<Value> = Vec::new();
                for (at, name) in self.names.iter().enumerate() {
                    match versions.last_mut() {
                        Some(last) if last["version"] == *name => last["end"] = json!(at + 1),
                        _ => versions.push(json!({"version": name, "start": at, "end": at + 1})),
                    }
                }
                json!({
                    "text": "", "output_ids": self.tokens,
                    "meta_info": {
                        "id": self.asked["rid"], "finish_reason": {"type": self.ending, "length": self.tokens.len()},
                        "prompt_tokens": self.asked["input_ids"].as_array().unwrap().len(),
                        "completion_tokens": self.tokens.len(), "cached_tokens": 0, "e2e_latency": 0.1,
                        "weight_version": self.names.last(), "weight_versions": versions,
                        "input_token_logprobs": [], "output_token_logprobs": pairs,
                        "input_top_logprobs": [], "output_top_logprobs": tops,
                    },
                })
            }
        }
    }
}
