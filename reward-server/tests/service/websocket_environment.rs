//! Environments behind OpenEnv's WebSocket: what they are sent on an episode's connection, and what becomes
//! of the episode when they misbehave.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use reward_server::config::EpisodeBounds;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use types::link::environment::{EnvironmentReply, EnvironmentRequest, Speaker};
use types::{EpisodeEnd, FailReason};

use crate::episodes::id;
use crate::grpc::Episodes;
use crate::remote_environment::{reset, world_at};
use crate::world::{World, until};

/// What the server does with a message.
enum Does {
    Says(String),
    /// Sends a ping, and answers once there is a pong.
    Pings(String),
    Hangs,
    Closes,
}

/// An observation as OpenEnv's server sends it.
fn observes(data: Value) -> Does {
    Does::Says(json!({"type": "observation", "data": data}).to_string())
}

fn error(code: &str) -> Does {
    Does::Says(json!({"type": "error", "data": {"message": "so it is", "code": code}}).to_string())
}

/// What has happened: the connection's number, and its message; `null` for its end.
type Heard = (usize, Value);

/// A server that does what the test says.
struct Script {
    url: String,
    does: Arc<Mutex<VecDeque<Does>>>,
    heard: Arc<Mutex<Vec<Heard>>>,
    _server: JoinSet<()>,
}

impl Script {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let (does, heard) = (Arc::new(Mutex::new(VecDeque::new())), Arc::new(Mutex::new(Vec::new())));
        let mut server = JoinSet::new();
        let (script, told) = (Arc::clone(&does), Arc::clone(&heard));
        server.spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, number, Arc::clone(&script), Arc::clone(&told)));
            }
        });
        Self { url, does, heard, _server: server }
    }

    fn does(&self, what: impl IntoIterator<Item = Does>) {
        self.does.lock().unwrap().extend(what);
    }

    fn heard(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.heard.lock().unwrap())
    }

    async fn world(&self, table: Value) -> World {
        world_at(&self.url, EpisodeBounds::default(), table).await
    }
}

async fn serve(
    stream: TcpStream,
    number: usize,
    script: Arc<Mutex<VecDeque<Does>>>,
    heard: Arc<Mutex<Vec<Heard>>>,
) {
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(text.as_str()).unwrap();
        let is_over = message["type"] == "close";
        heard.lock().unwrap().push((number, message));
        if is_over {
            break;
        }
        let does = script.lock().unwrap().pop_front().expect("a message that nobody expects");
        match does {
            Does::Says(text) => {
                let _ = socket.send(Message::text(text)).await;
            }
            Does::Pings(text) => {
                socket.send(Message::Ping("here?".into())).await.unwrap();
                while !matches!(socket.next().await, Some(Ok(Message::Pong(_)))) {}
                socket.send(Message::text(text)).await.unwrap();
                // Between two turns too.
                socket.send(Message::Ping("still?".into())).await.unwrap();
                while !matches!(socket.next().await, Some(Ok(Message::Pong(_)))) {}
                heard.lock().unwrap().push((number, json!("pong")));
            }
            Does::Hangs => {}
            Does::Closes => break,
        }
    }
    let _ = socket.close(None).await;
    heard.lock().unwrap().push((number, Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_episode_has_a_connection_that_openenvs_server_understands_and_that_ends_with_it() {
    let script = Script::start().await;
    let world = script.world(json!({"observation_field": "text"})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    let no = json!({"type": "observation", "data": {"observation": {"text": "no"}, "reward": -0.25, "done": false}});
    script.does([
        observes(json!({"observation": {"text": "Guess a number."}, "reward": null, "done": false})),
        Does::Pings(no.to_string()),
        observes(json!({"observation": {"text": ""}, "reward": 1, "done": true})),
    ]);
    let EnvironmentReply::Ready { messages, .. } = reset(&mut actor, id(0), r#"{"number": 7}"#).await else {
        panic!("not ready")
    };
    assert_eq!((messages[0].speaker, messages[0].text.as_str()), (Speaker::User, "Guess a number."));
    let EnvironmentReply::Observed { messages, reward, .. } = actor.step(0, "3?").await else { panic!() };
    assert_eq!((messages[0].text.as_str(), reward), ("no", Some(-0.25)));
    // A server that hears no pong closes the connection while the policy draws.
    until("a pong between two turns", || script.heard.lock().unwrap().iter().any(|(_, said)| said == "pong"))
        .await;
    let won = EnvironmentReply::Done { id: id(0), end: EpisodeEnd::Finished, reward: Some(0.75) };
    assert_eq!(actor.step(0, "7").await, won);
    until("the end", || script.heard.lock().unwrap().iter().any(|(_, said)| said.is_null())).await;
    let heard: Vec<Value> = script.heard().into_iter().map(|(_, message)| message).collect();
    assert_eq!((&heard[0]["type"], &heard[0]["data"]["number"]), (&json!("reset"), &json!(7)));
    assert!(heard[0]["data"]["seed"].is_u64() && heard[0]["data"]["episode_id"].is_string());
    assert_eq!(heard[1], json!({"type": "step", "data": {"message": "3?"}}), "no field beside the action's");
    assert_eq!(
        heard[2..],
        [
            json!("pong"),
            json!({"type": "step", "data": {"message": "7"}}),
            json!({"type": "close"}),
            Value::Null
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn siblings_have_connections_of_their_own_and_one_that_is_given_up_is_closed() {
    let script = Script::start().await;
    let world = script.world(json!({})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    script.does([(), ()].map(|()| observes(json!({"observation": "Go"}))));
    for number in [0, 1] {
        let ready = reset(&mut actor, id(number), "{}").await;
        assert!(matches!(ready, EnvironmentReply::Ready { .. }), "{ready:?}");
    }
    actor.send(EnvironmentRequest::Close(id(0))).await;
    until("the end of the first", || script.heard.lock().unwrap().contains(&(0, Value::Null))).await;
    assert!(!script.heard.lock().unwrap().contains(&(1, Value::Null)), "the other one goes on");
    script.does([observes(json!({"observation": "on"}))]);
    assert_eq!(actor.observed_by(1, "x", Speaker::User).await, "on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_tried_again_on_a_new_connection_and_a_step_is_not() {
    let script = Script::start().await;
    let world = script.world(json!({})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    script.does([
        error("CAPACITY_REACHED"),
        Does::Closes,
        observes(json!({"observation": "Go"})),
        Does::Closes,
    ]);
    let ready = reset(&mut actor, id(0), "{}").await;
    assert!(matches!(ready, EnvironmentReply::Ready { .. }), "{ready:?}");
    let EnvironmentReply::Failed { reason, detail, .. } = actor.step(0, "x").await else { panic!() };
    assert!(
        reason == FailReason::Environment && detail.contains("/ws") && detail.contains("closed"),
        "{detail}"
    );
    let resets = script.heard().into_iter().filter(|(_, said)| said["type"] == "reset");
    assert_eq!(resets.map(|(number, _)| number).collect::<Vec<_>>(), [0, 1, 2]);
    // What is wrong with the request is so the next time, too.
    script.does([error("VALIDATION_ERROR")]);
    let EnvironmentReply::Failed { detail, .. } = reset(&mut actor, id(1), "{}").await else { panic!() };
    assert!(detail.contains("VALIDATION_ERROR: so it is"), "{detail}");
    assert_eq!(script.heard().iter().filter(|(_, said)| said["type"] == "reset").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_server_says_is_a_failure_of_its_episode_alone_and_never_a_reward() {
    let script = Script::start().await;
    let world = script.world(json!({"retries": 0})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    script.does([observes(json!({"observation": "Go"}))]);
    reset(&mut actor, id(0), "{}").await;
    let wrong: Vec<(Does, &str)> = vec![
        (Does::Hangs, "no answer within"),
        (Does::Closes, "closed the connection"),
        (Does::Says("<html>".to_owned()), "no JSON"),
        (Does::Says(String::new()), "no JSON"),
        (Does::Says("[".repeat(100_000)), "no JSON"),
        (Does::Says("x".repeat(2 << 20)), "too long"),
        (Does::Says("[]".to_owned()), "no observation"),
        (Does::Says(json!({"type": "state", "data": {}}).to_string()), "no observation"),
        (error("EXECUTION_ERROR"), "EXECUTION_ERROR: so it is"),
        (observes(json!({"observation": "x", "reward": "1"})), "no finite number"),
        (observes(json!({"reward": 1})), "has no \"observation\""),
        (observes(json!({"observation": "", "reward": 1, "done": false})), "says nothing"),
        (observes(json!(null)), "has no \"observation\""),
    ];
    for (number, (does, said)) in (1..).zip(wrong) {
        script.does([observes(json!({"observation": "Go"})), does]);
        let ready = reset(&mut actor, id(number), "{}").await;
        assert!(matches!(ready, EnvironmentReply::Ready { .. }), "{said}: {ready:?}");
        let EnvironmentReply::Failed { reason, detail, .. } = actor.step(number, "x").await else {
            panic!("{said} was no failure")
        };
        assert_eq!(reason, FailReason::Environment, "{detail}");
        assert!(detail.contains(said) && detail.len() < 600, "{said}: {detail}");
    }
    script.does([observes(json!({"observation": "still here"}))]);
    assert_eq!(actor.observed_by(0, "x", Speaker::User).await, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_a_failure_within_the_timeout() {
    let script = Script::start().await;
    // Connections wait in the listener's queue, and nobody takes them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", silent.local_addr().unwrap());
    let world = script.world(json!({"retries": 0, "url": url})).await;
    let mut actor = Episodes::connect(world.address()).await.unwrap();
    let since = tokio::time::Instant::now();
    let EnvironmentReply::Failed { detail, .. } = reset(&mut actor, id(0), "{}").await else { panic!() };
    assert!(detail.contains("not connected within"), "{detail}");
    assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
}
