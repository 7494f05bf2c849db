//! A running actor serves its policy on a port of its own.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use types::SamplingParams;
use types::link::actor::ActorCommand;

use crate::world::{World, soon};

async fn complete(address: std::net::SocketAddr) -> String {
    let body = r#"{"model": "policy", "prompt": "the fox", "max_tokens": 5}"#;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: here\r\nconnection: close\r\n";
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    soon("a reply", stream.read_to_string(&mut reply)).await.unwrap();
    reply
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_served_as_soon_as_it_has_weights() {
    let mut world = World::start(|config| config.serve.enabled = true).await;
    let [("openai", address)] = world.bound[..] else { panic!("{:?}", world.bound) };
    let early = complete(address).await;
    assert!(early.starts_with("HTTP/1.1 503") && early.contains("no weights yet"), "{early}");
    let link = world.ready(SamplingParams::default()).await;
    let reply = complete(address).await;
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("\"completion_tokens\":5"), "{reply}");
    link.command(ActorCommand::Finish).await;
    world.ends().await;
}
