//! Responses that have to look like something.

use openai::ServeConfig;
use serde_json::{Value, json};

use crate::fixture::Server;
use crate::script::{Maker, bytes, pieces, scripted};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// A model to which all tokens are alike, with a tokenizer whose text of the end is the token `end`.
async fn server(tokenizer: Maker, end: u32) -> Server {
    let parent = tempfile::tempdir().unwrap();
    let model = scripted(parent.path(), tokenizer, &[], end);
    Server::of(parent, &model, ServeConfig::default()).await
}

fn chat(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "fox?"}], "max_tokens": 200, "seed": 3});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn verdict() -> Value {
    json!({
        "type": "object",
        "properties": {"fox": {"type": "boolean"}, "legs": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["fox", "legs"],
        "additionalProperties": false,
    })
}

#[tokio::test]
async fn a_chat_answers_in_json_of_the_schema_streamed_or_not() {
    let server = server(bytes, 0).await;
    let format = json!({"type": "json_schema", "json_schema": {"name": "verdict", "schema": verdict()}});
    let mut said = Vec::new();
    for seed in 0..6 {
        let reply = server.post(CHAT, chat(json!({"response_format": format, "seed": seed}))).await.json();
        let choice = &reply["choices"][0];
        assert_eq!(choice["finish_reason"], "stop", "{reply}");
        let text = choice["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {reply}"));
        assert!(value["fox"].is_boolean() && value["legs"].as_u64().unwrap() <= 9, "{text}");
        said.push(text.to_owned());
        let asked = json!({"response_format": format, "seed": seed, "stream": true});
        let events = server.post(CHAT, chat(asked)).await.events();
        let pieces = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        assert_eq!(pieces.collect::<String>(), text);
    }
    said.sort_unstable();
    said.dedup();
    assert!(said.len() > 1, "{said:?}");
}

/// With tokens that are bytes, and with those of Llama 2.
#[tokio::test]
async fn the_other_ways_to_say_it_are_followed() {
    for (tokenizer, end) in [(bytes as Maker, 0), (pieces, 2)] {
        let server = server(tokenizer, end).await;
        let text = async |structured: Value| {
            let body = json!({"prompt": "q", "max_tokens": 200, "seed": 5, "structured_outputs": structured});
            let reply = server.post(COMPLETIONS, body).await.json();
            assert_eq!(reply["choices"][0]["finish_reason"], "stop", "{reply}");
            reply["choices"][0]["text"].as_str().unwrap().to_owned()
        };
        let chosen = text(json!({"choice": ["lazy dog", "fox", "é 1"]})).await;
        assert!(["lazy dog", "fox", "é 1"].contains(&chosen.as_str()), "{chosen}");
        let number = text(json!({"regex": "-?[1-9][0-9]{0,3}"})).await;
        assert!(number.parse::<i32>().is_ok_and(|number| number != 0), "{number}");
        let sum = text(json!({"grammar": "start: NUMBER \"+\" NUMBER\nNUMBER: /[0-9]{1,2}/"})).await;
        assert!(sum.split('+').all(|part| part.parse::<u8>().is_ok_and(|part| part < 100)), "{sum}");
        let verdict: Value = serde_json::from_str(&text(json!({"json": verdict()})).await).unwrap();
        assert!(verdict["fox"].is_boolean());
    }
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_by_name() {
    let server = server(bytes, 0).await;
    let refused = async |field: &str, more: Value| {
        let reply = server.post(CHAT, chat(more)).await;
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, &error["param"]), (400, &json!(field)), "{error}");
        error["message"].as_str().unwrap().to_owned()
    };
    refused("response_format", json!({"response_format": {"type": "xml"}})).await;
    refused("structured_outputs", json!({"structured_outputs": {"structural_tag": "x"}})).await;
    let said = refused("structured_outputs", json!({"structured_outputs": {"regex": "("}})).await;
    assert!(said.contains("not usable"), "{said}");
    let schema = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 3}}});
    refused("structured_outputs", json!({"response_format": schema})).await;
    let both = json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}});
    refused("structured_outputs", both).await;
    let least = json!({"response_format": {"type": "json_object"}, "min_tokens": 5});
    let reply = server.post(CHAT, chat(least)).await;
    assert!(reply.status == 400 && reply.body.contains("min_tokens"), "{}", reply.body);
}
