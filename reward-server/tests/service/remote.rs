//! Remote reward services: what is sent, and what happens when they fail.

use std::time::Duration;

use reward_server::Config;
use reward_server::config::{Http, ScorerKind};
use serde_json::json;
use types::FailReason;
use types::link::reward::{RewardReport, ScoreReply};

use crate::stub::Stub;
use crate::tiny;
use crate::world::{World, scored, scorer, why};

fn config(http: Http) -> Config {
    Config {
        tokenizer: Some(tiny::folder("policy")),
        scorers: scorer(ScorerKind::Http(http)),
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_has_the_shape_of_openrlhf() {
    let stub = Stub::open().await;
    let mut world = World::start(config(Http { label: Some("answer".into()), ..stub.scorer() })).await;
    let fields = r#"{"prompt": "2 + 2 = ", "answer": "4"}"#;
    world.actor.offer(&tiny::rollout(0, "42", fields)).await;
    assert_eq!(scored(world.session.result().await).score(), 10.0);
    let expected = json!({ "query": ["2 + 2 = 42"], "prompts": ["2 + 2 = "], "labels": ["4"] });
    assert_eq!(stub.bodies(), [expected]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_label_field_all_fields_are_sent() {
    let stub = Stub::open().await;
    let mut world = World::start(config(stub.scorer())).await;
    let fields = r#"{"answer":"4","prompt":"2 + 2 = "}"#;
    world.actor.offer(&tiny::rollout(0, "42", fields)).await;
    scored(world.session.result().await);
    let label: serde_json::Value =
        serde_json::from_str(stub.bodies()[0]["labels"][0].as_str().unwrap()).unwrap();
    assert_eq!(label, json!({ "answer": "4", "prompt": "2 + 2 = " }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_sent_together() {
    let stub = Stub::closed().await;
    let mut world = World::start(config(Http { batch: 8, concurrency: 1, ..stub.scorer() })).await;
    for number in 0..9 {
        world
            .actor
            .offer(&tiny::rollout(number, &"y".repeat(number as usize + 1), r#"{"prompt": "p"}"#))
            .await;
    }
    crate::world::until("the first request has come", || stub.bodies().len() == 1).await;
    stub.let_through(9);
    for _ in 0..9 {
        let scored = scored(world.session.result().await);
        assert_eq!(
            f64::from(scored.score()),
            (scored.rollout().id().prompt.ordinal + 2) as f64,
            "each its own"
        );
    }
    assert!(stub.bodies().len() < 9, "{} requests", stub.bodies().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_on_the_way_is_tried_again() {
    let stub = Stub::scripted(&[(503, "busy"), (429, "slow down")]).await;
    let mut world = World::start(config(Http { retries: 2, ..stub.scorer() })).await;
    world.actor.offer(&tiny::rollout(0, "42", r#"{"prompt": "x"}"#)).await;
    assert_eq!(scored(world.session.result().await).score(), 3.0);
    assert_eq!(stub.bodies().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_keeps_failing_or_answers_nonsense_is_never_a_score() {
    for (answers, requests, expected) in [
        (vec![(500, ""), (500, ""), (500, "")], 2, "500"),
        (vec![(400, "bad")], 1, "400"),
        (vec![(200, "{\"reward\": 1}")], 1, "rewards"),
        (vec![(200, "{\"rewards\": [1, 2]}")], 1, "2 rewards for 1"),
        (vec![(200, "{\"rewards\": [null]}")], 1, "null"),
        (vec![(200, "{\"rewards\": [\"high\"]}")], 1, "high"),
        (vec![(200, "{\"rewards\": [NaN]}")], 1, "is \"NaN\""),
        (vec![(200, "<html>")], 1, "not understood"),
    ] {
        let stub = Stub::scripted(&answers).await;
        let mut world = World::start(config(Http { retries: 1, ..stub.scorer() })).await;
        world.actor.offer(&tiny::rollout(0, "42", "")).await;
        let (reason, detail) = why(world.session.result().await);
        assert_eq!(reason, FailReason::RewardError);
        assert!(detail.contains(expected) && detail.contains("http: "), "{detail}");
        assert_eq!(stub.bodies().len(), requests, "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_answer_that_is_no_number_fails_its_response_and_not_its_batch() {
    let stub = Stub::closed_echo().await;
    let http = Http { batch: 4, concurrency: 1, retries: 0, ..stub.scorer() };
    let mut world = World::start(config(http)).await;
    // What comes while the first request is answered is asked for together.
    let rewards = ["7.0", "0.5", "NaN", "true", "0.25", "null", "-Infinity", "\"high\"", "0.125"];
    for (number, reward) in rewards.iter().enumerate() {
        world.actor.offer(&tiny::rollout(number as u64, reward, r#"{"prompt": ""}"#)).await;
        crate::world::until("the first request has come", || stub.bodies().len() == 1).await;
    }
    stub.let_through(rewards.len());
    for _ in rewards {
        let report = world.session.result().await;
        let (number, found) = match report {
            RewardReport::Scored(scored) => (scored.rollout().id().prompt.ordinal, Ok(scored.score())),
            RewardReport::Failed(failure) => {
                assert_eq!(failure.reason, FailReason::RewardError, "{failure:?}");
                (failure.id.prompt.ordinal, Err(failure.detail))
            }
            RewardReport::Load { .. } => panic!("no result"),
        };
        let reward = rewards[usize::try_from(number).unwrap()];
        match (reward.parse::<f32>().ok().filter(|number| number.is_finite()), found) {
            (Some(expected), Ok(score)) => assert_eq!(score, expected, "{number}"),
            (None, Err(detail)) => assert!(detail.contains(reward.trim_matches('"')), "{reward}: {detail}"),
            (expected, found) => panic!("{reward}: {expected:?} is not {found:?}"),
        }
    }
    let sent = stub.bodies();
    let mixed = sent.iter().filter(|body| {
        let texts = body["query"].to_string();
        body["query"].as_array().unwrap().len() > 1
            && (texts.contains("0.") && (texts.contains("NaN") || texts.contains("null")))
    });
    assert!(mixed.count() > 0, "right and wrong ones were in one batch: {sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_answer_is_a_time_out() {
    let stub = Stub::closed().await;
    let http = Http { timeout: Duration::from_millis(100), retries: 0, ..stub.scorer() };
    let mut world = World::start(config(http)).await;
    world.actor.offer(&tiny::rollout(0, "42", "")).await;
    assert_eq!(why(world.session.result().await).0, FailReason::RewardTimeout);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_service_is_down_rollouts_wait_and_actors_are_told_to_come_back() {
    let stub = Stub::scripted(&[(503, ""), (503, "")]).await;
    let delay = Duration::from_millis(500);
    let http = Http { retries: 9, breaker_failures: 2, breaker_delay: delay, ..stub.scorer() };
    let mut world = World::start(config(http)).await;
    world.actor.offer(&tiny::rollout(0, "42", "")).await;
    crate::world::until("it has failed twice", || stub.bodies().len() == 2).await;
    // The answer to the second request may still be on its way; what is offered too early is simply scored.
    let mut refused = None;
    for number in 1..100_000 {
        let rollout = tiny::rollout(number, "42", "");
        world.actor.offer(&rollout).await;
        if let Some(Ok(reply)) = world.actor.ready_reply() {
            refused = Some(reply);
            break;
        }
        tokio::task::yield_now().await;
    }
    let Some(ScoreReply::Overloaded { retry_after, .. }) = refused else { panic!("{refused:?}") };
    assert!(retry_after <= delay, "{retry_after:?}");
    let first = scored(world.session.result().await);
    assert!(first.score() > 0.0, "no sample is lost to the outage");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_comes_from_its_file() {
    let stub = Stub::open().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "\n").unwrap();
    let http = Http { token_file: Some(file.path().to_owned()), ..stub.scorer() };
    let offline = Config { coordinator: Some("127.0.0.1:1".into()), ..config(http.clone()) };
    let error = crate::world::Server::start(offline).await.err().unwrap();
    assert!(error.to_string().contains("holds no token"), "{error}");
    std::fs::write(file.path(), "secret\n").unwrap();
    let mut world = World::start(config(http)).await;
    world.actor.offer(&tiny::rollout(0, "42", "")).await;
    scored(world.session.result().await);
    assert_eq!(stub.authorizations(), ["Bearer secret"]);
}
