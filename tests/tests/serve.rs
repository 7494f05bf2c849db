//! `sluice serve` as a process: how it ends.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::future::Future;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{TinyRing, binary};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// Longer than anything here takes, shorter than the time that requests are given.
const STEP_TIMEOUT: Duration = Duration::from_secs(15);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(STEP_TIMEOUT, what).await.unwrap()
}

/// A server of this ring's policy, and where it listens.
async fn serve(ring: &TinyRing) -> (Child, String) {
    let mut command = Command::new(binary("sluice").unwrap());
    command.arg("serve").arg("--model").arg(ring.output().join("policy")).args(["--port", "0"]);
    command.args(["--served-model-name", "sums-7b"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut server = command.spawn().unwrap();
    let mut said = BufReader::new(server.stdout.take().unwrap()).lines();
    let url = soon(said.next_line()).await.unwrap().unwrap();
    let address = url.trim_start_matches("http://").trim_end_matches("/v1").to_owned();
    (server, address)
}

fn tell(server: &Child, signal: Signal) {
    let id = server.id().unwrap().cast_signed();
    kill(Pid::from_raw(id), signal).unwrap();
}

async fn end(mut server: Child) -> ExitStatus {
    soon(server.wait()).await.unwrap()
}

#[tokio::test]
async fn one_signal_waits_for_requests_and_a_second_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap().with("coordinator.batches=1");
    ring.run().unwrap();

    let (idle, address) = serve(&ring).await;
    let mut models = ureq::get(format!("http://{address}/v1/models")).call().unwrap();
    let models: serde_json::Value =
        serde_json::from_str(&models.body_mut().read_to_string().unwrap()).unwrap();
    assert_eq!(models["data"][0]["id"], "sums-7b", "{models}");
    tell(&idle, Signal::SIGTERM);
    assert!(end(idle).await.success());

    // A request whose body never comes.
    let (mut busy, address) = serve(&ring).await;
    let mut client = TcpStream::connect(&address).await.unwrap();
    let request = "POST /v1/completions HTTP/1.1\r\nhost: sluice\r\ncontent-length: 9\r\n\r\n{";
    client.write_all(request.as_bytes()).await.unwrap();
    assert!(ureq::get(format!("http://{address}/health")).call().is_ok());
    tell(&busy, Signal::SIGTERM);
    let let_in = async { while TcpStream::connect(&address).await.is_ok() {} };
    soon(let_in).await;
    assert_eq!(busy.try_wait().unwrap(), None, "the request under way was not waited for");
    tell(&busy, Signal::SIGINT);
    assert!(end(busy).await.success());
}
