//! The coordinator's edge, over real gRPC: members that are not what they should be harm nobody but
//! themselves, and are told why.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

#[path = "edge/certificates.rs"]
mod certificates;
#[path = "edge/coordinator_process.rs"]
mod coordinator_process;
#[path = "edge/fake_member.rs"]
mod fake_member;
#[path = "edge/hostile.rs"]
mod hostile;
#[path = "edge/oversized.rs"]
mod oversized;
#[path = "edge/streams.rs"]
mod streams;
#[path = "edge/vocabularies.rs"]
mod vocabularies;
#[path = "edge/waits.rs"]
mod waits;

use coordinator_process::CoordinatorProcess;
use fake_member::{actor, actor_hello, actor_saying, learner, load, make_ready, reward_server, served_by};
use proto::pb;
use service::CoordinatorTerm;
use tonic::Code;
use types::link::learner::LearnerReport;
use types::{BatchId, PromptId, RolloutId};

fn id(sibling: u16) -> RolloutId {
    RolloutId { prompt: PromptId { epoch: 0, ordinal: 0 }, sibling, attempt: 0 }
}

fn scored(id: RolloutId, score: f32) -> pb::RewardReport {
    let rollout = pb::Rollout {
        id: Some(id.into()),
        prompt_tokens: vec![1, 2],
        response_tokens: vec![3, 4],
        rollout_logprobs: vec![-0.5, -0.25],
        spans: vec![pb::Span { version: 0, tokens: 2 }],
        finish_reason: pb::FinishReason::Stop.into(),
        ..pb::Rollout::default()
    };
    let scored = pb::ScoredRollout { rollout: Some(rollout), score, ..pb::ScoredRollout::default() };
    pb::RewardReport { report: Some(pb::reward_report::Report::Scored(scored)) }
}

fn failed(id: RolloutId, reason: i32) -> pb::RewardReport {
    let failure = pb::RolloutFailure { id: Some(id.into()), reason, ..pb::RolloutFailure::default() };
    pb::RewardReport { report: Some(pb::reward_report::Report::Failed(failure)) }
}

#[test]
fn the_coordinator_needs_neither_torch_nor_anything_of_cpp() {
    // deploy/docker puts it into an image that has neither.
    let dynamic = ["--dynamic", env!("CARGO_BIN_EXE_sluice-coordinator")];
    let output = std::process::Command::new("readelf").args(dynamic).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let needed: Vec<&str> = text.lines().filter(|line| line.contains("(NEEDED)")).collect();
    let unwanted = |line: &&&str| ["torch", "c10", "stdc++", "cud"].iter().any(|name| line.contains(name));
    assert!(!needed.is_empty() && needed.iter().find(unwanted).is_none(), "{needed:#?}");
}

#[tokio::test]
async fn a_result_that_cannot_be_accepted_is_answered_with_the_reason_and_the_stream_goes_on() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let mut server = reward_server(&coordinator.address, "r", 1).await.unwrap();
    server.say(scored(id(0), f32::NAN)).await;
    server.say(failed(id(1), 42)).await;
    server.say(scored(id(2), 0.5)).await;
    let rejected = |command: &pb::RewardCommand| match &command.command {
        Some(pb::reward_command::Command::Rejected(rejected)) => Some(rejected.clone()),
        _ => None,
    };
    let first = server.find(rejected).await;
    assert_eq!(RolloutId::try_from(first.id.unwrap()), Ok(id(0)));
    assert!(first.reason.contains("score"), "{}", first.reason);
    let second = server.find(rejected).await;
    assert_eq!(RolloutId::try_from(second.id.unwrap()), Ok(id(1)));
    assert!(second.reason.contains("reason"), "{}", second.reason);
    let recorded = server.find(|command| match &command.command {
        Some(pb::reward_command::Command::Recorded(recorded)) => Some(recorded.ids.clone()),
        _ => None,
    });
    assert_eq!(recorded.await, [pb::RolloutId::from(id(2))]);
}

#[tokio::test]
async fn a_second_learner_is_refused_and_the_first_one_stays() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let mut first = learner(&coordinator.address, "one", 1).await.unwrap();
    first.next().await.unwrap();
    let mut second = learner(&coordinator.address, "two", 2).await.unwrap();
    let refused = second.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for part in ["one is connected", "one.host:3", "two cannot join"] {
        assert!(refused.message().contains(part), "{}", refused.message());
    }
    let phase = types::link::learner::LearnerPhase::Waiting;
    first.say(LearnerReport::Alive(phase)).await;
    let mut server = reward_server(&coordinator.address, "r", 1).await.unwrap();
    server.next().await.unwrap();
    assert!(coordinator.log().contains("refused"), "{}", coordinator.log());
}

#[tokio::test]
async fn of_two_processes_of_one_name_the_newer_one_stays() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let mut old = learner(&coordinator.address, "learner", 5).await.unwrap();
    old.next().await.unwrap();
    let mut new = learner(&coordinator.address, "learner", 6).await.unwrap();
    new.next().await.unwrap();
    let replaced = old.next().await.unwrap_err();
    assert_eq!(replaced.code(), Code::FailedPrecondition);
    for part in ["under this name: a process at 127.0.0.1:", ", and this was a process at 127.0.0.1:"] {
        assert!(replaced.message().contains(part), "{replaced}");
    }
    let mut back = learner(&coordinator.address, "learner", 5).await.unwrap();
    let refused = back.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("newer process (i6, this one is i5)"), "{}", refused.message());
    assert!(refused.message().contains("the one that stays is a process at 127.0.0.1:"), "{refused}");
    assert!(refused.message().contains("this one is a process at 127.0.0.1:"), "{refused}");
}

#[tokio::test]
async fn what_lies_unread_ends_no_stream() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let mut actor = actor(&coordinator.address, "a").await.unwrap();
    actor.next().await.unwrap();
    coordinator.signal("STOP");
    // Far more than the hundred that were too many once; the rest waits until it is read.
    let flood = async {
        for free_slots in 0..30_000 {
            actor.say(load(free_slots)).await;
        }
    };
    let stopped = tokio::time::timeout(std::time::Duration::from_secs(2), flood).await;
    println!("all of it was taken while the coordinator was stopped: {}", stopped.is_ok());
    coordinator.signal("CONT");
    let mut server = reward_server(&coordinator.address, "r", 1).await.unwrap();
    server.next().await.unwrap();
    let servers = actor.find(|command| match &command.command {
        Some(pb::actor_command::Command::RewardServers(servers)) if !servers.servers.is_empty() => Some(()),
        _ => None,
    });
    servers.await;
    assert!(!coordinator.log().contains("stream ended"), "{}", coordinator.log());
}

#[tokio::test]
async fn a_second_coordinator_is_refused_also_beside_one_that_is_stopped() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let mut learner = learner(&coordinator.address, "learner", 1).await.unwrap();
    learner.next().await.unwrap();
    coordinator.signal("STOP");
    let second = coordinator.second();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another coordinator is using it"), "{said}");
    coordinator.signal("CONT");
    let mut server = reward_server(&coordinator.address, "r", 1).await.unwrap();
    server.next().await.unwrap();
    assert!(!coordinator.log().contains("refused"), "{}", coordinator.log());
}

#[tokio::test]
async fn what_a_learner_says_that_was_replaced_counts_for_nothing() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let mut old = learner(&coordinator.address, "learner", 5).await.unwrap();
    old.next().await.unwrap();
    let mut new = learner(&coordinator.address, "learner", 6).await.unwrap();
    new.next().await.unwrap();
    // It was stopped, and does not know yet.
    let _ = old.try_say(LearnerReport::Checkpointed(BatchId(1))).await;
    assert_eq!(old.next().await.unwrap_err().code(), Code::FailedPrecondition);
    let phase = types::link::learner::LearnerPhase::Waiting;
    new.say(LearnerReport::Alive(phase)).await;
    let mut server = reward_server(&coordinator.address, "r", 1).await.unwrap();
    server.next().await.unwrap();
    let log = coordinator.log();
    assert!(!log.contains("wrote a checkpoint of batch"), "it was believed: {log}");
}

#[tokio::test]
async fn a_coordinator_of_the_past_serves_nobody_whom_a_later_one_has_served() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let of = |run: &str, term| Some(CoordinatorTerm { run: run.to_owned(), term });
    assert_eq!(served_by(&coordinator.address, None).await.unwrap(), of("run", 1));
    assert_eq!(served_by(&coordinator.address, of("run", 1)).await.unwrap(), of("run", 1));
    assert_eq!(served_by(&coordinator.address, of("other", 9)).await.unwrap(), of("run", 1));
    let before = coordinator.log().matches("joined").count();
    let refused = served_by(&coordinator.address, of("run", 2)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "it may find the later one here the next time");
    let said =
        "this is coordinator 1 of run run, and coordinator 2 of run run has taken its place: stop this one";
    assert_eq!(refused.message(), said);
    assert_eq!(coordinator.log().matches("joined").count(), before, "{}", coordinator.log());
}

#[tokio::test]
async fn another_stream_of_one_process_is_no_reason_to_send_it_away() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let mut first = reward_server(&coordinator.address, "r", 7).await.unwrap();
    first.next().await.unwrap();
    let mut second = reward_server(&coordinator.address, "r", 7).await.unwrap();
    second.next().await.unwrap();
    assert_eq!(first.next().await.unwrap_err().code(), Code::Unavailable, "it may come back");
}

#[tokio::test]
async fn names_are_of_one_role() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let mut learner = learner(&coordinator.address, "x", 1).await.unwrap();
    learner.next().await.unwrap();
    let mut actor = actor(&coordinator.address, "x").await.unwrap();
    let pull = actor.find(|command| match &command.command {
        Some(pb::actor_command::Command::PullWeights(pull)) => Some(pull.source.clone()),
        _ => None,
    });
    assert_eq!(pull.await, "x.host:3", "the learner is still connected");
}

#[tokio::test]
async fn another_release_is_refused_by_name() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let mut hello = pb::ActorReport::from(actor_hello("a"));
    if let Some(pb::actor_report::Report::Hello(hello)) = &mut hello.report {
        hello.protocol = 99;
    }
    let refused = actor_saying(&coordinator.address, hello).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("speaks protocol 99"), "{}", refused.message());
}

#[tokio::test]
async fn a_run_without_room_for_a_group_ends_with_exit_code_3_and_one_sentence() {
    let mut coordinator = CoordinatorProcess::start(&["hopeless_timeout=1s"]).await;
    let mut learner = learner(&coordinator.address, "learner", 1).await.unwrap();
    learner.next().await.unwrap();
    let mut actor = actor(&coordinator.address, "a").await.unwrap();
    make_ready(&mut actor, 3).await;
    assert_eq!(coordinator.exit_code().await, Some(3));
    let log = coordinator.log();
    let last = log.lines().last().unwrap_or_default();
    assert!(
        last.contains("no actor has room for one group of 4 responses: the most is 3 (actor a)"),
        "{log}"
    );
}

#[tokio::test]
async fn a_resume_says_what_may_not_change_and_records_what_may() {
    let mut coordinator = CoordinatorProcess::start(&[]).await;
    coordinator.start_again(&["data.shuffle=false", "sampling.temperature=0.5", "batches=50"]);
    assert_eq!(coordinator.exit_code().await, Some(2));
    let log = coordinator.log();
    for part in [
        "shuffle was true when the run began and is false now",
        "sampling.temperature was 1.0 when the run began and is 0.5 now",
    ] {
        assert!(log.contains(part), "{log}");
    }
    assert!(!log.contains("batches was"), "more batches go on: {log}");
}
