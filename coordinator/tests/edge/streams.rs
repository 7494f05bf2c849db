//! Streams on the wire: how they end is counted, and what is spoilt ends nothing but itself.

use std::net::SocketAddr;
use std::time::Duration;

use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::coordinator_process::{CoordinatorProcess, TIMEOUT};
use crate::fake_member::{actor, actor_hello};

/// Asks for a page; its status and all that came.
pub(crate) async fn get(address: &str, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(TIMEOUT, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer[9..12].parse().unwrap(), answer)
}

/// Waits until a connection is closed by the other side.
pub(crate) async fn closed(mut stream: TcpStream) {
    let mut taken = [0; 1024];
    while stream.read(&mut taken).await.is_ok_and(|bytes| bytes > 0) {}
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a call, without compression (RFC 7541, section 6.2.2).
pub(crate) fn head(path: &str, host: SocketAddr) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let parts = [
        vec![0x83, 0x86],
        [vec![0x04], text(path)].concat(),
        [vec![0x01], text(&host.to_string())].concat(),
        [vec![0x0f, 0x10], text("application/grpc")].concat(),
        [vec![0x00], text("te"), text("trailers")].concat(),
    ];
    parts.concat()
}

/// A connection on which a call of an actor has begun, with this as its first DATA frame, if any.
async fn call(address: SocketAddr, data: Option<&[u8]>) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 4, 1, &head("/sluice.v1.Coordinator/Act", address)));
    bytes.extend(data.map(|data| frame(0, 0, 1, data)).unwrap_or_default());
    stream.write_all(&bytes).await.unwrap();
    stream
}

/// An actor's hello, as it goes into a DATA frame.
fn hello(name: &str) -> Vec<u8> {
    let hello = proto::pb::ActorReport::from(actor_hello(name)).encode_to_vec();
    [&[0], u32::try_from(hello.len()).unwrap().to_be_bytes().as_slice(), &hello].concat()
}

/// The first stream is given up: RST_STREAM with CANCEL.
fn reset() -> Vec<u8> {
    frame(3, 0, 1, &8u32.to_be_bytes())
}

/// Waits until a member has joined.
async fn joined(coordinator: &CoordinatorProcess, name: &str) {
    let deadline = Instant::now() + TIMEOUT;
    let line = format!("joined member={name} ");
    while !coordinator.log().contains(&line) {
        assert!(Instant::now() < deadline, "{line:?} is not in {}", coordinator.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until so many streams have ended in each way, and in no other.
async fn wait_for_ends(coordinator: &CoordinatorProcess, expected: &[(&str, u64)]) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let (_, page) = get(&coordinator.metrics, "/metrics", "").await;
        let ends = ["closed", "lost", "too_large", "unreadable", "no_hello"];
        let counted = ends.map(|end| {
            let name = format!("rlhf_streams_ended_total{{reason=\"{end}\"}} ");
            let line = page.lines().find_map(|line| line.strip_prefix(name.as_str()));
            (end, line.unwrap_or_else(|| panic!("{name} in {page}")).parse::<u64>().unwrap())
        });
        if counted.iter().filter(|(_, count)| *count > 0).eq(expected) {
            return;
        }
        assert!(Instant::now() < deadline, "{counted:?} and not {expected:?}: {}", coordinator.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn how_streams_end_is_counted() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let address: SocketAddr = coordinator.address.parse().unwrap();
    wait_for_ends(&coordinator, &[]).await;

    // A message that says it has 33 MiB, and one of three bytes that are none.
    let _large = call(address, Some(&[&[0], (33u32 << 20).to_be_bytes().as_slice(), b"x"].concat())).await;
    wait_for_ends(&coordinator, &[("too_large", 1)]).await;
    let _junk = call(address, Some(&[0, 0, 0, 0, 3, 0xff, 0xff, 0xff])).await;
    wait_for_ends(&coordinator, &[("too_large", 1), ("unreadable", 1)]).await;

    // Ended without a word.
    let mut silent = call(address, None).await;
    silent.write_all(&frame(0, 1, 1, &[])).await.unwrap();
    wait_for_ends(&coordinator, &[("too_large", 1), ("unreadable", 1), ("no_hello", 1)]).await;

    // Members that are given up and lost.
    let mut given_up = call(address, Some(&hello("given-up"))).await;
    joined(&coordinator, "given-up").await;
    given_up.write_all(&reset()).await.unwrap();
    let lost = call(address, Some(&hello("lost"))).await;
    joined(&coordinator, "lost").await;
    drop(lost);
    let others = [("lost", 1), ("too_large", 1), ("unreadable", 1), ("no_hello", 1)];
    wait_for_ends(&coordinator, &[&[("closed", 1)], others.as_slice()].concat()).await;

    // A member that comes and goes as it should.
    let mut leaving = call(address, Some(&hello("leaving"))).await;
    leaving.write_all(&frame(0, 1, 1, &[])).await.unwrap();
    wait_for_ends(&coordinator, &[&[("closed", 2)], others.as_slice()].concat()).await;
    assert!(!coordinator.log().contains("panicked"));
}

#[tokio::test]
async fn calls_with_spoilt_frames_end_nothing_but_themselves() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let address: SocketAddr = coordinator.address.parse().unwrap();
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    said.extend(frame(4, 0, 0, &[]));
    said.extend(frame(1, 4, 1, &head("/sluice.v1.Coordinator/Act", address)));
    said.extend(frame(0, 0, 1, &hello("a")));

    for number in 0..400u32 {
        // One to four bytes after the preface are others, by a hash of the number.
        let random = blake3::hash(&number.to_le_bytes());
        let mut bytes = said.clone();
        for spoil in random.as_bytes().chunks_exact(4).take(1 + number as usize % 4) {
            let at = 24 + usize::from(u16::from_le_bytes([spoil[0], spoil[1]])) % (bytes.len() - 24);
            bytes[at] = spoil[2];
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        timeout(TIMEOUT, closed(stream)).await.unwrap();
    }
    // Who comes after that is served.
    actor(&coordinator.address, "b").await.unwrap();
    let (status, _) = get(&coordinator.metrics, "/health", "").await;
    assert_eq!(status, 200);
    assert!(!coordinator.log().contains("panicked"), "{}", coordinator.log());
}

/// Streams that one connection may have open.
const MAX_STREAMS: u32 = 256;

/// Kind, stream and payload of the next frame (RFC 9113, section 4.1).
async fn next_frame(stream: &mut TcpStream) -> (u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    timeout(TIMEOUT, stream.read_exact(&mut head)).await.unwrap().unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; length];
    timeout(TIMEOUT, stream.read_exact(&mut payload)).await.unwrap().unwrap();
    (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
}

#[tokio::test]
async fn a_stream_too_many_of_a_connection_is_refused_and_the_others_go_on() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let address: SocketAddr = coordinator.address.parse().unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    let open = |number: u32| {
        let (id, head) = (2 * number + 1, head("/sluice.v1.Coordinator/Act", address));
        [frame(1, 4, id, &head), frame(0, 0, id, &hello(&format!("a{number}")))].concat()
    };
    (0..=MAX_STREAMS).for_each(|number| bytes.extend(open(number)));
    stream.write_all(&bytes).await.unwrap();
    // The one too many is refused (RST_STREAM with REFUSED_STREAM), so that its member may try again.
    let refused = loop {
        let (kind, id, payload) = next_frame(&mut stream).await;
        if kind == 3 {
            break (id, payload);
        }
        assert_ne!(kind, 7, "the connection ends: {payload:?}");
    };
    assert_eq!(refused, (2 * MAX_STREAMS + 1, 7u32.to_be_bytes().to_vec()));
    for number in [0, MAX_STREAMS - 1] {
        joined(&coordinator, &format!("a{number}")).await;
    }
    assert!(!coordinator.log().contains(&format!("joined member=a{MAX_STREAMS} ")));

    // There is room again when one is over, and other connections had room all the time.
    let _other = actor(&coordinator.address, "b").await.unwrap();
    stream.write_all(&reset()).await.unwrap();
    wait_for_ends(&coordinator, &[("closed", 1)]).await;
    stream.write_all(&open(MAX_STREAMS + 1)).await.unwrap();
    joined(&coordinator, &format!("a{}", MAX_STREAMS + 1)).await;
}
