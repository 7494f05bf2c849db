//! Remote environments: what they are sent, and what becomes of an episode when they misbehave.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reward_server::Config;
use reward_server::config::{
    EnvironmentConfig, EnvironmentKind, EnvironmentReward, EpisodeBounds, ScorerConfig, ScorerKind,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use types::link::environment::{EnvironmentReply, EnvironmentRequest, Speaker};
use types::{EpisodeEnd, FailReason, RolloutId};

use crate::episodes::id;
use crate::grpc::{Episodes, note_fields};
use crate::tiny;
use crate::world::World;

/// What the server does with a request.
enum Does {
    Says(u16, String),
    /// Reads it and says nothing.
    Hangs,
    /// Answers without an end.
    Drips,
    /// Reads it and closes the connection.
    Closes,
}

fn says(body: Value) -> Does {
    Does::Says(200, body.to_string())
}

/// A request that has come: its path, its headers, its body.
type Asked = (String, String, Value);

/// A server that does what the test says, one request after the other.
struct Script {
    url: String,
    does: Arc<Mutex<VecDeque<Does>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    _server: JoinSet<()>,
}

impl Script {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/env", listener.local_addr().unwrap());
        let (does, asked) = (Arc::new(Mutex::new(VecDeque::new())), Arc::new(Mutex::new(Vec::new())));
        let mut server = JoinSet::new();
        let (script, heard) = (Arc::clone(&does), Arc::clone(&asked));
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, Arc::clone(&script), Arc::clone(&heard)));
            }
        });
        Self { url, does, asked, _server: server }
    }

    fn does(&self, what: impl IntoIterator<Item = Does>) {
        self.does.lock().unwrap().extend(what);
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// A world with an environment there, of which `table` says more.
    async fn world(&self, table: Value) -> World {
        world_at(&self.url, EpisodeBounds { observation_bytes: 64, ..EpisodeBounds::default() }, table).await
    }
}

/// A world whose environment is at this address; `table` says more of it.
pub(crate) async fn world_at(url: &str, bounds: EpisodeBounds, table: Value) -> World {
    let mut kind = json!({"kind": "http", "url": url, "timeout": "700ms", "retries": 2});
    kind.as_object_mut().unwrap().extend(table.as_object().unwrap().clone());
    let kind: EnvironmentKind = serde_json::from_value(kind).unwrap();
    let bounds = EpisodeBounds { turns: 4, episodes: 8, ..bounds };
    World::start(Config {
        tokenizer: Some(tiny::folder("policy")),
        environment: Some(EnvironmentConfig { bounds, kind }),
        scorers: vec![ScorerConfig::new(ScorerKind::Environment(EnvironmentReward {}))],
        ..Config::default()
    })
    .await
}

/// One connection: HTTP/1.1 by hand, because no library misbehaves as wanted.
async fn serve(mut stream: TcpStream, script: Arc<Mutex<VecDeque<Does>>>, asked: Arc<Mutex<Vec<Asked>>>) {
    let mut received = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break String::from_utf8(received.drain(..end + 4).collect()).unwrap().to_lowercase();
            }
            if stream.read_buf(&mut received).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let length: usize = length.trim().parse().unwrap();
        while received.len() < length {
            assert!(stream.read_buf(&mut received).await.unwrap() > 0, "half a request");
        }
        let body: Vec<u8> = received.drain(..length).collect();
        let path = head.split(' ').nth(1).unwrap().to_owned();
        asked.lock().unwrap().push((path, head, serde_json::from_slice(&body).unwrap()));
        let does = script.lock().unwrap().pop_front().expect("a request that nobody expects");
        match does {
            Does::Says(status, body) => {
                let location = if status == 307 { "location: /elsewhere\r\n" } else { "" };
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status} X\r\n{location}content-length: {length}\r\n\r\n{body}");
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
            Does::Hangs => {
                // Until the other side gives up.
                while stream.read_buf(&mut received).await.unwrap_or(0) > 0 {}
                return;
            }
            Does::Drips => {
                stream.write_all(b"HTTP/1.1 200 X\r\n\r\n\"").await.unwrap();
                while stream.write_all(&[b'a'; 1 << 14]).await.is_ok() {}
                return;
            }
            Does::Closes => return,
        }
    }
}

pub(crate) async fn reset(actor: &mut Episodes, id: RolloutId, fields: &str) -> EnvironmentReply {
    note_fields(&actor.server, id.prompt, fields);
    actor.send(EnvironmentRequest::Reset { id, time_left: Duration::from_secs(600) }).await;
    actor.reply().await.unwrap()
}

fn seed_of(asked: &Asked) -> u64 {
    asked.2["seed"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openenv_server_is_asked_and_answers_as_openenv_does() {
    let script = Script::start().await;
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "secret\n").unwrap();
    let table = json!({"observation_field": "text", "token_file": token.path()});
    let world = script.world(table).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    let observation = |text: &str| json!({"text": text, "legal": [1, 2]});
    script.does([
        says(json!({"observation": observation("Guess a number."), "reward": null, "done": false})),
        says(json!({"observation": observation("no"), "reward": -0.25})),
        says(json!({"observation": observation(""), "reward": 1, "done": true})),
    ]);
    let fields = r#"{"number": 7, "seed": "the prompt's own"}"#;
    let EnvironmentReply::Ready { messages, tools, .. } = reset(&mut actor, id(0), fields).await else {
        panic!("not ready")
    };
    assert_eq!(
        (messages[0].speaker, messages[0].text.as_str(), tools),
        (Speaker::User, "Guess a number.", None)
    );
    let EnvironmentReply::Observed { messages, reward, .. } = actor.step(0, "3?").await else { panic!() };
    assert_eq!((messages[0].text.as_str(), reward), ("no", Some(-0.25)));
    let won = EnvironmentReply::Done { id: id(0), end: EpisodeEnd::Finished, reward: Some(0.75) };
    assert_eq!(actor.step(0, "7").await, won, "rewards of turns add up");
    let asked = script.asked();
    assert_eq!(asked[0].0, "/env/reset");
    assert!(asked.iter().all(|(_, head, _)| head.contains("authorization: bearer secret")), "{asked:?}");
    let episode = asked[0].2["episode_id"].clone();
    let seed = seed_of(&asked[0]);
    assert!(seed < 1 << 31);
    assert_eq!(asked[0].2, json!({"number": 7, "seed": seed, "episode_id": episode}));
    assert_eq!(asked[1].0, "/env/step");
    assert_eq!(asked[1].2, json!({"action": {"message": "3?"}, "episode_id": episode}));

    // A sibling begins alike, under another name; another prompt does not.
    script.does([(), ()].map(|()| says(json!({"observation": observation("Go")}))));
    for other in [RolloutId { sibling: 1, ..id(0) }, id(1)] {
        reset(&mut actor, other, "{}").await;
        actor.send(EnvironmentRequest::Close(other)).await;
    }
    let others = script.asked();
    assert_eq!((seed_of(&others[0]), seed_of(&others[1]) == seed), (seed, false));
    assert_ne!(others[0].2["episode_id"], episode);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gym_server_names_its_sessions_and_answers_with_lists() {
    let script = Script::start().await;
    let world = script.world(json!({"shape": "gym", "session_field": "session"})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    script.does([
        says(json!({"session": 17, "observation": [0.5, 1], "info": {}})),
        says(json!([{"role": "tool", "content": "x"}, 0.5, false, false, {}])),
        says(json!([[{"role": "tool", "content": "moved"}], 0.5, false, {}])),
        says(json!({"observation": "b".repeat(500), "reward": 2, "terminated": false, "truncated": false})),
        says(json!({"observation": null, "reward": true, "terminated": false, "truncated": 1})),
    ]);
    let EnvironmentReply::Ready { messages, .. } = reset(&mut actor, id(0), r#"{"level": 3}"#).await else {
        panic!("not ready")
    };
    assert_eq!(messages[0].text, "[0.5,1]", "what is no text is told as JSON");
    let object = actor.observed_by(0, "left", Speaker::User).await;
    assert_eq!(object, r#"{"role":"tool","content":"x"}"#, "one message is no list of them");
    assert_eq!(actor.observed(0, "left").await, "moved");
    let long = actor.observed_by(0, "up", Speaker::User).await;
    assert!(long.contains("[436 bytes are left out here]"), "{long}");
    let over = EnvironmentReply::Done { id: id(0), end: EpisodeEnd::Finished, reward: Some(4.0) };
    assert_eq!(actor.step(0, "stop").await, over);
    let asked = script.asked();
    assert_eq!(asked[0].2["options"], json!({"level": 3}));
    assert_eq!(asked[1].2, json!({"action": "left", "session": 17}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_tried_again_and_a_step_is_not() {
    let script = Script::start().await;
    let world = script.world(json!({})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    let begun = || says(json!({"observation": "Go"}));
    script.does([Does::Says(503, String::new()), Does::Closes, begun(), Does::Says(503, String::new())]);
    let ready = reset(&mut actor, id(0), "{}").await;
    assert!(matches!(ready, EnvironmentReply::Ready { .. }), "{ready:?}");
    let EnvironmentReply::Failed { reason, detail, .. } = actor.step(0, "x").await else {
        panic!("it failed")
    };
    assert!(
        reason == FailReason::Environment && detail.contains("/env/step") && detail.contains("503"),
        "{detail}"
    );
    assert_eq!(script.asked().len(), 4);

    script.does([Does::Says(429, String::new()), Does::Says(500, String::new()), Does::Closes]);
    let EnvironmentReply::Failed { reason, detail, .. } = reset(&mut actor, id(1), "{}").await else {
        panic!()
    };
    assert!(reason == FailReason::Environment && detail.contains("/env/reset"), "{detail}");
    // What is the caller's fault fails at once.
    script.does([Does::Says(422, String::new())]);
    let EnvironmentReply::Failed { detail, .. } = reset(&mut actor, id(2), "{}").await else { panic!() };
    assert!(detail.contains("422"), "{detail}");
    assert_eq!(script.asked().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_server_does_is_a_failure_of_its_episode_alone_and_never_a_reward() {
    let script = Script::start().await;
    let world = script.world(json!({"retries": 0})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    let step = |body: Value| (says(body), "/env/step");
    let wrong: Vec<((Does, &str), &str)> = vec![
        ((Does::Hangs, "/env/step"), "timeout"),
        ((Does::Drips, "/env/step"), "limit"),
        ((Does::Closes, "/env/step"), "/env/step"),
        ((Does::Says(307, String::new()), "/env/step"), "redirect"),
        ((Does::Says(200, "<html>".to_owned()), "/env/step"), "no JSON"),
        ((Does::Says(200, String::new()), "/env/step"), "no JSON"),
        ((Does::Says(200, "[".repeat(100_000)), "/env/step"), "no JSON"),
        ((Does::Says(200, r#"{"observation": "x", "reward": NaN}"#.to_owned()), "/env/step"), "no JSON"),
        ((Does::Says(200, r#"{"observation": "x", "reward": 1e999}"#.to_owned()), "/env/step"), "no JSON"),
        (step(json!({"observation": "x", "reward": "1"})), "no finite number"),
        (step(json!({"reward": 1})), "has no \"observation\""),
        (step(json!({"observation": "", "reward": 1, "done": false})), "says nothing"),
        (step(json!(["x", 1])), "has no \"observation\""),
        (step(json!("x")), "has no \"observation\""),
        (step(json!(null)), "has no \"observation\""),
    ];
    // One that goes on beside all of them.
    script.does([says(json!({"observation": "Go"}))]);
    reset(&mut actor, id(0), "{}").await;
    for (number, ((does, way), said)) in (1..).zip(wrong) {
        script.does([says(json!({"observation": "Go"})), does]);
        let ready = reset(&mut actor, id(number), "{}").await;
        assert!(matches!(ready, EnvironmentReply::Ready { .. }), "{said}: {ready:?}");
        let EnvironmentReply::Failed { reason, detail, .. } = actor.step(number, "x").await else {
            panic!("{said} was no failure")
        };
        assert_eq!(reason, FailReason::Environment, "{detail}");
        assert!(detail.contains(said) && detail.contains(way) && detail.len() < 600, "{said}: {detail}");
    }
    script.does([says(json!({"observation": "still here"}))]);
    assert_eq!(actor.observed_by(0, "x", Speaker::User).await, "still here");

    for (number, body, said) in [
        (50, json!({"observation": "x", "done": true}), "over before it has begun"),
        (51, json!({}), "has no \"observation\""),
        (52, json!([]), "has no \"observation\""),
    ] {
        script.does([says(body)]);
        let EnvironmentReply::Failed { detail, .. } = reset(&mut actor, id(number), "{}").await else {
            panic!()
        };
        assert!(detail.contains(said), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_requests_are_bounded_and_end_with_their_time() {
    let script = Script::start().await;
    let world = script.world(json!({"concurrency": 1, "retries": 0})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    script.does([says(json!({"observation": "Go"})), Does::Hangs, says(json!({"observation": "Go"}))]);
    reset(&mut actor, id(0), "{}").await;
    let (text, tokens) = ("x".to_owned(), 3);
    actor.send(EnvironmentRequest::Step { id: id(0), text, tokens, truncated: false }).await;
    crate::world::until("the step is there", || script.asked.lock().unwrap().len() == 2).await;
    let since = tokio::time::Instant::now();
    actor.send(EnvironmentRequest::Close(id(0))).await;
    // The only place is the abandoned step's until its time is over.
    let ready = reset(&mut actor, id(1), "{}").await;
    assert!(matches!(ready, EnvironmentReply::Ready { .. }), "{ready:?}");
    assert!(since.elapsed() > Duration::from_millis(200), "{:?}", since.elapsed());
}
