//! A ring whose processes prove who they are: it trains what it trains without, and every response is graded
//! by its own prompt's fields, which no actor has.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use proto::pb;
use proto::pb::reward_server_client::RewardServerClient;
use proto::pb::weight_source_client::WeightSourceClient;
use serde_json::Value;
use service::grpc::connect;
use service::{Security, SecurityConfig};
use tests::{TinyRing, binary};
use tonic::Code;

/// Graded by a field of the prompt.
const SCORERS: &str = "reward_server.scorers=[{kind = \"numeric-match\", field = \"label\"}, \
                       {kind = \"length-penalty\", weight = 0.1, free_tokens = 1, max_tokens = 12}]";

fn ring(folder: &Path) -> TinyRing {
    let ring = TinyRing::new(folder).unwrap();
    let mut lines = String::new();
    for number in 0..64 {
        let (a, b) = (number % 8, number / 8);
        let sum = a + b;
        writeln!(
            lines,
            "{{\"prompt\": \"{a} plus {b} is\", \"response\": \" {sum}.\", \"label\": {sum}, \"test\": \"hidden\"}}"
        )
        .unwrap();
    }
    fs::write(folder.join("data.jsonl"), lines).unwrap();
    ring.with(SCORERS).with("coordinator.samples.per_batch=32").with("processes.reward_servers=2")
}

fn sluice(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary("sluice").unwrap()).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The last number of a text, as far as this task needs it.
fn last_number(text: &str) -> Option<i64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number = digits.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    let sign = if digits.strip_suffix(number)?.ends_with('-') { -1 } else { 1 };
    Some(sign * number.parse::<i64>().ok()?)
}

/// Grades every response that was written down anew.
fn assert_graded_by_its_own_prompt(ring: &TinyRing) {
    let samples = fs::read_to_string(ring.output().join("ring/samples.jsonl")).unwrap();
    let mut by_number = [0; 2];
    for line in samples.lines() {
        let sample: Value = serde_json::from_str(line).unwrap();
        let (Some(prompt), Some(response)) = (sample["prompt"].as_str(), sample["response"].as_str()) else {
            continue;
        };
        let words: Vec<&str> = prompt.split(' ').collect();
        let sum = words[0].parse::<i64>().unwrap() + words[2].parse::<i64>().unwrap();
        let right = last_number(response) == Some(sum);
        let given = sample["scorers"]["numeric-match"].as_f64().unwrap();
        assert_eq!(given, f64::from(u8::from(right)), "{line}");
        by_number[usize::from(right)] += 1;
    }
    println!("{} wrong and {} right responses", by_number[0], by_number[1]);
    assert!(by_number.iter().all(|count| *count > 0), "{by_number:?}");
}

#[test]
fn a_ring_that_asks_for_tokens_and_certificates_trains_what_an_open_one_does() {
    let (plain, guarded) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = ring(plain.path());
    open.run().unwrap();
    assert_graded_by_its_own_prompt(&open);

    let path = |name: &str| guarded.path().join(name).display().to_string();
    assert_eq!(sluice(&["token", "new", &path("token")]).0, Some(0));
    assert_eq!(sluice(&["certs", &path("certs")]).0, Some(0));
    let secured = ring(guarded.path())
        .with(&format!("security.token_file={}", path("token")))
        .with(&format!("security.certificates={}", path("certs")));
    secured.run().unwrap();
    assert_graded_by_its_own_prompt(&secured);
    assert_eq!(secured.steps().unwrap().len(), open.steps().unwrap().len());
    assert!(secured.weights().unwrap() == open.weights().unwrap(), "another policy came out");
    for role in ["coordinator", "reward-server-0", "learner", "actor-0"] {
        let log = secured.log(role).unwrap();
        assert!(!log.contains(" refused "), "{role}: {log}");
    }
}

/// Where a process is reached, by the names of its ports.
fn addresses(ring: &TinyRing, process: &str) -> Value {
    let file = ring.output().join(format!("ring/{process}.address.json"));
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// What somebody is answered who calls everything that this port has.
async fn answers(process: &str, address: &str, security: &Security) -> Vec<Code> {
    let channel = connect(address, "caller", security).await.unwrap();
    if process == "reward-server-0" {
        let mut client = RewardServerClient::new(channel);
        let scored = client.score(tokio_stream::empty()).await.err();
        let played = client.environment(tokio_stream::empty()).await.err();
        return [scored, played].map(|status| status.map_or(Code::Ok, |status| status.code())).into();
    }
    let mut client = WeightSourceClient::new(channel);
    let described = client.describe(pb::DescribeRequest { hash: Vec::new() }).await.err();
    let pulled = client.pull(pb::PullRequest { hash: vec![0; 32], offset: 0 }).await.err();
    [described, pulled].map(|status| status.map_or(Code::Ok, |status| status.code())).into()
}

#[tokio::test]
async fn rewards_and_weights_are_for_actors_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    assert_eq!(sluice(&["token", "new", &path("token")]).0, Some(0));
    assert_eq!(sluice(&["token", "roles", &path("token"), &path("roles")]).0, Some(0));
    let ring = ring(folder.path())
        .with(&format!("security.token_file={}", path("token")))
        .with("actor.listen_weights=127.0.0.1:0")
        .with("coordinator.batches=100000");
    let mut running = ring.start().unwrap();
    running.wait_for_batches(2).unwrap();
    let of_role = |role: &'static str| {
        let token_file = Some(folder.path().join("roles").join(role));
        Security::load(role, &SecurityConfig { token_file, ..SecurityConfig::default() }).unwrap()
    };
    let observer = fs::read_to_string(folder.path().join("roles/observer")).unwrap();
    let observer = observer.split_whitespace().next_back().unwrap();
    for (process, port) in [("reward-server-0", "grpc"), ("learner", "grpc"), ("actor-0", "weights")] {
        let listening = addresses(&ring, process);
        let address = listening[port].as_str().unwrap();
        let stranger = answers(process, address, &Security::open()).await;
        assert_eq!(stranger, [Code::Unauthenticated; 2], "{process}");
        for role in ["observer", "learner", "reward-server", "operator"] {
            let other = answers(process, address, &of_role(role)).await;
            assert_eq!(other, [Code::PermissionDenied; 2], "{process} to {role}");
        }
        let actor = answers(process, address, &of_role("actor")).await;
        let refusals = [Code::Unauthenticated, Code::PermissionDenied];
        assert!(actor.iter().all(|code| !refusals.contains(code)), "{process} to an actor: {actor:?}");
        let page = ureq::get(format!("http://{}/metrics", listening["metrics"].as_str().unwrap()))
            .header("Authorization", format!("Bearer {observer}"))
            .call()
            .unwrap();
        let page = page.into_body().read_to_string().unwrap();
        for (reason, count) in [("no_token", 2), ("other_role", 8)] {
            let line = format!("rlhf_refused_total{{reason=\"{reason}\"}} {count}");
            assert!(page.contains(&line), "{process}: no {line} in {page}");
        }
        let said = ring.log(process).unwrap().lines().filter(|line| line.contains(" refused ")).count();
        assert_eq!(said, 1, "{process}: once a minute for an address");
    }
    running.stop().unwrap();
    let (status, said) = running.end().unwrap();
    assert!(status.success() && !said.contains("restart(s)"), "{said}");
}

#[test]
fn a_token_file_that_is_missing_is_named_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let ring = ring(folder.path()).with("security.token_file=/nonexistent/token");
    let output = ring.command().unwrap().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("security.token_file") && said.contains("sluice token new"), "{said}");
    assert!(!ring.output().join("ring").exists());
}
