//! Chat templates render equal to transformers' `apply_chat_template`: 31 templates in the shapes that model
//! repositories use, 18 requests each. The expectations in `chat/cases.json` are made by `chat/make.py`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use model::chat::Error;
use model::{ChatRequest, ChatTemplate};
use serde_json::{Map, Value, json};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat").join(name)
}

fn special() -> BTreeMap<String, String> {
    BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned()), ("eos_token".to_owned(), "</s>".to_owned())])
}

/// Renders a request of `cases.json`: what is not a field of [`ChatRequest`] is a variable.
fn render(template: &ChatTemplate, request: &Value, clock: u64) -> Result<String, Error> {
    let mut variables: Map<String, Value> = request.as_object().unwrap().clone();
    let messages = variables.remove("messages").unwrap();
    let tools = variables.remove("tools");
    let documents = variables.remove("documents");
    let prompt = variables.remove("add_generation_prompt");
    let continued = variables.remove("continue_final_message");
    let list = |value: &'_ Option<Value>| value.as_ref().map(|value| value.as_array().unwrap().clone());
    template.render(&ChatRequest {
        messages: messages.as_array().unwrap(),
        tools: list(&tools).as_deref(),
        documents: list(&documents).as_deref(),
        add_generation_prompt: prompt.is_some_and(|prompt| prompt == true),
        continue_final_message: continued.is_some_and(|continued| continued == true),
        variables: Some(&variables),
        now: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(clock)),
    })
}

#[test]
fn renders_equal_to_transformers() {
    let file: Value = serde_json::from_slice(&fs::read(data("cases.json")).unwrap()).unwrap();
    let cases = file["cases"].as_array().unwrap();
    let special: BTreeMap<String, String> = serde_json::from_value(file["special"].clone()).unwrap();
    let mut different = Vec::new();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let source = fs::read_to_string(data("templates").join(format!("{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(&source, special.clone()).unwrap();
        let request = &file["requests"][case["request"].as_str().unwrap()];
        let found = render(&template, request, file["clock"].as_u64().unwrap());
        let same = match (&found, case["text"].as_str()) {
            (Ok(found), Some(expected)) => found == expected,
            (Err(_), None) => true,
            _ => false,
        };
        if !same {
            different.push(format!("{name}, {}:\n{found:?}\n{:?}", case["request"], case));
        }
    }
    assert_eq!(cases.len(), 31 * 18);
    assert!(different.is_empty(), "{} of {} differ:\n{}", different.len(), cases.len(), different.join("\n"));
}

#[test]
fn a_refusal_carries_the_templates_message() {
    let template = ChatTemplate::new("{{ raise_exception('no ' ~ messages[0].role) }}", special()).unwrap();
    let messages = [json!({ "role": "system", "content": "x" })];
    let error = template.render(&ChatRequest { messages: &messages, ..ChatRequest::default() }).unwrap_err();
    assert!(matches!(&error, Error::Refused { message, .. } if message == "no system"), "{error}");
}

#[test]
fn a_bad_template_is_an_error_with_its_line() {
    let error = ChatTemplate::new("fine\n{% for %}", special()).unwrap_err();
    assert!(error.to_string().contains("default:2"), "{error}");
}

#[test]
fn an_endless_template_stops() {
    let source =
        "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = b %}{% endfor %}{% endfor %}";
    let template = ChatTemplate::new(source, special()).unwrap();
    let error = template.render(&ChatRequest::default()).unwrap_err();
    assert!(error.to_string().contains("fuel"), "{error}");
}

#[test]
fn a_crash_of_the_engine_is_an_error() {
    let template = ChatTemplate::new("{{ ''[::-1] }}", special()).unwrap();
    let rendered = template.render(&ChatRequest::default());
    assert!(rendered.is_err() || rendered.is_ok_and(|text| text.is_empty()));
}

#[test]
fn templates_come_from_each_kind_of_folder() {
    let write = |files: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    };
    let tools = [json!({ "name": "t" })];
    let render = |dir: &tempfile::TempDir, tools| {
        let template = ChatTemplate::load(dir.path(), special()).unwrap().unwrap();
        template.render(&ChatRequest { tools, ..ChatRequest::default() })
    };
    let list =
        r#"{"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}"#;
    let several = write(&[("tokenizer_config.json", list)]);
    assert_eq!(render(&several, None).unwrap(), "d");
    assert_eq!(render(&several, Some(&tools)).unwrap(), "t");
    let plain = write(&[("tokenizer_config.json", r#"{"chat_template": "plain {{ bos_token }}"}"#)]);
    assert_eq!(render(&plain, Some(&tools)).unwrap(), "plain <s>");
    let jinja = write(&[
        ("tokenizer_config.json", r#"{"chat_template": "not this"}"#),
        ("chat_template.jinja", "this\r\n"),
        ("additional_chat_templates/tool_use.jinja", "tools"),
    ]);
    assert_eq!(render(&jinja, None).unwrap(), "this");
    assert_eq!(render(&jinja, Some(&tools)).unwrap(), "tools");
    let nameless = write(&[(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "a", "template": ""}, {"name": "b", "template": ""}]}"#,
    )]);
    assert!(matches!(render(&nameless, None), Err(Error::NoDefault(names)) if names == ["a", "b"]));
    assert!(ChatTemplate::load(write(&[]).path(), special()).unwrap().is_none());
    let wrong = write(&[("tokenizer_config.json", r#"{"chat_template": 3}"#)]);
    assert!(matches!(ChatTemplate::load(wrong.path(), special()), Err(Error::Malformed(_))));
}
