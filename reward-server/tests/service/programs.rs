//! Environments of the operator's own: tools and a class, in real worker processes.

use std::time::Duration;

use reward_server::Config;
use reward_server::config::{ClassFile, EnvironmentConfig, EnvironmentKind, EpisodeBounds, ProgramFile};
use reward_server::config::{EnvironmentReward, ScorerConfig, ScorerKind};
use types::link::environment::{EnvironmentReply, EnvironmentRequest, Speaker};
use types::{EpisodeEnd, FailReason, Rollout, RolloutParts};

use crate::episodes::id;
use crate::grpc::{Episodes, note_fields};
use crate::tiny;
use crate::world::{Server, World, scored, why};

const TOOLS: &str = r#"
import time

def add(a: int, b: int = 1) -> int:
    """Adds two numbers.

    Nothing else."""
    print("this is for the log")
    return a + b

async def sleepy(seconds: float):
    time.sleep(seconds)

def divide(a: float, b: float) -> float:
    return a / b

def _hidden():
    pass
"#;

const CLASS: &str = r#"
import os

class Guess:
    def reset(self, number):
        if number is None:
            raise ValueError("nothing to guess")
        self.number = number
        return "Guess a number."

    def step(self, text):
        if "die" in text:
            os._exit(3)
        if str(self.number) in text:
            return None, 1.0, True, False, {}
        return {"observation": "no", "reward": -0.25}
"#;

fn with(kind: EnvironmentKind) -> Config {
    let bounds = EpisodeBounds { turns: 4, observation_bytes: 64, ..EpisodeBounds::default() };
    let scorers = match &kind {
        EnvironmentKind::Class(_) => vec![ScorerConfig::new(ScorerKind::Environment(EnvironmentReward {}))],
        _ => crate::episodes::finished(),
    };
    Config {
        tokenizer: Some(tiny::folder("policy")),
        environment: Some(EnvironmentConfig { bounds, kind }),
        scorers,
        ..Config::default()
    }
}

/// A file with this content, and how it is run.
fn program(content: &str) -> (tempfile::TempDir, ProgramFile) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("environment.py");
    std::fs::write(&file, content).unwrap();
    let table = serde_json::json!({ "file": file, "workers": 2, "timeout": "2s" });
    (folder, serde_json::from_value(table).unwrap())
}

fn class(content: &str) -> (tempfile::TempDir, EnvironmentKind) {
    let (folder, file) = program(content);
    let table = serde_json::json!({ "file": file.file, "workers": 1 });
    (folder, EnvironmentKind::Class(serde_json::from_value::<ClassFile>(table).unwrap()))
}

impl Episodes {
    async fn reset_with(&mut self, ordinal: u64, fields: &str) -> EnvironmentReply {
        note_fields(&self.server, id(ordinal).prompt, fields);
        let time_left = Duration::from_secs(600);
        self.send(EnvironmentRequest::Reset { id: id(ordinal), time_left }).await;
        self.reply().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_a_file_are_tools() {
    let (_folder, file) = program(TOOLS);
    let world = World::start(with(EnvironmentKind::Tools(file))).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    let EnvironmentReply::Ready { tools, .. } = actor.reset_with(0, "{}").await else { panic!("not ready") };
    let tools: serde_json::Value = serde_json::from_str(&tools.unwrap()).unwrap();
    let names: Vec<_> = tools.as_array().unwrap().iter().map(|tool| &tool["function"]["name"]).collect();
    assert_eq!(names, ["add", "sleepy", "divide"]);
    assert_eq!(tools[0]["function"]["description"], "Adds two numbers.");
    let parameters = &tools[0]["function"]["parameters"];
    assert_eq!(parameters["properties"]["a"]["type"], "integer");
    assert_eq!(parameters["required"], serde_json::json!(["a"]));
    let calls = r#"[{"name": "add", "arguments": {"a": 2, "b": 3}}, {"name": "add", "arguments": {}},
        {"name": "divide", "arguments": {"a": 1, "b": 0}}, {"name": "_hidden", "arguments": {}}]"#;
    let EnvironmentReply::Observed { messages, .. } = actor.step(0, calls).await else { panic!("no answer") };
    assert!(messages.iter().all(|message| message.speaker == Speaker::Tool));
    let texts: Vec<&str> = messages.iter().map(|message| message.text.as_str()).collect();
    assert_eq!(texts[0], "5");
    for (text, said) in texts[1..].iter().zip(["missing", "ZeroDivisionError", "there is no tool"]) {
        assert!(text.starts_with("Error: ") && text.contains(said), "{text} should say {said}");
    }
    let slow = actor.observed(0, r#"{"name": "sleepy", "arguments": {"seconds": 60}}"#).await;
    assert!(slow.contains("no answer within 2s"), "{slow}");
    let again = actor.observed(0, r#"{"name": "add", "arguments": {"a": 41}}"#).await;
    assert_eq!(again, "42", "another worker took over");
    let over = actor.step(0, "It is 42.").await;
    assert_eq!(over, EnvironmentReply::Done { id: id(0), end: EpisodeEnd::Finished, reward: None });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_says_what_its_episodes_are_worth_and_the_scorer_takes_it() {
    let (_folder, kind) = class(CLASS);
    let mut world = World::start(with(kind)).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    let EnvironmentReply::Ready { messages, tools, .. } =
        actor.reset_with(0, r#"{"number": 7, "x": 1}"#).await
    else {
        panic!("not ready")
    };
    assert_eq!(
        (messages[0].speaker, messages[0].text.as_str(), tools),
        (Speaker::User, "Guess a number.", None)
    );
    actor.reset_with(1, r#"{"number": 3}"#).await;
    let EnvironmentReply::Observed { messages, reward, .. } = actor.step(0, "3?").await else { panic!() };
    assert_eq!((messages[0].text.as_str(), reward), ("no", Some(-0.25)));
    let won = EnvironmentReply::Done { id: id(1), end: EpisodeEnd::Finished, reward: Some(1.0) };
    assert_eq!(actor.step(1, "3?").await, won, "episodes have instances of their own");
    let won = EnvironmentReply::Done { id: id(0), end: EpisodeEnd::Finished, reward: Some(0.75) };
    assert_eq!(actor.step(0, "7").await, won, "rewards of turns add up");

    actor.reset_with(2, r#"{"number": 9}"#).await;
    for _ in 0..3 {
        actor.observed_by(2, "no idea", Speaker::User).await;
    }
    let cut = EnvironmentReply::Done { id: id(2), end: EpisodeEnd::Turns, reward: Some(-1.0) };
    assert_eq!(actor.step(2, "no idea").await, cut, "the last turn is told the class, too");

    let parts = RolloutParts { reward: Some(0.75), ..tiny::with_tokens(0, &[1, 2], "").into_parts() };
    world.actor.offer(&Rollout::new(parts).unwrap()).await;
    assert_eq!(scored(world.session.result().await).score(), 0.75);
    world.actor.offer(&tiny::with_tokens(1, &[1, 2], "")).await;
    let (reason, detail) = why(world.session.result().await);
    assert!(reason == FailReason::Unsupported && detail.contains("no reward"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_class_does_wrong_fails_its_episode_and_a_crash_those_of_its_worker() {
    let (_folder, kind) = class(CLASS);
    let world = World::start(with(kind)).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    let EnvironmentReply::Failed { reason, detail, .. } = actor.reset_with(0, r#"{"number": null}"#).await
    else {
        panic!("there was nothing to guess")
    };
    assert!(reason == FailReason::Environment && detail.contains("nothing to guess"), "{detail}");
    actor.reset_with(1, r#"{"number": 3}"#).await;
    actor.reset_with(2, r#"{"number": 4}"#).await;
    let EnvironmentReply::Failed { detail, .. } = actor.step(1, "die").await else { panic!("it has died") };
    assert!(detail.contains("has died"), "{detail}");
    let EnvironmentReply::Failed { detail, .. } = actor.step(2, "4").await else { panic!("it was lost") };
    assert!(detail.contains("worker process has died"), "{detail}");
    let ready = actor.reset_with(1, r#"{"number": 3}"#).await;
    assert!(matches!(ready, EnvironmentReply::Ready { .. }), "another process took over: {ready:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_environment_is_found_at_the_start() {
    let half = "class Half:\n    def reset(self):\n        pass\n";
    for (content, said) in [("x = 1 +", "SyntaxError"), (half, "not one class with reset and step")] {
        let (_folder, kind) = class(content);
        let config = Config { coordinator: Some("127.0.0.1:1".to_owned()), ..with(kind) };
        let refused = format!("{:#}", Server::start(config).await.err().unwrap());
        assert!(refused.contains(said) && refused.contains("environment.py"), "{refused}");
    }
}
