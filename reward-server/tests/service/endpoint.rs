//! `/get_reward`: the scorers for other programs.

use reward_server::Config;
use reward_server::config::{EndpointConfig, ExactMatch, Rule, ScorerConfig, ScorerKind};
use serde_json::{Value, json};

use crate::stub::Stub;
use crate::tiny;
use crate::unit_tests::{tests, with_sandbox};
use crate::world::{Server, networks, scorer, until};

fn endpoint() -> EndpointConfig {
    EndpointConfig { enabled: true, max_texts: 4, ..EndpointConfig::default() }
}

fn exact_match() -> Vec<ScorerConfig> {
    scorer(ScorerKind::ExactMatch(ExactMatch::default()))
}

/// Posts a body; status and answer.
async fn post(address: &str, body: String) -> (u16, Value) {
    let url = format!("http://{address}/get_reward");
    let posted = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut response = agent.post(&url).send(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    });
    let (status, text) = posted.await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_scored_without_a_coordinator() {
    let config = Config {
        endpoint: endpoint(),
        tokenizer: Some(tiny::folder("policy")),
        scorers: exact_match(),
        ..Config::default()
    };
    let server = Server::start(config).await.unwrap();
    assert!(server.readiness.get());
    let address = server.bound("rewards").unwrap();
    let body = json!({
        "query": ["2+2=4", "2+2=5", "x42"],
        "prompts": ["2+2=", "2+2=", "x"],
        "labels": ["4", {"label": "4"}, "{\"label\": 42}"]
    });
    let numbers = [1.0, 0.0, 1.0];
    let answer = json!({ "rewards": numbers, "scores": numbers, "extra_logs": { "exact-match": numbers } });
    assert_eq!(post(&address, body.to_string()).await, (200, answer));
    let one = json!({ "query": "yes", "labels": "yes" });
    assert_eq!(post(&address, one.to_string()).await.1["rewards"], json!([1.0]), "without prompts");
    server.token.cancel();
    server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reward_model_scores_the_texts_tokens() {
    let server = Server::start(Config { endpoint: endpoint(), reference: None, ..networks() }).await.unwrap();
    let address = server.bound("rewards").unwrap();
    let body = json!({ "query": ["the answer is 42"], "prompts": ["the answer"] });
    let (status, answer) = post(&address, body.to_string()).await;
    assert_eq!(status, 200, "{answer}");
    let tokenizer = tiny::tokenizer();
    let encode = |text: &str| tokenizer.encode(text, false).unwrap();
    let expected = tiny::expected_score(&[encode("the answer"), encode(" is 42")].concat());
    let found = answer["rewards"][0].as_f64().unwrap();
    assert!((found - f64::from(expected)).abs() < 1e-5, "{found} is not {expected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_answered_gets_no_rewards() {
    let config = Config {
        endpoint: endpoint(),
        tokenizer: Some(tiny::folder("policy")),
        scorers: exact_match(),
        ..Config::default()
    };
    let server = Server::start(config).await.unwrap();
    let address = server.bound("rewards").unwrap();
    for (body, status, expected) in [
        ("{\"query\": [\"x\"".to_owned(), 400, "EOF"),
        (json!({ "prompts": ["x"] }).to_string(), 400, "query"),
        (json!({ "query": ["ab"], "prompts": ["b"] }).to_string(), 400, "does not begin with its prompt"),
        (json!({ "query": ["ab"], "labels": ["x", "y"] }).to_string(), 400, "2 labels for 1"),
        (json!({ "query": ["", ""] }).to_string(), 400, "is empty"),
        (
            json!({ "query": ["ab", "cd"], "labels": ["ab", null] }).to_string(),
            422,
            "text 1: the prompt has no field",
        ),
        (json!({ "query": ["a", "b", "c", "d", "e"] }).to_string(), 413, "at most 4 are scored"),
    ] {
        let (found, answer) = post(&address, body).await;
        assert_eq!(found, status, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(expected), "{answer}");
        assert!(answer.get("rewards").is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_texts_than_there_are_places_are_told_to_come_back() {
    let stub = Stub::closed().await;
    let config = Config {
        endpoint: endpoint(),
        tokenizer: Some(tiny::folder("policy")),
        scorers: scorer(ScorerKind::Http(stub.scorer())),
        ..Config::default()
    };
    let server = Server::start(config).await.unwrap();
    let address = server.bound("rewards").unwrap();
    let three = json!({ "query": ["a", "b", "c"] }).to_string();
    let first = post(&address, three.clone());
    let second = async {
        until("the first is in work", || stub.bodies().len() == 3).await;
        let refused = post(&address, three.clone()).await;
        stub.let_through(3);
        refused
    };
    let (first, second) = futures::join!(first, second);
    assert_eq!((first.0, second.0), (200, 429), "{first:?} {second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_not_served_unless_enabled_and_never_with_the_metrics() {
    let config = Config { coordinator: Some("127.0.0.1:1".into()), ..networks() };
    let mut server = Server::start(config).await.unwrap();
    assert_eq!(server.bound("rewards"), None);
    let config = Config { endpoint: endpoint(), reference: None, ..networks() };
    let mut enabled = Server::start(config).await.unwrap();
    for server in [&mut server, &mut enabled] {
        let metrics = server.serve_pages().await;
        assert_eq!(post(&metrics, json!({ "query": ["a"] }).to_string()).await.0, 404);
    }
}

/// OpenRLHF sends the end of a response along.
#[tokio::test(flavor = "multi_thread")]
async fn special_tokens_are_no_text() {
    let config = Config {
        endpoint: endpoint(),
        tokenizer: Some(tiny::folder("policy")),
        scorers: exact_match(),
        ..Config::default()
    };
    let server = Server::start(config).await.unwrap();
    let address = server.bound("rewards").unwrap();
    let tokenizer = tiny::tokenizer();
    let special = tokenizer.special_texts().next().unwrap();
    let body = json!({ "query": [format!("2+2=4{special}")], "prompts": ["2+2="], "labels": ["4"] });
    let (status, answer) = post(&address, body.to_string()).await;
    assert_eq!((status, &answer["rewards"]), (200, &json!([1.0])), "{answer}");
}

/// As OpenRLHF asks for the reward of code: the end of the response and the prompt come along.
#[tokio::test(flavor = "multi_thread")]
async fn programs_are_extracted_and_graded_as_in_the_ring() {
    let config = Config { endpoint: endpoint(), ..with_sandbox(tests(Rule::All)) };
    let server = Server::start(config).await.unwrap();
    let address = server.bound("rewards").unwrap();
    let tokenizer = tiny::tokenizer();
    let special = tokenizer.special_texts().next().unwrap();
    let mbpp = json!({ "task_id": 1, "text": "Add.", "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"] });
    let block = |body: &str| format!("Sure:\n```python\ndef add(a, b):\n    return {body}\n```\n");
    let usage = format!("{}Example:\n```python\nprint(add(1, 2))\n```\n", block("a + b"));
    let thought = format!("<think>\n{}</think>\n{}", block("a - b"), block("a + b"));
    let cases = [
        (block("a + b"), 1.0),
        (block("a - b"), 0.0),
        (usage, 1.0),
        (thought, 1.0),
        ("def add(a, b):\n    return a + b\n".to_owned(), 1.0),
        (format!("~~~python\ndef add(a, b):\n    return a + b\n~~~\n{}", "Done."), 1.0),
        ("I cannot do this.".to_owned(), 0.0),
        (
            "def add(a, b):\n    return type('Number', (), {'__eq__': lambda self, other: True})()\n"
                .to_owned(),
            0.0,
        ),
    ];
    let prompt = "Write add.\n";
    for (response, expected) in cases {
        for label in [mbpp.clone(), Value::String(mbpp.to_string())] {
            let body = json!({ "query": [format!("{prompt}{response}{special}")], "prompts": [prompt], "labels": [label] });
            let (status, answer) = post(&address, body.to_string()).await;
            assert_eq!((status, &answer["rewards"]), (200, &json!([expected])), "{response}: {answer}");
            assert_eq!(answer["extra_logs"], json!({ "unit-tests": [expected] }), "{response}: {answer}");
        }
    }
    let untested = json!({ "task_id": 1, "text": "Add.", "test_list": [] });
    let body = json!({ "query": [block("a + b")], "labels": [untested] });
    let (status, answer) = post(&address, body.to_string()).await;
    assert_eq!(status, 422, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("no tests"), "{answer}");
}
