//! Episodes in the `python` environment, in the real sandbox.

use std::time::Duration;

use reward_server::Config;
use reward_server::config::{CallSyntax, EnvironmentConfig, EnvironmentKind, EpisodeBounds, PythonTool};
use reward_server::config::{Format, ScorerConfig, ScorerKind};
use types::link::environment::{EnvironmentReply, EnvironmentRequest, Speaker};
use types::{EpisodeEnd, FailReason, PromptId, RolloutId};

use crate::grpc::Episodes;
use crate::tiny;
use crate::unit_tests::build_sandbox_init;
use crate::world::{World, scorer};

fn bounds() -> EpisodeBounds {
    EpisodeBounds { turns: 4, max_tokens: 100, episodes: 2, ..EpisodeBounds::default() }
}

fn config(bounds: EpisodeBounds, change: impl FnOnce(&mut PythonTool)) -> Config {
    build_sandbox_init();
    let mut python = PythonTool { calls: CallSyntax::Block, interpreters: 2, ..PythonTool::default() };
    change(&mut python);
    Config {
        tokenizer: Some(tiny::folder("policy")),
        environment: Some(EnvironmentConfig { bounds, kind: EnvironmentKind::Python(python) }),
        scorers: finished(),
        ..Config::default()
    }
}

/// A scorer that needs nothing.
pub(crate) fn finished() -> Vec<ScorerConfig> {
    scorer(ScorerKind::Format(Format { finished: true, ..Format::default() }))
}

pub(crate) fn id(ordinal: u64) -> RolloutId {
    RolloutId { prompt: PromptId { epoch: 0, ordinal }, sibling: 0, attempt: 0 }
}

fn block(code: &str) -> String {
    format!("So:\n```python\n{code}\n```\n")
}

impl Episodes {
    async fn reset(&mut self, ordinal: u64) -> EnvironmentReply {
        let time_left = Duration::from_secs(600);
        self.send(EnvironmentRequest::Reset { id: id(ordinal), time_left }).await;
        self.reply().await.unwrap()
    }

    async fn begin(&mut self, ordinal: u64) {
        let ready = self.reset(ordinal).await;
        assert!(matches!(ready, EnvironmentReply::Ready { .. }), "{ready:?}");
    }

    pub(crate) async fn step(&mut self, ordinal: u64, text: &str) -> EnvironmentReply {
        let (text, tokens) = (text.to_owned(), 10);
        self.send(EnvironmentRequest::Step { id: id(ordinal), text, tokens, truncated: false }).await;
        self.reply().await.unwrap()
    }

    /// What a tool says to a turn.
    pub(crate) async fn observed(&mut self, ordinal: u64, text: &str) -> String {
        self.observed_by(ordinal, text, Speaker::Tool).await
    }

    /// The same of another speaker.
    pub(crate) async fn observed_by(&mut self, ordinal: u64, text: &str, speaker: Speaker) -> String {
        match self.step(ordinal, text).await {
            EnvironmentReply::Observed { id: of, messages, .. } => {
                assert_eq!(of, id(ordinal));
                assert!(messages.iter().all(|message| message.speaker == speaker));
                messages.into_iter().map(|message| message.text).collect()
            }
            other => panic!("nothing observed: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_episode_has_an_interpreter_that_remembers() {
    let world = World::start(config(bounds(), |_| {})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    let EnvironmentReply::Ready { messages, tools, max_tokens, .. } = actor.reset(0).await else {
        panic!("not ready");
    };
    assert_eq!((messages, tools, max_tokens), (Vec::new(), None, 100), "blocks need no schema");
    actor.begin(1).await;
    assert_eq!(actor.observed(0, &block("x = 20")).await, "");
    assert_eq!(actor.observed(1, &block("x = 3")).await, "");
    assert_eq!(actor.observed(0, &block("x + 22")).await, "42\n");
    assert!(
        actor.observed(1, &block("x.y")).await.contains("AttributeError"),
        "an exception is an observation"
    );
    let ended = actor.step(0, "It is 42.").await;
    assert_eq!(ended, EnvironmentReply::Done { id: id(0), end: EpisodeEnd::Finished, reward: None });
    let EnvironmentReply::Failed { reason, .. } = actor.step(0, "again").await else { panic!("it is over") };
    assert_eq!(reason, FailReason::Environment);
    actor.begin(0).await;
    assert!(actor.observed(0, &block("x")).await.contains("NameError"), "nothing is left of the one before");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_the_tool_come_in_the_models_own_format() {
    let world = World::start(config(bounds(), |python| python.calls = CallSyntax::Tool)).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    let EnvironmentReply::Ready { tools, .. } = actor.reset(0).await else { panic!("not ready") };
    let tools: serde_json::Value = serde_json::from_str(&tools.unwrap()).unwrap();
    assert_eq!(tools[0]["function"]["name"], "python");
    let call = |code: &str| format!("{{\"name\": \"python\", \"arguments\": {{\"code\": \"{code}\"}}}}");
    assert_eq!(actor.observed(0, &call("6*7")).await, "42\n");
    let unreadable = actor.observed(0, "{\"name\": \"python\", ").await;
    assert!(unreadable.starts_with("Error: the call cannot be read"), "{unreadable}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bound_ends_an_episode_by_its_name() {
    let world = World::start(config(EpisodeBounds { observation_bytes: 64, ..bounds() }, |_| {})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    let done = |ordinal, end| EnvironmentReply::Done { id: id(ordinal), end, reward: None };

    actor.begin(0).await;
    let long = actor.observed(0, &block("print('a' * 1000)")).await;
    assert!(long.contains("bytes are left out here") && long.len() < 200, "{long}");
    for _ in 0..2 {
        actor.observed(0, &block("1")).await;
    }
    assert_eq!(actor.step(0, &block("1")).await, done(0, EpisodeEnd::Turns), "the last one may only answer");

    actor.begin(1).await;
    let request =
        |tokens, truncated| EnvironmentRequest::Step { id: id(1), text: block("1"), tokens, truncated };
    actor.send(request(100, false)).await;
    assert_eq!(actor.reply().await.unwrap(), done(1, EpisodeEnd::Tokens));
    actor.begin(1).await;
    actor.send(request(5, true)).await;
    assert_eq!(actor.reply().await.unwrap(), done(1, EpisodeEnd::Length));
}

#[tokio::test(flavor = "multi_thread")]
async fn time_in_tools_and_in_all_is_bounded() {
    let tool_time = EpisodeBounds { tool_time: Duration::from_millis(300), ..bounds() };
    let world = World::start(config(tool_time, |_| {})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    actor.begin(0).await;
    actor.observed(0, &block("import time\ntime.sleep(9)")).await;
    let over = actor.step(0, &block("1")).await;
    assert_eq!(over, EnvironmentReply::Done { id: id(0), end: EpisodeEnd::ToolTime, reward: None });

    let wall = EpisodeBounds { wall: Duration::from_millis(400), ..bounds() };
    let world = World::start(config(wall, |_| {})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    actor.begin(0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let over = actor.step(0, &block("1")).await;
    assert_eq!(over, EnvironmentReply::Done { id: id(0), end: EpisodeEnd::WallTime, reward: None });
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_places_an_episode_comes_again_and_a_gone_actor_leaves_its_places() {
    let world = World::start(config(bounds(), |_| {})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    actor.begin(0).await;
    actor.begin(1).await;
    let EnvironmentReply::Overloaded { id: refused, retry_after } = actor.reset(2).await else {
        panic!("there are two places");
    };
    assert!(refused == id(2) && retry_after > Duration::ZERO);
    actor.send(EnvironmentRequest::Close(id(0))).await;
    // The place is free once the episode's task has ended.
    while let EnvironmentReply::Overloaded { .. } = actor.reset(2).await {
        tokio::task::yield_now().await;
    }
    actor.observed(2, &block("x = 1")).await;
    drop(actor);
    let mut other = Episodes::connect(world.address()).await.unwrap();
    for ordinal in [2, 3] {
        while let EnvironmentReply::Overloaded { .. } = other.reset(ordinal).await {
            tokio::task::yield_now().await;
        }
    }
    assert!(other.observed(2, &block("x")).await.contains("NameError"), "episodes end with their stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_correct_actor_sends_ends_its_stream() {
    let world = World::start(config(bounds(), |_| {})).await;
    let mut twice = Episodes::connect(world.address()).await.unwrap();
    twice.begin(0).await;
    let time_left = Duration::from_secs(9);
    twice.send(EnvironmentRequest::Reset { id: id(0), time_left }).await;
    let status = twice.reply().await.unwrap_err();
    assert!(status.message().contains("e0-p0-s0-a0 has begun already"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_environment_a_stream_of_episodes_is_refused() {
    let world = World::start(Config { environment: None, ..config(bounds(), |_| {}) }).await;
    let status = Episodes::connect(world.address()).await.err().unwrap();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("[reward_server.environment]"), "{status}");
}
