//! What clients see of tokens: strings, bytes, offsets and stop texts, whole and streamed.

use openai::ServeConfig;
use serde_json::{Value, json};

use crate::fixture::Server;
use crate::script::{bytes, calls, pieces, scripted, spelled};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = " aé🌶b";
/// `<end>` of both tokenizers comes before the bytes.
const END: u32 = 0;

async fn server() -> Server {
    let parent = tempfile::tempdir().unwrap();
    let with =
        |before: &str, text: &str, after: &[u32]| [&spelled(before), &spelled(text)[..], after].concat();
    let scripts = [with("g", TEXT, &[END]), with("n", "", &[END]), with("s", "xy<turn>zw", &[END])];
    let scripts: Vec<&[u32]> = scripts.iter().map(Vec::as_slice).collect();
    let model = scripted(parent.path(), bytes, &scripts, END);
    Server::of(parent, &model, ServeConfig::default()).await
}

fn asked(extra: Value) -> Value {
    let mut body = json!({"model": "policy", "temperature": 0, "max_tokens": 30});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// Everything that the chunks of a stream have under `logprobs.NAME`.
fn streamed(events: &[Value], name: &str) -> Vec<Value> {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    choices.flat_map(|choice| choice["logprobs"][name].as_array().cloned().unwrap_or_default()).collect()
}

#[tokio::test]
async fn each_token_of_a_stream_comes_once_and_offsets_go_on() {
    let server = server().await;
    for prompt in ["g", "n", "s"] {
        let body = json!({"prompt": prompt, "logprobs": 2});
        let whole = server.post(COMPLETIONS, asked(body.clone())).await.json()["choices"][0].clone();
        let mut body = body;
        body["stream"] = json!(true);
        let events = server.post(COMPLETIONS, asked(body)).await.events();
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(json!(streamed(&events, name)), whole["logprobs"][name], "{prompt}: {name}");
        }
    }
    let only_end = asked(json!({"prompt": "n", "logprobs": 0, "stream": true}));
    assert_eq!(streamed(&server.post(COMPLETIONS, only_end).await.events(), "tokens"), [json!("<end>")]);
    let chat = asked(json!({"messages": [{"role": "u", "content": ""}], "logprobs": true, "stream": true}));
    let content = streamed(&server.post(CHAT, chat).await.events(), "content");
    assert_eq!(content.len(), TEXT.len() + 1);
}

#[tokio::test]
async fn strings_and_bytes_of_tokens_are_the_text() {
    let server = server().await;
    let body =
        asked(json!({"messages": [{"role": "x", "content": ""}], "logprobs": true, "top_logprobs": 3}));
    let choice = server.post(CHAT, body).await.json()["choices"][0].clone();
    assert_eq!(choice["message"]["content"], TEXT);
    let content = choice["logprobs"]["content"].as_array().unwrap();
    let (last, tokens) = content.split_last().unwrap();
    assert_eq!(last["token"], "<end>");
    let strings: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    let bytes: Vec<Value> =
        tokens.iter().flat_map(|token| token["bytes"].as_array().unwrap().clone()).collect();
    assert_eq!((strings.as_str(), json!(bytes)), (TEXT, json!(TEXT.as_bytes())));
    let offsets = server.post(COMPLETIONS, asked(json!({"prompt": "g", "logprobs": 0}))).await.json();
    // A space, a letter, two bytes, four bytes, a letter, the end.
    assert_eq!(offsets["choices"][0]["logprobs"]["text_offset"], json!([0, 1, 2, 2, 3, 3, 3, 3, 4, 5]));
}

#[tokio::test]
async fn a_stop_text_may_be_a_special_token() {
    let server = server().await;
    for (stop, text) in [("<turn>", "xy"), ("y<turn>z", "x"), ("zw", "xy"), ("yz", "x")] {
        let body = json!({"prompt": "s", "stop": [stop, "never"]});
        let choice = server.post(COMPLETIONS, asked(body.clone())).await.json()["choices"][0].clone();
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!("stop")), "{stop}");
        let mut body = body;
        body["stream"] = json!(true);
        let events = server.post(COMPLETIONS, asked(body)).await.events();
        let streamed: String =
            events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(streamed, text, "{stop}");
    }
}

#[tokio::test]
async fn the_first_space_is_there_for_every_tokenizer() {
    let parent = tempfile::tempdir().unwrap();
    let (newline, space, word, one, colon, end) = (3 + 10, 259, 260, 261, 262, 2);
    let model = scripted(parent.path(), pieces, &[&[newline, word, one, end]], end);
    let server = Server::of(parent, &model, ServeConfig::default()).await;
    let prompt = json!([space, colon, newline]);
    let whole = server.post(COMPLETIONS, asked(json!({"prompt": prompt, "logprobs": 1}))).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["text"], " return 1");
    assert_eq!(choice["logprobs"]["tokens"], json!([" return", " 1", "<end>"]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 7, 9]));
    let stream = asked(json!({"prompt": prompt, "stream": true}));
    let events = server.post(COMPLETIONS, stream).await.events();
    let text: String = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, " return 1");
}

#[tokio::test]
async fn calls_of_tools_reach_the_template_as_objects_and_no_content_is_no_text() {
    let server = server().await;
    let tokens = async |arguments: Value, content: Value| {
        let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}});
        let messages = json!([
            {"role": "u", "content": "q"}, {"role": "a", "content": content, "tool_calls": [call]}
        ]);
        server.post(CHAT, asked(json!({"messages": messages, "max_tokens": 1}))).await.json()
    };
    let object = tokens(json!({"k": 1}), json!("x")).await["usage"].clone();
    assert_eq!(tokens(json!("{\"k\": 1}"), json!("x")).await["usage"], object);
    let empty = tokens(json!({"k": 1}), json!("")).await["usage"].clone();
    assert_eq!(tokens(json!({"k": 1}), Value::Null).await["usage"], empty);
    assert!(empty["prompt_tokens"].as_u64() < object["prompt_tokens"].as_u64());
    let broken = tokens(json!("{\"k\": "), json!("")).await;
    assert!(broken["error"]["message"].as_str().unwrap().contains("no JSON object"), "{broken}");
}

#[tokio::test]
async fn what_would_change_a_response_is_obeyed_or_refused_by_name() {
    let server = server().await;
    let refused = [
        ("min_tokens", json!(31)),
        ("min_tokens", json!(-1)),
        ("continue_final_message", json!(true)),
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
        ("skip_special_tokens", json!(false)),
        ("include_stop_str_in_output", json!(true)),
        ("bad_words", json!(["a"])),
        ("guided_json", json!({})),
        ("structured_outputs", json!({"json": 3, "regex": "a"})),
        ("prompt_logprobs", json!(1)),
        ("allowed_token_ids", json!([1])),
        ("truncate_prompt_tokens", json!(1)),
        ("add_special_tokens", json!(false)),
        ("use_beam_search", json!(true)),
        ("length_penalty", json!(2.0)),
        ("chat_template_kwargs", json!({"enable_thinking": false})),
        ("temprature", json!(0.5)),
        ("max_tokens", json!(-1)),
        ("stop", json!(7)),
    ];
    for (field, value) in refused {
        let reply = server.post(COMPLETIONS, asked(json!({"prompt": "g", field: value}))).await;
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, &error["param"]), (400, &json!(field)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(field), "{error}");
    }
    let in_chats = [
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"type": "function", "function": {"name": "f"}})),
        ("tools", json!([{"name": "f"}])),
        ("chat_template_kwargs", json!({"messages": []})),
        ("chat_template_kwargs", json!(3)),
        ("response_format", json!({"type": "grammar"})),
        ("add_special_tokens", json!(true)),
    ];
    for (field, value) in in_chats {
        let body = asked(json!({"messages": [{"role": "a", "content": "q"}], field: value}));
        let reply = server.post(CHAT, body).await;
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(field)), "{}", reply.body);
    }
    let both = json!({"continue_final_message": true, "add_generation_prompt": true});
    let mut body = asked(json!({"messages": [{"role": "a", "content": "q"}]}));
    body.as_object_mut().unwrap().extend(both.as_object().unwrap().clone());
    assert_eq!(server.post(CHAT, body).await.json()["error"]["param"], "continue_final_message");
    let harmless = json!({"user": "me", "min_tokens": 0, "tools": null, "echo": false, "anything": null});
    let mut body = asked(json!({"prompt": "g"}));
    body.as_object_mut().unwrap().extend(harmless.as_object().unwrap().clone());
    assert_eq!(server.post(COMPLETIONS, body).await.json()["choices"][0]["text"], TEXT);
}

/// The tokens of a chat's prompt, of a template that ends with `g` where a response begins.
async fn prompt_tokens(server: &Server, extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "u", "content": "q"}], "max_tokens": 1});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let reply = server.post(CHAT, asked(body)).await.json();
    reply["usage"]["prompt_tokens"].clone()
}

#[tokio::test]
async fn a_chat_is_rendered_as_it_is_asked_for() {
    let server = server().await;
    // "uq." and "g".
    assert_eq!(prompt_tokens(&server, json!({})).await, 4);
    assert_eq!(prompt_tokens(&server, json!({"add_generation_prompt": false})).await, 3);
    assert_eq!(prompt_tokens(&server, json!({"continue_final_message": true})).await, 2);
    let thoughts = json!({"chat_template_kwargs": {"enable_thinking": false, "other": [1]}});
    assert_eq!(prompt_tokens(&server, thoughts).await, 4 + "no-thoughts".len());
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    assert_eq!(prompt_tokens(&server, json!({"tools": tools})).await, 4 + "f".len());
    assert_eq!(prompt_tokens(&server, json!({"tools": tools, "tool_choice": "none"})).await, 4);
    // What is continued is the last message: its response is the script's behind "s".
    let continued =
        asked(json!({"messages": [{"role": "a", "content": "s"}], "continue_final_message": true,
        "add_generation_prompt": false, "stop": "w"}));
    assert_eq!(server.post(CHAT, continued).await.json()["choices"][0]["message"]["content"], "xyz");
}

#[tokio::test]
async fn nothing_ends_a_response_before_min_tokens() {
    let server = server().await;
    let text = async |body: Value| {
        let whole = server.post(COMPLETIONS, asked(body.clone())).await.json()["choices"][0].clone();
        let mut body = body;
        body["stream"] = json!(true);
        let events = server.post(COMPLETIONS, asked(body)).await.events();
        let streamed: String =
            events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(whole["text"], streamed);
        (streamed, whole["finish_reason"].as_str().unwrap().to_owned())
    };
    // The script is "xy<turn>zw<end>", tokens one letter each.
    let ended = |text: &str| (text.to_owned(), "stop".to_owned());
    assert_eq!(text(json!({"prompt": "s", "min_tokens": 5})).await, ended("xyzw"));
    let longer = text(json!({"prompt": "s", "min_tokens": 9, "max_tokens": 9})).await;
    assert!(longer.0.starts_with("xyzw") && longer.1 == "length", "{longer:?}");
    for (min_tokens, found) in [(0, "x"), (2, "x"), (3, "xyzw"), (5, "xyzw")] {
        assert_eq!(text(json!({"prompt": "s", "stop": "y", "min_tokens": min_tokens})).await, ended(found));
    }
    assert_eq!(text(json!({"prompt": "s", "stop": ["y", "w"], "min_tokens": 3})).await, ended("xyz"));
    // It ends at the third token and begins before.
    assert_eq!(text(json!({"prompt": "s", "stop": ["y<turn>", "w"], "min_tokens": 3})).await, ended("x"));
    assert_eq!(text(json!({"prompt": "s", "stop": ["y<turn>", "w"], "min_tokens": 4})).await, ended("xyz"));
}

#[tokio::test]
async fn calls_that_the_model_writes_are_told_as_calls() {
    let parent = tempfile::tempdir().unwrap();
    let call = r#"{"name": "f", "arguments": {"b": "é", "a": 1}}"#;
    // Three tokens that a tokenizer of its own has: no token of a script may have two successors.
    let script = [&spelled("g")[..], &[258, 259, 260], &[END]].concat();
    let model = scripted(parent.path(), calls, &[&script], END);
    let server = Server::of(parent, &model, ServeConfig::default()).await;
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let body = json!({"messages": [{"role": "u", "content": "q"}], "tools": tools, "logprobs": true});
    let choice = server.post(CHAT, asked(body.clone())).await.json()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "So.");
    let told = &choice["message"]["tool_calls"][0];
    assert_eq!((&told["type"], &told["function"]["name"]), (&json!("function"), &json!("f")));
    let arguments: Value = serde_json::from_str(told["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, serde_json::from_str::<Value>(call).unwrap()["arguments"]);
    let id = told["id"].as_str().unwrap();
    assert!(id.len() == 9 && id.chars().all(|digit| digit.is_ascii_alphanumeric()), "{id}");
    assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len(), 4);

    let mut stream = body.clone();
    stream["stream"] = json!(true);
    let events = server.post(CHAT, asked(stream)).await.events();
    let last = &events.last().unwrap()["choices"][0];
    assert_eq!(last["finish_reason"], "tool_calls");
    assert_eq!(last["delta"]["content"], "So.");
    assert_eq!(
        (&last["delta"]["tool_calls"][0]["index"], &last["delta"]["tool_calls"][0]["function"]),
        (&json!(0), &told["function"])
    );

    // Without tools it is text, and what comes back as history renders as it was written.
    let mut plain = body.clone();
    plain["tools"] = json!([]);
    let text = server.post(CHAT, asked(plain)).await.json()["choices"][0].clone();
    assert_eq!((&text["finish_reason"], &text["message"]["tool_calls"]), (&json!("stop"), &Value::Null));
    assert!(text["message"]["content"].as_str().unwrap().contains(call), "{text}");
}

#[tokio::test]
async fn a_choice_says_which_weights_drew_it() {
    let server = server().await;
    for (path, body) in [
        (COMPLETIONS, json!({"prompt": ["g", "s"]})),
        (CHAT, json!({"messages": [{"role": "u", "content": ""}], "n": 2})),
    ] {
        let reply = server.post(path, asked(body.clone())).await.json();
        assert_eq!(reply["system_fingerprint"], "weights v0");
        let choices = reply["choices"].as_array().unwrap();
        let tokens: u64 =
            choices.iter().map(|choice| choice["weight_versions"][0]["end"].as_u64().unwrap()).sum();
        assert_eq!(json!(tokens), reply["usage"]["completion_tokens"]);
        let mut stream = body;
        stream["stream"] = json!(true);
        let events = server.post(path, asked(stream)).await.events();
        for choice in choices {
            let of_choice = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
            let told: Vec<&Value> = of_choice
                .filter(|part| part["index"] == choice["index"])
                .filter_map(|part| part.get("weight_versions"))
                .collect();
            assert_eq!(told, [&choice["weight_versions"]]);
        }
    }
}
