//! Agents that lease episodes over HTTP and play them with loops of their own.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use types::link::actor::ActorReport;
use types::{FailReason, FinishReason, PolicyVersion, SamplingParams};

use crate::grpc::{self, ScoreStream};
use crate::world::{Link, World, soon, tokenizer};

/// An actor for agents, with a reward server.
struct Playing {
    world: World,
    link: Link,
    scores: ScoreStream,
    address: SocketAddr,
}

impl Playing {
    async fn start() -> Self {
        let mut world = World::start(|config| {
            config.serve.enabled = true;
            config.agents.enabled = true;
            config.agents.calls = 3;
            config.agents.max_tokens = 40;
            config.agents.heartbeat_timeout = Duration::from_secs(2);
        })
        .await;
        let [("openai", address)] = world.bound[..] else { panic!("{:?}", world.bound) };
        let (server, mut scores) = grpc::reward_server(&mut world.tasks).await;
        let sampling = SamplingParams { max_new_tokens: 6, ignore_eos: true, ..SamplingParams::default() };
        let link = world.ready(sampling).await;
        link.reward_servers(&[server]).await;
        let scores = soon("a stream", scores.recv()).await.unwrap();
        Self { world, link, scores, address }
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let head = format!("POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        soon("a reply", stream.read_to_string(&mut reply)).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    /// An agent's episode, and the path of its pages.
    async fn lease(&self) -> (Value, String) {
        let (status, leased) = self.post("/v1/episodes", &json!({"wait_seconds": 30})).await;
        assert_eq!(status, 200, "{leased}");
        let base = leased["base_url"].as_str().unwrap();
        let path = base.strip_prefix(&format!("http://{}", self.address)).unwrap().to_owned();
        assert_eq!(path, format!("/v1/episodes/{}", leased["id"].as_str().unwrap()));
        (leased, path)
    }

    /// Waits until the actor asks for work, because an agent does.
    async fn asked_for_work(&mut self) {
        let asked = self.link.until("room", |report| match report {
            ActorReport::Load(load) if load.free_slots > 0 => Some(()),
            _ => None,
        });
        soon("an actor with room", asked).await;
    }

    async fn failure(&mut self) -> types::RolloutFailure {
        let failed = self.link.until("the failure", |report| match report {
            ActorReport::Failed(failure) => Some(failure),
            _ => None,
        });
        soon("a failure", failed).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_calls_become_one_rollout_with_its_reward() {
    let mut playing = Playing::start().await;
    assert_eq!(playing.post("/v1/episodes", &json!({"wait_seconds": 0.05})).await.0, 204);
    let wanted = playing.link.lease(0, 1).await;
    let (leased, path) = playing.lease().await;
    assert_eq!((&leased["prompt"], &leased["attempt"]), (&json!("the fox"), &json!(wanted[0].to_string())));
    assert!(leased["deadline_seconds"].as_f64().unwrap() > 40.0, "{leased}");

    let completions = format!("{path}/completions");
    let refused = playing.post(&completions, &json!({"prompt": "the fox", "temperature": 0.5})).await;
    assert!(refused.0 == 400 && refused.1.to_string().contains("temperature"), "{refused:?}");
    let (status, first) = playing.post(&completions, &json!({"prompt": "the fox", "logprobs": 0})).await;
    assert_eq!(status, 200, "{first}");
    let text = first["choices"][0]["text"].as_str().unwrap();
    let logprobs = first["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    let logprobs: Vec<f32> = logprobs.iter().map(|logprob| logprob.as_f64().unwrap() as f32).collect();
    assert_eq!(first["choices"][0]["weight_versions"][0]["version"], json!(1));
    let (status, second) =
        playing.post(&completions, &json!({"prompt": format!("the fox{text} and"), "max_tokens": 4})).await;
    assert_eq!((status, &second["usage"]["completion_tokens"]), (200, &json!(4)), "{second}");
    let (status, third) = playing.post(&completions, &json!({"prompt": "in short"})).await;
    assert_eq!(status, 200, "{third}");
    let (status, refused) = playing.post(&completions, &json!({"prompt": "again"})).await;
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("episode_exhausted")));

    let finish = format!("{path}/finish");
    let (status, finished) = playing.post(&finish, &json!({"reward": 0.75})).await;
    let expected = json!({"calls": 3, "id": leased["id"], "reward": 0.75, "sequences": 2, "status": "finished", "tokens": 16});
    assert_eq!((status, &finished), (200, &expected));
    assert_eq!(playing.post(&finish, &json!({"reward": 0.75})).await, (200, expected), "said again");
    assert_eq!(playing.post(&finish, &json!({"reward": 1})).await.0, 409);
    assert_eq!(playing.post(&completions, &json!({"prompt": "the fox"})).await.0, 410);
    assert_eq!(playing.post(&finish.replace("e0", "e1"), &json!({})).await.0, 404);

    let rollout = playing.scores.rollout().await;
    assert_eq!((rollout.id(), rollout.reward()), (wanted[0], Some(0.75)));
    assert_eq!(rollout.finish_reason(), FinishReason::Length, "a call was refused");
    assert_eq!(rollout.turns().iter().map(ExactSizeIterator::len).collect::<Vec<_>>(), [6, 4, 6]);
    assert_eq!(rollout.rollout_logprobs()[..6], logprobs, "what the agent was told is what is trained on");
    assert_eq!(rollout.oldest_version(), PolicyVersion(1));
    let (sequence, beginnings, tokenizer) = (rollout.sequence(), rollout.beginnings(), tokenizer());
    let [further] = beginnings[..] else { panic!("{beginnings:?}") };
    let decoded = |tokens: &[u32]| tokenizer.decode(tokens, false).unwrap();
    assert!(decoded(&sequence[..further]).starts_with(&format!("the fox{text} and")));
    assert!(decoded(&sequence[further..]).starts_with("in short"));
    playing.world.finish(playing.link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_agent_has_failed_its_attempt_and_nothing_is_scored() {
    let mut playing = Playing::start().await;
    let wanted = playing.link.lease(0, 2).await;
    let (_, lost) = playing.lease().await;
    let (status, _) = playing.post(&format!("{lost}/completions"), &json!({"prompt": "the fox"})).await;
    assert_eq!(status, 200);
    let failure = playing.failure().await;
    assert_eq!((failure.id, failure.reason, failure.response_tokens), (wanted[0], FailReason::Agent, 6));
    assert!(failure.detail.contains("silent"), "{}", failure.detail);
    let (status, gone) = playing.post(&format!("{lost}/finish"), &json!({"reward": 1})).await;
    assert!(status == 410 && gone.to_string().contains("played again"), "{gone}");

    // One that beats is not lost, and one that says that it has failed is believed.
    let (_, alive) = playing.lease().await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(playing.post(&format!("{alive}/heartbeat"), &json!({})).await.0, 200);
    }
    let (status, said) = playing.post(&format!("{alive}/finish"), &json!({"failed": "no network"})).await;
    assert_eq!((status, &said["status"]), (200, &json!("failed")));
    let failure = playing.failure().await;
    assert_eq!((failure.id, failure.reason), (wanted[1], FailReason::Agent));
    assert!(failure.detail.contains("no network"), "{}", failure.detail);
    playing.world.finish(playing.link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_is_asked_for_while_agents_wait_and_handed_back_with_the_actor() {
    let mut playing = Playing::start().await;
    let address = playing.address;
    let mut asks = JoinSet::new();
    asks.spawn(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            "POST /v1/episodes HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    });
    playing.asked_for_work().await;
    let wanted = playing.link.lease(0, 2).await;
    let reply = soon("an episode", asks.join_next()).await.unwrap().unwrap();
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains(&wanted[0].to_string()), "{reply}");
    playing.link.command(types::link::actor::ActorCommand::Drain).await;
    let failure = playing.failure().await;
    assert_eq!((failure.id, failure.reason), (wanted[1], FailReason::Returned), "nobody had taken it");
    assert_eq!(playing.post("/v1/episodes", &json!({})).await.0, 410);
    // The other agent has said nothing.
    let failure = playing.failure().await;
    assert_eq!((failure.id, failure.reason), (wanted[0], FailReason::Agent));
    playing.world.token.cancel();
    playing.world.ends().await;
}
