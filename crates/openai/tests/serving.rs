//! The HTTP interface, spoken to as any client would: over a socket.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use engine::EngineConfig;
use engine::generate::{DrawOptions, Generator};
use model::tokenizer::train_bpe;
use model::{Architecture, Dimensions, ModelConfig, SaveOptions, SpecialTokens, Weights};
use openai::{ServeConfig, Served};
use serde_json::{Value, json};
use tch::{Device, Kind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use types::{PromptContent, SamplingParams};

/// A configuration for a small model.
fn small_config() -> EngineConfig {
    EngineConfig { threads: 2, max_sequences: 8, kv_cache_blocks: Some(256), ..EngineConfig::default() }
}

/// A folder of a model of a few thousand parameters, with a tokenizer and a chat template.
fn folder(parent: &Path) -> PathBuf {
    let dimensions = Dimensions {
        vocab_size: 300,
        hidden_size: 32,
        intermediate_size: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        max_positions: 256,
    };
    let mut model = ModelConfig::new(Architecture::Llama, dimensions).unwrap();
    model.initializer_range = 0.3;
    model.eos_token_ids = vec![256];
    let weights = Weights::random(&model, 11, Kind::Float, Device::Cpu);
    let path = parent.join("model");
    model::folder::save(&path, &model, &weights, &SaveOptions::default()).unwrap();
    let texts = ["the quick brown fox jumps over the lazy dog; then the other quick brown fox jumps"; 8];
    let special = SpecialTokens { eos: Some("<end>".to_owned()), ..SpecialTokens::default() };
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    train_bpe(texts.iter(), 300, &special).unwrap().save(&path, Some(template)).unwrap();
    path
}

/// A server that lives as long as this.
struct Server {
    address: SocketAddr,
    folder: tempfile::TempDir,
    _task: JoinSet<anyhow::Result<()>>,
}

struct Reply {
    status: u16,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The data of server-sent events; the last has to be `[DONE]`.
    fn events(&self) -> Vec<Value> {
        let mut data: Vec<&str> = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

impl Server {
    async fn start(config: ServeConfig) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let engine = EngineConfig { max_waiting: 2000, ..small_config() };
        let served = Served::load(&folder(parent.path()), engine).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(openai::run(listener, openai::router(served, config), std::future::pending()));
        Self { address, folder: parent, _task: task }
    }

    async fn open(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        stream
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Reply {
        let mut text = Vec::new();
        self.open(method, path, body).await.read_to_end(&mut text).await.unwrap();
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        Reply { status, body: if chunked { unchunk(body) } else { body.to_owned() } }
    }

    async fn post(&self, path: &str, body: Value) -> Reply {
        self.ask("POST", path, &body.to_string()).await
    }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
}

fn completion(extra: Value) -> Value {
    let mut body = json!({"model": "policy", "prompt": "the fox", "max_tokens": 30, "seed": 5});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn completions_are_those_of_the_generator() {
    let server = Server::start(ServeConfig::default()).await;
    let reply = server.post("/v1/completions", completion(json!({"n": 3, "logprobs": 2}))).await.json();
    let mut generator = Generator::load(&server.folder.path().join("model"), &small_config()).unwrap();
    let sampling = SamplingParams { max_new_tokens: 30, ..SamplingParams::default() }.try_into().unwrap();
    let prompts = [PromptContent::Text("the fox".to_owned())];
    let expected = generator
        .responses(&prompts, &DrawOptions { n: 3, seed: 5, sampling }, &mut |_| {})
        .unwrap()
        .remove(0);
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (index, (choice, expected)) in choices.iter().zip(&expected).enumerate() {
        assert_eq!((&choice["index"], &choice["text"]), (&json!(index), &json!(expected.text)));
        assert_eq!(choice["logprobs"]["token_logprobs"], json!(expected.logprobs));
        let top = choice["logprobs"]["top_logprobs"].as_array().unwrap();
        assert!(
            top.len() == expected.tokens.len() && top.iter().all(|top| !top.as_object().unwrap().is_empty())
        );
    }
    let tokens: usize = expected.iter().map(|response| response.tokens.len()).sum();
    let prompt_tokens = expected[0].prompt_tokens.len();
    let usage = json!({
        "prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens,
    });
    assert_eq!((&reply["usage"], &reply["object"]), (&usage, &json!("text_completion")));
    // Several prompts in one request, as texts and as tokens.
    let several = completion(json!({"prompt": ["the fox", "jumps"], "n": 2}));
    assert_eq!(server.post("/v1/completions", several).await.json()["choices"].as_array().unwrap().len(), 4);
    let tokens = completion(json!({"prompt": expected[0].prompt_tokens.to_vec()}));
    assert_eq!(server.post("/v1/completions", tokens).await.json()["choices"][0]["text"], choices[0]["text"]);
}

/// The texts of a stream by choice, and how each ended.
fn put_together(
    events: &[Value],
    text: impl Fn(&Value) -> Option<&str>,
) -> BTreeMap<u64, (String, Option<String>)> {
    let mut whole: BTreeMap<u64, (String, Option<String>)> = BTreeMap::new();
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let entry = whole.entry(choice["index"].as_u64().unwrap()).or_default();
        assert!(entry.1.is_none(), "a piece behind the last");
        entry.0.push_str(text(choice).unwrap_or_default());
        entry.1 = choice["finish_reason"].as_str().map(str::to_owned);
    }
    whole
}

#[tokio::test]
async fn streams_are_whole_replies_in_pieces() {
    let server = Server::start(ServeConfig::default()).await;
    let whole = server.post("/v1/completions", completion(json!({"n": 2}))).await.json();
    let options = json!({"n": 2, "stream": true, "stream_options": {"include_usage": true}});
    let mut events = server.post("/v1/completions", completion(options)).await.events();
    assert!(events.len() > 10, "{} events", events.len());
    assert_eq!(events.pop().unwrap()["usage"], whole["usage"]);
    for (index, (text, finish)) in put_together(&events, |choice| choice["text"].as_str()) {
        let choice = &whole["choices"][index as usize];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!(finish)));
    }

    let messages = json!([{"role": "user", "content": [{"type": "text", "text": "jump"}, {"type": "text", "text": "!"}]}]);
    let chat = |stream: bool| {
        json!({"model": "policy", "messages": messages, "max_tokens": 20, "seed": 1, "n": 2, "stream": stream,
            "logprobs": true, "top_logprobs": 1})
    };
    let whole = server.post("/v1/chat/completions", chat(false)).await.json();
    assert_eq!(whole["choices"][1]["message"]["role"], "assistant");
    let events = server.post("/v1/chat/completions", chat(true)).await.events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    for (index, (text, _)) in put_together(&events, |choice| choice["delta"]["content"].as_str()) {
        let choice = &whole["choices"][index as usize];
        assert_eq!(choice["message"]["content"], json!(text));
        let logprobs: Vec<Value> = events
            .iter()
            .flat_map(|event| event["choices"].as_array().unwrap())
            .filter(|choice| choice["index"] == index)
            .flat_map(|choice| choice["logprobs"]["content"].as_array().cloned().unwrap_or_default())
            .collect();
        assert_eq!(choice["logprobs"]["content"], json!(logprobs));
        assert!(!logprobs.is_empty());
    }
}

#[tokio::test]
async fn stop_texts_are_cut_off_and_never_streamed() {
    let server = Server::start(ServeConfig::default()).await;
    let free = server.post("/v1/completions", completion(json!({}))).await.json();
    let text = free["choices"][0]["text"].as_str().unwrap();
    let ascii: Vec<char> = text.chars().collect();
    let stop: String =
        ascii.windows(3).skip(8).find(|w| w.iter().all(char::is_ascii)).unwrap().iter().collect();
    let expected = &text[..text.find(&stop).unwrap()];
    let stopped = server.post("/v1/completions", completion(json!({"stop": stop}))).await.json();
    assert_eq!(stopped["choices"][0]["text"], expected);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let events =
        server.post("/v1/completions", completion(json!({"stop": [stop], "stream": true}))).await.events();
    let streamed = put_together(&events, |choice| choice["text"].as_str());
    assert_eq!(streamed[&0], (expected.to_owned(), Some("stop".to_owned())));
}

#[tokio::test]
async fn errors_have_openais_shape() {
    let server = Server::start(ServeConfig::default()).await;
    let cases = [
        (completion(json!({"model": "gpt"})), 404, "\"policy\""),
        (completion(json!({"n": 0})), 400, "n = 0"),
        (completion(json!({"temperature": -1})), 400, "temperature"),
        (completion(json!({"echo": true})), 400, "echo is not supported"),
        (completion(json!({"prompt": vec![1; 300]})), 400, "the context is 256"),
        (completion(json!({"prompt": [300]})), 400, "outside the vocabulary"),
        (completion(json!({"prompt": null})), 400, "prompt"),
        (completion(json!({"n": 1000, "prompt": ["a", "b"]})), 400, "1 to 1024"),
    ];
    for (body, status, part) in cases {
        let reply = server.post("/v1/completions", body.clone()).await;
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, error["type"].as_str()), (status, Some("invalid_request_error")), "{body}");
        assert!(error["message"].as_str().unwrap().contains(part), "{body}: {error}");
    }
    let broken = server.ask("POST", "/v1/chat/completions", "{\"messages\": ").await;
    assert!(broken.status == 400 && broken.json()["error"]["message"].as_str().unwrap().contains("not JSON"));
    let nowhere = server.ask("GET", "/v2/models", "").await;
    assert!(nowhere.status == 404 && nowhere.json()["error"]["message"].is_string());
    assert_eq!(server.ask("GET", "/v1/models", "").await.json()["data"][0]["id"], "policy");
    assert_eq!(server.ask("GET", "/v1/models/policy", "").await.json()["object"], "model");
    let unknown = server.ask("GET", "/v1/models/gpt", "").await;
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(server.ask("GET", "/health", "").await.status, 200);
}

#[tokio::test]
async fn too_many_requests_get_a_429_and_a_client_that_leaves_makes_room() {
    let config = ServeConfig { max_concurrent_requests: 1, ..ServeConfig::default() };
    let server = Server::start(config).await;
    let endless = completion(json!({"n": 1000, "max_tokens": 240, "ignore_eos": true, "stream": true}));
    let mut long = server.open("POST", "/v1/completions", &endless.to_string()).await;
    let mut first = [0; 64];
    long.read_exact(&mut first).await.unwrap();
    let refused = server.post("/v1/completions", completion(json!({}))).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    drop(long);
    let timeout = std::time::Duration::from_secs(30);
    let served = tokio::time::timeout(timeout, async {
        while server.post("/v1/completions", completion(json!({}))).await.status != 200 {
            tokio::task::yield_now().await;
        }
    });
    served.await.expect("the place of a client that left is never free again");
    let metrics = server.ask("GET", "/metrics", "").await.body;
    let cancelled =
        metrics.lines().find_map(|line| line.strip_prefix("rlhf_serve_responses_cancelled_total "));
    assert!(cancelled.unwrap().parse::<u64>().unwrap() > 0, "{metrics}");
}
