//! Who waits for whom: a coordinator that was stopped, a member that does not read, and what the pages say.

use std::time::Duration;

use proto::pb;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use types::RolloutId;
use types::link::learner::{LearnerCommand, LearnerPhase, LearnerReport};

use crate::coordinator_process::{CoordinatorProcess, TIMEOUT};
use crate::fake_member::{actor, learner, load, make_ready, manifest, reward_server};
use crate::streams::get;
use crate::{failed, id, scored};

/// A page of a coordinator as JSON.
async fn page(coordinator: &CoordinatorProcess, path: &str) -> Value {
    let (status, answer) = get(&coordinator.metrics, path, "").await;
    assert_eq!(status, 200, "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}

/// Asks for a page until it says what is wanted.
async fn page_with(coordinator: &CoordinatorProcess, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let said = page(coordinator, path).await;
        if wanted(&said) {
            return said;
        }
        assert!(Instant::now() < deadline, "{path} goes on to say {said}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn nobody_pays_for_the_coordinators_own_absence() {
    let coordinator = CoordinatorProcess::start(&["heartbeat_timeout=2s", "lease_timeout=4s"]).await;
    let mut learner = learner(&coordinator.address, "learner", 1).await.unwrap();
    let mut server = reward_server(&coordinator.address, "r", 1).await.unwrap();
    let mut actor = actor(&coordinator.address, "a").await.unwrap();
    make_ready(&mut actor, 4).await;
    let leased: Vec<RolloutId> = actor
        .find(|command| match &command.command {
            Some(pb::actor_command::Command::Lease(lease)) => {
                let wanted = lease.prompts.iter().flat_map(|prompt| prompt.wanted.clone());
                Some(wanted.map(|id| id.try_into().unwrap()).collect())
            }
            _ => None,
        })
        .await;
    assert_eq!(leased.len(), 4);
    coordinator.signal("STOP");
    // Longer than anybody may be silent, and than a lease may take.
    sleep(Duration::from_secs(6)).await;
    coordinator.signal("CONT");
    learner.say(LearnerReport::Alive(LearnerPhase::Waiting)).await;
    actor.say(load(0)).await;
    for id in &leased[..3] {
        server.say(scored(*id, 0.5)).await;
    }
    let recorded = server.find(|command| match &command.command {
        Some(pb::reward_command::Command::Recorded(recorded)) => Some(recorded.ids.len()),
        _ => None,
    });
    assert!(recorded.await > 0);
    let status = page(&coordinator, "/status.json").await;
    for member in [&status["actors"][0], &status["reward_servers"][0], &status["learner"]] {
        assert_eq!(member["connected"], true, "{status}");
    }
    let account = &status["account"];
    assert_eq!((&account["issued"], &account["in_flight"]), (&4.into(), &4.into()), "{account}");
    assert_eq!(account["late_results"], 0, "its lease goes on: {account}");
    let log = coordinator.log();
    assert!(log.contains("was away") && !log.contains("lost") && !log.contains("lease"), "{log}");
    let next = tokio::time::timeout(Duration::from_millis(500), learner.find(|_| None::<()>)).await;
    assert!(next.is_err(), "its stream goes on");
}

#[tokio::test]
async fn a_member_that_reads_nothing_is_disconnected_and_the_others_are_served() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let deaf = reward_server(&coordinator.address, "deaf", 1).await.unwrap();
    // Each is answered with the reason why it cannot be accepted: more than sockets and outbox hold together.
    let mut said = 0;
    while said < 200_000 && deaf.try_say(failed(id(1), 42)).await {
        said += 1;
    }
    assert!(said > 1024, "its stream has ended after {said} reports");
    let deadline = Instant::now() + TIMEOUT;
    while !coordinator.log().contains("does not read its commands") {
        assert!(Instant::now() < deadline, "{said} reports said, {}", coordinator.log());
        sleep(Duration::from_millis(50)).await;
    }
    let mut server = reward_server(&coordinator.address, "r", 1).await.unwrap();
    server.next().await.unwrap();
    let status = page_with(&coordinator, "/status.json", |status| {
        status["reward_servers"].as_array().is_some_and(|servers| servers.len() == 2)
    });
    assert_eq!(status.await["reward_servers"][1]["member"], "r");
}

#[tokio::test]
async fn the_page_about_stalls_says_who_waits_for_whom_and_since_when() {
    let coordinator = CoordinatorProcess::start(&["hopeless_timeout=60s"]).await;
    let mut learner = learner(&coordinator.address, "learner", 1).await.unwrap();
    learner.next().await.unwrap();
    let mut actor = actor(&coordinator.address, "a").await.unwrap();
    make_ready(&mut actor, 3).await;
    let is_hopeless = |stall: &Value| stall["hopeless"].is_string();
    let first = page_with(&coordinator, "/debug/stall", is_hopeless).await;
    let sentence = "no actor has room for one group of 4 responses: the most is 3 (actor a)";
    assert!(first["hopeless"].as_str().unwrap().contains(sentence), "{first}");
    let wait_of = |stall: &Value, who: &str| {
        let waits = stall["waits"].as_array().unwrap();
        waits.iter().find(|wait| wait["who"].as_str().unwrap().starts_with(who)).cloned()
    };
    let batch = wait_of(&first, "batch b1").unwrap();
    assert_eq!(batch["waits_for"], "2 groups to train; it has 0, 0 prompts are open");
    let waiting = wait_of(&first, "learner learner (Waiting)").unwrap();
    assert_eq!(waiting["waits_for"], "batch b1 to be formed");
    let since = |stall: &Value| stall["still_for_seconds"].as_f64().unwrap();
    let second = page_with(&coordinator, "/debug/stall", |stall| since(stall) >= since(&first) + 0.2).await;
    assert!(wait_of(&second, "batch b1").unwrap()["seconds"].as_f64() > batch["seconds"].as_f64());
    actor.say(load(4)).await;
    let goes_on = |stall: &Value| stall["hopeless"].is_null() && wait_of(stall, "lease").is_some();
    let leased = page_with(&coordinator, "/debug/stall", goes_on).await;
    assert_eq!(wait_of(&leased, "lease").unwrap()["waits_for"], "4 responses of actor a");
}

#[tokio::test]
async fn what_changed_in_the_plan_is_on_the_page() {
    let mut coordinator = CoordinatorProcess::start(&["batches=40"]).await;
    assert_eq!(page(&coordinator, "/status.json").await["plan_changes"], Value::Array(Vec::new()));
    coordinator.start_again(&["batches=50"]);
    coordinator.listens().await;
    let status = page_with(&coordinator, "/status.json", |status| status["batches"] == 50).await;
    let changes = status["plan_changes"].as_array().unwrap();
    assert_eq!(changes.len(), 1, "{status}");
    assert_eq!(changes[0]["change"], "batches was 40 when the run began and is 50 now");
    assert_eq!(changes[0]["after"], 0);
}

/// A metric of a coordinator, if it has one under this name and these labels.
async fn metric(coordinator: &CoordinatorProcess, series: &str) -> Option<f64> {
    let (_, answer) = get(&coordinator.metrics, "/metrics", "").await;
    let line = answer.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

#[tokio::test]
async fn what_a_coordinator_knew_of_the_last_step_it_knows_again_after_a_restart() {
    let mut coordinator = CoordinatorProcess::start(&[]).await;
    for nothing_yet in [
        "rlhf_coordinator_responses_ended_total{outcome=\"failed\",reason=\"overload\"}",
        "rlhf_coordinator_reports_rejected_total{role=\"actor\"}",
        "rlhf_coordinator_short_batches_total",
    ] {
        assert_eq!(metric(&coordinator, nothing_yet).await, Some(0.0), "{nothing_yet}");
    }
    let at = "rlhf_coordinator_last_step_timestamp_seconds";
    assert_eq!(metric(&coordinator, at).await, None);
    let mut learner = learner(&coordinator.address, "learner", 1).await.unwrap();
    let server = reward_server(&coordinator.address, "r", 1).await.unwrap();
    let mut actor = actor(&coordinator.address, "a").await.unwrap();
    make_ready(&mut actor, 8).await;
    let mut leased: Vec<RolloutId> = Vec::new();
    while leased.len() < 8 {
        let ids = actor.find(|command| match &command.command {
            Some(pb::actor_command::Command::Lease(lease)) => {
                let wanted = lease.prompts.iter().flat_map(|prompt| prompt.wanted.clone());
                Some(wanted.map(|id| id.try_into().unwrap()).collect::<Vec<RolloutId>>())
            }
            _ => None,
        });
        leased.extend(ids.await);
    }
    for (place, id) in leased.iter().enumerate() {
        server.say(scored(*id, if place % 2 == 0 { 0.25 } else { 0.75 })).await;
    }
    let mut parts = proto::LearnerCommands::default();
    let batch = loop {
        let command = parts.push(learner.next().await.unwrap()).unwrap();
        if let Some(LearnerCommand::Batch(batch)) = command {
            break batch.id();
        }
    };
    let manifest = manifest(1);
    learner.say(LearnerReport::Trained { batch, manifest, metrics: Box::default() }).await;
    let deadline = Instant::now() + TIMEOUT;
    while metric(&coordinator, at).await.is_none() {
        assert!(Instant::now() < deadline, "the step is never measured");
        sleep(Duration::from_millis(50)).await;
    }
    let before = (metric(&coordinator, at).await, metric(&coordinator, "rlhf_step_score_mean").await);
    assert_eq!(before.1, Some(0.5));
    coordinator.start_again(&[]);
    coordinator.listens().await;
    page_with(&coordinator, "/status.json", |status| status["trained"] == 1).await;
    let after = (metric(&coordinator, at).await, metric(&coordinator, "rlhf_step_score_mean").await);
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_term_that_comes_twice_at_once_drains_and_one_that_comes_again_ends() {
    // A prompt is leased, so that the drain takes its time.
    let settings = ["drain_timeout=30s", "service.grace_period=60s"];
    let mut coordinator = CoordinatorProcess::start(&settings).await;
    let _learner = learner(&coordinator.address, "learner", 1).await.unwrap();
    let _server = reward_server(&coordinator.address, "r", 1).await.unwrap();
    let mut actor = actor(&coordinator.address, "a").await.unwrap();
    make_ready(&mut actor, 4).await;
    actor
        .find(|command| matches!(command.command, Some(pb::actor_command::Command::Lease(_))).then_some(()))
        .await;
    coordinator.signal("TERM");
    coordinator.signal("TERM");
    page_with(&coordinator, "/status.json", |status| status["phase"] != "running").await;
    let log = coordinator.log();
    assert!(log.contains("draining") && !log.contains("leaving without draining"), "{log}");
    sleep(Duration::from_millis(2100)).await;
    coordinator.signal("TERM");
    assert_eq!(coordinator.exit_code().await, Some(130), "{}", coordinator.log());
}

#[tokio::test]
async fn lines_of_json_say_whose_they_are_and_nothing_of_the_store() {
    let settings = ["run=mine", "service.log_format=json"];
    let mut coordinator = CoordinatorProcess::start(&settings).await;
    let _server = reward_server(&coordinator.address, "r", 1).await.unwrap();
    page_with(&coordinator, "/status.json", |status| status["reward_servers"][0]["connected"] == true).await;
    coordinator.signal("TERM");
    coordinator.exit_code().await;
    let log = coordinator.log();
    assert!(log.lines().count() > 3, "{log}");
    for line in log.lines() {
        let said: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!((&said["role"], &said["run"]), (&"coordinator".into(), &"mine".into()), "{line}");
        let target = said["target"].as_str().unwrap();
        assert!(!target.starts_with("fjall") && !target.starts_with("lsm_tree"), "{line}");
    }
}
