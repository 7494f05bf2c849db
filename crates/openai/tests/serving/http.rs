//! Requests and replies in OpenAI's shape.

use std::collections::BTreeMap;

use engine::generate::{DrawOptions, Generator};
use openai::ServeConfig;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use types::{PromptContent, SamplingParams};

use crate::fixture::{Server, small_config};

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
        (completion(json!({"model": "gpt"})), 404, "\"model\""),
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
    // The folder's name; "policy" is understood everywhere.
    let listed = server.ask("GET", "/v1/models", "").await.json()["data"].clone();
    assert_eq!(listed.as_array().unwrap().iter().map(|model| &model["id"]).collect::<Vec<_>>(), ["model"]);
    for name in ["model", "policy"] {
        let described = server.ask("GET", &format!("/v1/models/{name}"), "").await.json();
        assert_eq!((&described["id"], &described["object"]), (&json!("model"), &json!("model")));
        let answered = server.post("/v1/completions", completion(json!({"model": name}))).await.json();
        assert_eq!(answered["model"], "model");
    }
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
