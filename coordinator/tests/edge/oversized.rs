//! Messages, metadata and headers beyond what travels, and connections that grow old.

use std::net::SocketAddr;
use std::time::Duration;

use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use proto::pb::observer_client::ObserverClient;
use service::Security;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::{Code, Request};
use types::BatchId;
use types::link::learner::{LearnerPhase, LearnerReport};

use crate::coordinator_process::{CoordinatorProcess, TIMEOUT};
use crate::fake_member::{learner, reward_server};
use crate::hostile::{Guarded, MEMORY_LIMIT_KIB, memory, told_to_go};
use crate::streams::{frame, head};

/// More than any message, by far.
const HUGE: usize = 100 << 20;

/// A report of a hundred megabytes.
fn huge_report() -> impl tokio_stream::Stream<Item = pb::ActorReport> + Send + 'static {
    let failure = pb::RolloutFailure { detail: "x".repeat(HUGE), ..pb::RolloutFailure::default() };
    let report = pb::ActorReport { report: Some(pb::actor_report::Report::Failed(failure)) };
    tokio_stream::once(report)
}

#[tokio::test]
async fn a_hundred_megabytes_of_message_metadata_or_header_change_nothing() {
    let guarded = Guarded::start().await;
    let address: SocketAddr = guarded.coordinator.address.parse().unwrap();
    let (before, memory_before) = (guarded.state().await, memory(&guarded.coordinator));

    for (security, code) in [
        (Security::open(), Code::Unauthenticated),
        (guarded.security("learner"), Code::PermissionDenied),
        (guarded.security("actor"), Code::OutOfRange),
    ] {
        let channel = guarded.channel(&security).await;
        let mut client = CoordinatorClient::new(channel).max_encoding_message_size(2 * HUGE);
        let refused = client.act(huge_report()).await.err().unwrap();
        assert_eq!(refused.code(), code, "{refused}");
    }
    assert_eq!(guarded.refused("no_token").await, 1);
    assert_eq!(guarded.refused("other_role").await, 1);

    // A member's name of 31 MiB travels, and is no name.
    let mut hello = pb::ActorReport::from(crate::fake_member::actor_hello("a"));
    if let Some(pb::actor_report::Report::Hello(hello)) = &mut hello.report {
        hello.member = "a".repeat(31 << 20);
    }
    let channel = guarded.channel(&guarded.security("actor")).await;
    let mut client = CoordinatorClient::new(channel).max_encoding_message_size(2 * HUGE);
    let refused = client.act(tokio_stream::once(hello)).await.err().unwrap();
    assert_eq!(
        refused.code(),
        Code::InvalidArgument,
        "{}",
        &refused.message()[..200.min(refused.message().len())]
    );
    assert!(refused.message().len() < 10_000, "a name of {} letters is told", refused.message().len());

    // Metadata beyond what a list of headers may have, of somebody who may call.
    let channel = guarded.channel(&guarded.security("observer")).await;
    let mut asked = Request::new(pb::StatusRequest::default());
    asked.metadata_mut().insert("x-large", "x".repeat(1 << 20).parse().unwrap());
    let refused = timeout(TIMEOUT, ObserverClient::new(channel).status(asked)).await.unwrap();
    assert!(refused.is_err(), "a megabyte of metadata was taken");

    // A list of headers that never ends (CVE-2024-27316): one HEADERS frame, and CONTINUATION frames behind
    // it.
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let mut begun = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    begun.extend(frame(4, 0, 0, &[]));
    begun.extend(frame(1, 0, 1, &head("/sluice.v1.Observer/Status", address)));
    // Literal header fields without indexing: name "x", value of 100 letters.
    let field = [&[0x00, 0x01, b'x', 100][..], &[b'y'; 100]].concat();
    let more = frame(9, 0, 1, &field.repeat(150));
    let sending = async move {
        write.write_all(&begun).await?;
        for _ in 0..HUGE / more.len() {
            write.write_all(&more).await?;
        }
        std::io::Result::Ok(())
    };
    let mut answer = Vec::new();
    let reading = async { read.read_to_end(&mut answer).await };
    let (sent, _) = timeout(TIMEOUT, async { tokio::join!(sending, reading) }).await.unwrap();
    assert!(sent.is_err() || told_to_go(&answer).is_some(), "a hundred megabytes of headers were taken");

    let (after, log) = (memory(&guarded.coordinator), guarded.coordinator.log());
    println!("memory grew from {memory_before} to {after} KiB");
    // What was taken at most is one message of those that travel, and what the name was told with.
    assert!(after < memory_before + 3 * MEMORY_LIMIT_KIB, "from {memory_before} to {after} KiB");
    assert_eq!(guarded.times_said(), 1, "{log}");
    assert_eq!(guarded.state().await, before);
    assert!(!log.contains("panicked") && !log.contains("joined"), "{log}");
}

#[tokio::test]
async fn an_old_connection_is_told_to_go_and_its_streams_go_on() {
    let coordinator = CoordinatorProcess::start(&["service.security.connection_age=2s"]).await;
    let address: SocketAddr = coordinator.address.parse().unwrap();
    let mut member = learner(&coordinator.address, "learner", 1).await.unwrap();
    member.next().await.unwrap();
    let opened = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    stream.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let mut taken = [0; 1024];
    // Before the ping that it does not answer.
    while told_to_go(&answer).is_none() {
        let count = timeout(Duration::from_secs(8), stream.read(&mut taken)).await.unwrap().unwrap();
        assert!(count > 0, "closed after {:?} without a word", opened.elapsed());
        answer.extend(&taken[..count]);
    }
    assert_eq!(told_to_go(&answer), Some(0), "no error: it is to come back");
    assert!(opened.elapsed() >= Duration::from_secs(2), "{:?}", opened.elapsed());
    // The member's connection was told so too, and its stream works on in both directions.
    tokio::time::sleep(Duration::from_secs(3)).await;
    member.say(LearnerReport::Alive(LearnerPhase::Waiting)).await;
    member.say(LearnerReport::Checkpointed(BatchId(0))).await;
    reward_server(&coordinator.address, "r", 1).await.unwrap().next().await.unwrap();
    let log = coordinator.log();
    assert!(!log.contains("lost") && !log.contains("stream ended"), "{log}");
    assert!(member.try_say(LearnerReport::Alive(LearnerPhase::Waiting)).await);
}
