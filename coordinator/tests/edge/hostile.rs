//! Peers that mean harm: whatever they do is refused, counted, said once, and changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use proto::pb::observer_client::ObserverClient;
use serde_json::Value;
use service::grpc::{Channel, connect};
use service::security::{Secret, role_file};
use service::{Security, SecurityConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};
use types::link::actor::{ActorLoad, ActorReport};

use crate::coordinator_process::{CoordinatorProcess, TIMEOUT};
use crate::fake_member::{actor, learner, reward_server};
use crate::streams::{closed, frame, get, head};

/// Memory that no crowd of strangers may take.
pub(crate) const MEMORY_LIMIT_KIB: u64 = 32 << 10;

/// A coordinator that asks who comes.
pub(crate) struct Guarded {
    pub(crate) coordinator: CoordinatorProcess,
    secret: Secret,
    folder: tempfile::TempDir,
}

impl Guarded {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (secret, file) = (Secret::random().unwrap(), folder.path().join("token"));
        std::fs::write(&file, role_file(&secret, "coordinator")).unwrap();
        let setting = format!("service.security.token_file={}", file.display());
        Self { coordinator: CoordinatorProcess::start(&[&setting]).await, secret, folder }
    }

    /// What somebody with this role's file shows.
    pub(crate) fn security(&self, role: &'static str) -> Security {
        security_of(self.folder.path(), &self.secret, role)
    }

    /// The coordinator's address for a member of this role.
    pub(crate) fn address(&self, role: &str) -> String {
        format!("{}@{}", self.secret.token_of(role), self.coordinator.address)
    }

    pub(crate) async fn channel(&self, security: &Security) -> Channel {
        connect(&self.coordinator.address, "coordinator", security).await.unwrap()
    }

    /// What the run has come to, without the time.
    pub(crate) async fn state(&self) -> Value {
        let channel = self.channel(&self.security("observer")).await;
        let reply = ObserverClient::new(channel).status(pb::StatusRequest::default()).await.unwrap();
        let status: Value = serde_json::from_str(&reply.into_inner().json).unwrap();
        let kept = ["actors", "reward_servers", "learner", "account", "trained", "phase", "failures"];
        kept.iter()
            .map(|key| ((*key).to_owned(), status[*key].clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// A page, with a token.
    pub(crate) async fn page(&self, path: &str, token: Option<&str>) -> (u16, String) {
        let header = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        get(&self.coordinator.metrics, path, &header).await
    }

    /// How many were refused for a reason.
    pub(crate) async fn refused(&self, reason: &str) -> u64 {
        let token = self.secret.token_of("observer");
        let (status, page) = self.page("/metrics", Some(&token)).await;
        assert_eq!(status, 200, "{page}");
        let name = format!("rlhf_refused_total{{reason=\"{reason}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(name.as_str()));
        line.unwrap_or_else(|| panic!("{name} in {page}")).parse().unwrap()
    }

    pub(crate) fn times_said(&self) -> usize {
        self.coordinator.log().lines().filter(|line| line.contains(" refused ")).count()
    }
}

fn security_of(folder: &std::path::Path, secret: &Secret, role: &'static str) -> Security {
    let file = folder.join(format!("{role}.token"));
    std::fs::write(&file, role_file(secret, role)).unwrap();
    let config = SecurityConfig { token_file: Some(file), ..SecurityConfig::default() };
    Security::load(role, &config).unwrap()
}

/// Calls everything there is, and returns why each call was refused.
async fn try_everything(channel: Channel) -> Vec<(&'static str, Status)> {
    let mut coordinator = CoordinatorClient::new(channel.clone());
    let mut observer = ObserverClient::new(channel);
    let fields = pb::FieldsRequest { run: "run".to_owned(), epoch: 0, ordinal: 0 };
    let mut refused = Vec::new();
    refused.extend(coordinator.act(tokio_stream::pending()).await.err().map(|status| ("act", status)));
    refused.extend(coordinator.reward(tokio_stream::pending()).await.err().map(|status| ("reward", status)));
    refused.extend(coordinator.learn(tokio_stream::pending()).await.err().map(|status| ("learn", status)));
    refused.extend(coordinator.fields(fields).await.err().map(|status| ("fields", status)));
    refused
        .extend(observer.status(pb::StatusRequest::default()).await.err().map(|status| ("status", status)));
    refused.extend(observer.drain(pb::DrainRequest {}).await.err().map(|status| ("drain", status)));
    refused
}

#[tokio::test]
async fn who_cannot_prove_a_role_that_may_is_refused_and_changes_nothing() {
    let guarded = Guarded::start().await;
    let before = guarded.state().await;

    let refused = try_everything(guarded.channel(&Security::open()).await).await;
    assert_eq!(refused.len(), 6, "{refused:?}");
    assert!(refused.iter().all(|(_, status)| status.code() == Code::Unauthenticated), "{refused:?}");
    assert!(refused[0].1.message().contains("no token"), "{refused:?}");

    let strange = security_of(guarded.folder.path(), &Secret::random().unwrap(), "learner");
    let refused = try_everything(guarded.channel(&strange).await).await;
    assert_eq!(refused.len(), 6, "{refused:?}");
    assert!(refused.iter().all(|(_, status)| status.code() == Code::Unauthenticated), "{refused:?}");
    assert!(refused[0].1.message().contains("none of this run's"), "{refused:?}");

    // An actor as anything else; a learner, a reward server and somebody who only looks as an actor.
    let cases: [(&'static str, &[&str]); 4] = [
        ("actor", &["reward", "learn", "fields", "status", "drain"]),
        ("learner", &["act", "reward", "fields", "status", "drain"]),
        ("reward-server", &["act", "learn", "status", "drain"]),
        ("observer", &["act", "reward", "learn", "fields", "drain"]),
    ];
    let mut trying = JoinSet::new();
    for (role, may_not) in cases {
        let channel = guarded.channel(&guarded.security(role)).await;
        trying.spawn(async move { (role, may_not, try_everything(channel).await) });
    }
    let mut of_role = 0;
    while let Some(tried) = timeout(TIMEOUT, trying.join_next()).await.unwrap() {
        let (role, may_not, mut refused) = tried.unwrap();
        // What it may call fails in other ways: nothing is said on its streams.
        refused.retain(|(_, status)| status.code() == Code::PermissionDenied);
        assert_eq!(refused.iter().map(|(call, _)| *call).collect::<Vec<_>>(), may_not, "{role}");
        assert!(refused.iter().all(|(_, status)| status.message().contains(role)), "{refused:?}");
        of_role += refused.len() as u64;
    }

    assert_eq!(guarded.refused("no_token").await, 6);
    assert_eq!(guarded.refused("wrong_token").await, 6);
    assert_eq!(guarded.refused("other_role").await, of_role);
    assert_eq!(guarded.times_said(), 1, "{}", guarded.coordinator.log());
    assert_eq!(guarded.state().await, before);
    let log = guarded.coordinator.log();
    assert!(!log.contains("joined") && !log.contains(&guarded.secret.token_of("actor")), "{log}");

    // And who can is served.
    learner(&guarded.address("learner"), "learner", 1).await.unwrap().next().await.unwrap();
    reward_server(&guarded.address("reward-server"), "r", 1).await.unwrap().next().await.unwrap();
    actor(&guarded.address("actor"), "a").await.unwrap().next().await.unwrap();
}

#[tokio::test]
async fn pages_ask_for_a_token_and_probes_need_none() {
    let guarded = Guarded::start().await;
    for path in ["/", "/metrics", "/status.json", "/api/steps", "/nothing"] {
        let (status, page) = guarded.page(path, None).await;
        assert_eq!(status, 401, "{path}: {page}");
        let (status, page) = guarded.page(path, Some(&guarded.secret.token_of("actor"))).await;
        assert_eq!(status, 403, "{path}: {page}");
    }
    for path in ["/health", "/ready"] {
        assert_eq!(guarded.page(path, None).await.0, 200, "{path}");
    }
    let token = guarded.secret.token_of("observer");
    let (status, page) = guarded.page("/status.json", Some(&token)).await;
    assert!(status == 200 && page.contains("\"trained\""), "{page}");
    // A browser shows the token once, and the cookie from then on.
    let (status, page) = guarded.page(&format!("/status.json?token={token}"), None).await;
    assert_eq!(status, 303, "{page}");
    let cookie = page.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let cookie = cookie.split(';').next().unwrap();
    let (status, page) =
        get(&guarded.coordinator.metrics, "/status.json", &format!("Cookie: {cookie}\r\n")).await;
    assert_eq!(status, 200, "{page}");
    let (status, _) = guarded.page("/status.json?token=wrong", None).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn an_exchanged_secret_counts_without_a_restart() {
    let guarded = Guarded::start().await;
    guarded.state().await;
    let new = Secret::random().unwrap();
    // Written beside it and put in its place, as a mounted secret is exchanged.
    let (beside, file) = (guarded.folder.path().join("new"), guarded.folder.path().join("token"));
    std::fs::write(&beside, role_file(&new, "coordinator")).unwrap();
    std::fs::rename(&beside, &file).unwrap();
    let security = security_of(guarded.folder.path(), &new, "observer");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let channel = guarded.channel(&security).await;
        match ObserverClient::new(channel).status(pb::StatusRequest::default()).await {
            Ok(_) => break,
            Err(status) => assert!(Instant::now() < deadline, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let old = guarded.channel(&guarded.security("observer")).await;
    let refused = ObserverClient::new(old).status(pb::StatusRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    // One that cannot be used takes nothing away.
    std::fs::write(&file, "boss 0123456789012345678901234567890123456789").unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let channel = guarded.channel(&security).await;
    ObserverClient::new(channel).status(pb::StatusRequest::default()).await.unwrap();
    assert!(guarded.coordinator.log().contains("those from before count on"));
}

#[tokio::test]
async fn an_actor_is_given_what_it_generates_from_and_nothing_else() {
    let guarded = Guarded::start().await;
    let mut learner = learner(&guarded.address("learner"), "learner", 1).await.unwrap();
    learner.next().await.unwrap();
    let mut server = reward_server(&guarded.address("reward-server"), "r", 1).await.unwrap();
    server.next().await.unwrap();
    let mut actor = actor(&guarded.address("actor"), "a").await.unwrap();
    let mut seen = String::new();
    let weights = loop {
        let command = actor.next().await.unwrap();
        seen += &format!("{command:?}\n");
        if let Some(pb::actor_command::Command::PullWeights(pull)) = command.command {
            break pb::WeightsConfirmed { version: pull.version, hash: pull.hash };
        }
    };
    let confirmed = pb::actor_report::Report::WeightsConfirmed(weights);
    actor.say(pb::ActorReport { report: Some(confirmed) }).await;
    actor.say(ActorReport::Load(ActorLoad { free_slots: 64, ..ActorLoad::default() })).await;
    let prompt = loop {
        let command = actor.next().await.unwrap();
        seen += &format!("{command:?}\n");
        if let Some(pb::actor_command::Command::Lease(lease)) = command.command {
            break lease.prompts[0].prompt.clone().unwrap();
        }
    };
    assert!(seen.contains("question ") && !seen.contains("hidden"), "{seen}");

    let request = pb::FieldsRequest { run: "run".to_owned(), epoch: prompt.epoch, ordinal: prompt.ordinal };
    let mut as_server = CoordinatorClient::new(guarded.channel(&guarded.security("reward-server")).await);
    let fields = as_server.fields(request.clone()).await.unwrap().into_inner().fields;
    let fields: Value = serde_json::from_str(&fields).unwrap();
    let Some(pb::prompt::Content::Text(text)) = prompt.content else { panic!("{seen}") };
    assert_eq!(fields["prompt"], text.as_str(), "of this very prompt");
    assert!(fields["test"].as_str().unwrap().contains("hidden"), "{fields}");
    let mut as_actor = CoordinatorClient::new(guarded.channel(&guarded.security("actor")).await);
    let refused = as_actor.fields(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let nowhere = pb::FieldsRequest { ordinal: 999, ..request.clone() };
    assert_eq!(as_server.fields(nowhere).await.unwrap_err().code(), Code::NotFound);
    let elsewhere = pb::FieldsRequest { run: "other".to_owned(), ..request };
    assert_eq!(as_server.fields(elsewhere).await.unwrap_err().code(), Code::FailedPrecondition);
}

/// Resident memory of a process, in KiB.
pub(crate) fn memory(coordinator: &CoordinatorProcess) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", coordinator.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn two_hundred_that_say_nothing_are_gone_in_five_seconds() {
    let guarded = Guarded::start().await;
    let before = guarded.state().await;
    let mut silent = JoinSet::new();
    for number in 0..200 {
        // Nothing, half a preface, half a request.
        let (address, said): (&str, &[u8]) = match number % 3 {
            0 => (&guarded.coordinator.address, b""),
            1 => (&guarded.coordinator.address, b"PRI * HTTP/2.0\r\n"),
            _ => (&guarded.coordinator.metrics, b"GET /metrics HTTP/1.1\r\nHost: "),
        };
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(said).await.unwrap();
        // Each has its own five seconds: on a busy host the last one comes long after the first.
        let came = Instant::now();
        silent.spawn(async move {
            closed(stream).await;
            came.elapsed()
        });
    }
    let asked = Instant::now();
    guarded.state().await;
    assert!(asked.elapsed() < Duration::from_secs(2), "who is known waits for nobody: {:?}", asked.elapsed());
    let lasted = timeout(Duration::from_secs(60), silent.join_all()).await.unwrap();
    let longest = lasted.into_iter().max().unwrap();
    println!("the longest of 200 silent connections was gone after {longest:?}");
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    assert_eq!(guarded.refused("silent").await, 200);
    assert_eq!(guarded.times_said(), 1);
    assert_eq!(guarded.state().await, before);
}

#[tokio::test]
async fn garbage_resets_and_bombs_take_no_memory_and_change_nothing() {
    let guarded = Guarded::start().await;
    let address: SocketAddr = guarded.coordinator.address.parse().unwrap();
    let (before, memory_before) = (guarded.state().await, memory(&guarded.coordinator));

    for number in 0..500u32 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(&blake3::hash(&number.to_le_bytes()).as_bytes().repeat(64)).await;
        timeout(TIMEOUT, closed(stream)).await.unwrap();
    }
    assert_eq!(guarded.refused("other_protocol").await, 500);

    // Streams that are opened and reset at once (CVE-2023-44487).
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    for number in 0..10_000 {
        let id = 2 * number + 1;
        bytes.extend(frame(1, 4, id, &head("/sluice.v1.Coordinator/Act", address)));
        bytes.extend(frame(3, 0, id, &8u32.to_be_bytes()));
    }
    let (mut read, mut write) = stream.split();
    let mut answer = Vec::new();
    let sending = async { write.write_all(&bytes).await };
    let reading = async { read.read_to_end(&mut answer).await };
    let ended = timeout(TIMEOUT, async { tokio::join!(sending, reading) }).await;
    assert!(ended.is_ok(), "the connection of who resets for ever is closed");
    // Not because it answers no ping: it is told to be calm (RFC 9113, section 7, code 11).
    assert_eq!(told_to_go(&answer), Some(11));

    // A message beyond what travels, of a stranger and of a member.
    let bomb = || {
        let failure = pb::RolloutFailure { detail: "x".repeat(33 << 20), ..pb::RolloutFailure::default() };
        let report = pb::ActorReport { report: Some(pb::actor_report::Report::Failed(failure)) };
        tokio_stream::once(report)
    };
    for (security, code) in [
        (Security::open(), Code::Unauthenticated),
        (guarded.security("learner"), Code::PermissionDenied),
        (guarded.security("actor"), Code::OutOfRange),
    ] {
        let channel = guarded.channel(&security).await;
        let mut client = CoordinatorClient::new(channel).max_encoding_message_size(64 << 20);
        let refused = client.act(bomb()).await.err().unwrap();
        assert_eq!(refused.code(), code, "{refused}");
    }

    let (after, log) = (memory(&guarded.coordinator), guarded.coordinator.log());
    println!("memory grew from {memory_before} to {after} KiB");
    assert!(after < memory_before + MEMORY_LIMIT_KIB, "from {memory_before} to {after} KiB");
    assert_eq!(guarded.times_said(), 1, "{log}");
    assert_eq!(guarded.state().await, before);
    assert!(!log.contains("panicked") && !log.contains("joined"), "{log}");
}

/// Opens ten thousand streams that never say hello, with a member's own token, for nobody else comes as far.
/// How they ended, the most memory meanwhile (KiB), and the longest time that a known peer waited.
async fn crowd(guarded: &Guarded) -> (BTreeMap<String, u32>, u64, Duration) {
    let known = guarded.channel(&guarded.security("observer")).await;
    let security = guarded.security("actor");
    let mut streams = JoinSet::new();
    for _ in 0..40 {
        let channel = guarded.channel(&security).await;
        for _ in 0..250 {
            let mut client = CoordinatorClient::new(channel.clone());
            streams.spawn(async move {
                client.act(tokio_stream::pending()).await.err().map(|status| status.code())
            });
        }
    }
    let (mut ends, mut most, mut longest) = (BTreeMap::new(), 0, Duration::ZERO);
    while !streams.is_empty() {
        let asked = Instant::now();
        ObserverClient::new(known.clone()).status(pb::StatusRequest::default()).await.unwrap();
        longest = longest.max(asked.elapsed());
        most = most.max(memory(&guarded.coordinator));
        while let Some(ended) = streams.try_join_next() {
            *ends.entry(format!("{:?}", ended.unwrap())).or_insert(0) += 1;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (ends, most, longest)
}

#[tokio::test]
async fn ten_thousand_streams_without_a_hello_take_little_and_give_it_back() {
    let guarded = Guarded::start().await;
    let (before, memory_before) = (guarded.state().await, memory(&guarded.coordinator));
    let (mut ends, most, longest) = crowd(&guarded).await;
    println!("{ends:?}; memory {memory_before}, at most {most} KiB; Status took {longest:?} at most");
    assert_eq!(ends.values().sum::<u32>(), 10_000);
    // Some wait for their ten seconds, the others are refused at once.
    assert!(ends.remove("Some(DeadlineExceeded)").is_some_and(|waited| waited >= 1000), "{ends:?}");
    assert_eq!(ends.keys().collect::<Vec<_>>(), ["Some(ResourceExhausted)"]);
    assert!(most < memory_before + MEMORY_LIMIT_KIB, "from {memory_before} to {most} KiB");
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    // It has been given back: the next crowds find room in what the first has left, or nearly so.
    for crowds in 2..=4 {
        let (_, again, _) = crowd(&guarded).await;
        println!("crowd {crowds}: at most {again} KiB");
        assert!(
            again < memory_before + 3 * MEMORY_LIMIT_KIB / 2,
            "crowd {crowds}: from {most} to {again} KiB"
        );
    }
    assert_eq!(guarded.state().await, before);
    // Who has something to say is heard.
    learner(&guarded.address("learner"), "learner", 1).await.unwrap().next().await.unwrap();
}

#[tokio::test]
async fn with_few_descriptors_a_crowd_on_both_ports_leaves_some_for_the_process() {
    let coordinator = CoordinatorProcess::with_descriptors(128).await;
    let known = connect(&coordinator.address, "coordinator", &Security::open()).await.unwrap();
    let mut observer = ObserverClient::new(known);
    observer.status(pb::StatusRequest::default()).await.unwrap();
    let mut silent = Vec::new();
    for number in 0..200 {
        let address = if number % 2 == 0 { &coordinator.address } else { &coordinator.metrics };
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let asked = Instant::now();
    observer.status(pb::StatusRequest::default()).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", coordinator.id())).unwrap().count();
    assert!(descriptors < 128, "{descriptors}");
    let log = coordinator.log();
    assert!(log.contains("turned away") && log.contains("64 connections are open"), "{log}");
    assert!(!log.contains("cannot accept connections"), "the process was out of descriptors: {log}");
    // They are gone, and there is room again.
    for stream in silent {
        timeout(TIMEOUT, closed(stream)).await.unwrap();
    }
    actor(&coordinator.address, "a").await.unwrap();
    let (status, _) = get(&coordinator.metrics, "/health", "").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn doors_that_stand_open_to_strangers_are_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("coordinator.toml");
    std::fs::write(folder.path().join("prompts.jsonl"), "{\"prompt\": \"x\"}\n").unwrap();
    std::fs::write(&config, "run = 'r'\nlisten = '0.0.0.0:0'\n[data]\npath = 'prompts.jsonl'\n").unwrap();
    let said = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sluice-coordinator"));
        command.arg("--config").arg(&config).arg("--check-config").args(more);
        let output = command.current_dir(folder.path()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, refused) = said(&[]);
    assert_eq!(code, Some(2), "{refused}");
    for part in ["coordinator.toml:2: listen is 0.0.0.0:0", "token_file", "insecure = true"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(said(&["--set", "service.security.insecure=true"]).0, Some(0));
    assert_eq!(said(&["--set", "service.security.token_file=token"]).0, Some(0));
    assert_eq!(said(&["--set", "listen=127.0.0.1:0"]).0, Some(0));
    let (code, refused) =
        said(&["--set", "listen=127.0.0.1:0", "--set", "service.listen_metrics=10.0.0.1:9464"]);
    assert!(code == Some(2) && refused.contains("service.listen_metrics is 10.0.0.1:9464"), "{refused}");
}

/// The reason of the first GOAWAY among these frames (RFC 9113, section 6.8).
pub(crate) fn told_to_go(mut frames: &[u8]) -> Option<u32> {
    while let Some((head, rest)) = frames.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = rest.get(..length)?;
        if head[3] == 7 {
            return payload.get(4..8)?.try_into().ok().map(u32::from_be_bytes);
        }
        frames = &rest[length..];
    }
    None
}
