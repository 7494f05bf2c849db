//! A reward server with another tokenizer than the policy's, as a cluster may start one.

use proto::pb;
use tonic::Code;
use types::Vocabulary;
use types::link::actor::ActorHello;
use types::link::learner::LearnerHello;
use types::link::reward::RewardHello;

use crate::coordinator_process::CoordinatorProcess;
use crate::fake_member::{
    actor, actor_hello, actor_saying, learner_hello, learner_saying, reward_hello, reward_server_saying,
};
use crate::streams::get;

/// That of a tokenizer of a hundred words, and of some that it has beside.
fn words(word: &str, more: u32) -> Vocabulary {
    Vocabulary::of((0..100 + more).map(|id| (id, format!("{word}{id}"))).collect::<Vec<_>>())
}

fn reading(name: &str, vocabulary: Vocabulary) -> RewardHello {
    RewardHello { vocabulary: Some(vocabulary), ..reward_hello(name, 1) }
}

/// A learner whose policy reads a hundred words.
fn trainer() -> LearnerHello {
    LearnerHello { vocabulary: Some(words("word", 0)), ..learner_hello("trainer", 1) }
}

/// How many members were refused for their tokenizer.
async fn refused(coordinator: &CoordinatorProcess, role: &str) -> u64 {
    let (status, answer) = get(&coordinator.metrics, "/metrics", "").await;
    assert_eq!(status, 200);
    let name = format!("rlhf_coordinator_members_refused_total{{role=\"{role}\",reason=\"tokenizer\"}} ");
    let counted = answer.lines().find_map(|line| line.strip_prefix(&name));
    counted.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn a_reward_server_with_another_tokenizer_than_the_policy_is_refused_by_name() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let mut learner = learner_saying(&coordinator.address, trainer()).await.unwrap();
    learner.next().await.unwrap();
    let wrong = reading("wrong", words("other", 0));
    let mut wrong = reward_server_saying(&coordinator.address, wrong).await.unwrap();
    let status = wrong.next().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "it is not to come back: {status}");
    for part in [
        "reward-server wrong at 127.0.0.1:1 (100 tokens, vocabulary ",
        "has another tokenizer than the policy, which is that of learner trainer at trainer.host:3 (100 tokens",
        "name the policy's folder in its key `tokenizer`",
        "this one is a process at 127.0.0.1:",
    ] {
        assert!(status.message().contains(part), "{part} is not in {}", status.message());
    }
    assert_eq!(refused(&coordinator, "reward-server").await, 1);
    assert!(coordinator.log().contains("has another tokenizer than the policy"), "{}", coordinator.log());
    // Tokens for padding, which the other does not have, are no difference; nor is having no tokenizer.
    for (name, vocabulary) in
        [("same", words("word", 0)), ("padded", words("word", 3)), ("numbers", Vocabulary::none())]
    {
        let mut right = reward_server_saying(&coordinator.address, reading(name, vocabulary)).await.unwrap();
        right.next().await.unwrap();
    }
    let stale = ActorHello { vocabulary: Some(words("old", 0)), ..actor_hello("a") };
    let mut stale = actor_saying(&coordinator.address, stale.into()).await.unwrap();
    let status = stale.next().await.unwrap_err();
    assert!(status.message().contains("stop it and start it again"), "{}", status.message());
    assert_eq!(refused(&coordinator, "actor").await, 1);
}

#[tokio::test]
async fn a_reward_server_that_came_before_the_learner_is_sent_away_and_actors_are_told() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let early = reading("early", words("other", 0));
    let mut early = reward_server_saying(&coordinator.address, early).await.unwrap();
    early.next().await.unwrap();
    let right = reading("right", words("word", 0));
    let mut right = reward_server_saying(&coordinator.address, right).await.unwrap();
    right.next().await.unwrap();
    let mut actor = actor(&coordinator.address, "a").await.unwrap();
    let servers = |command: &pb::ActorCommand| match &command.command {
        Some(pb::actor_command::Command::RewardServers(servers)) => {
            Some(servers.servers.iter().map(|server| server.member.clone()).collect::<Vec<_>>())
        }
        _ => None,
    };
    assert_eq!(actor.find(servers).await, ["early", "right"]);
    let _learner = learner_saying(&coordinator.address, trainer()).await.unwrap();
    let status = early.next().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("reward-server early at 127.0.0.1:1"), "{}", status.message());
    assert_eq!(actor.find(servers).await, ["right"]);
    assert_eq!(refused(&coordinator, "reward-server").await, 1);
}

#[tokio::test]
async fn members_of_a_release_that_does_not_say_are_let_in_with_one_warning() {
    let coordinator = CoordinatorProcess::start(&[]).await;
    let older = |name| RewardHello { vocabulary: None, ..reward_hello(name, 1) };
    for name in ["one", "two"] {
        reward_server_saying(&coordinator.address, older(name)).await.unwrap().next().await.unwrap();
    }
    learner_saying(&coordinator.address, trainer()).await.unwrap().next().await.unwrap();
    reward_server_saying(&coordinator.address, older("three")).await.unwrap().next().await.unwrap();
    let log = coordinator.log();
    assert_eq!(log.matches("does not say which tokenizer it has").count(), 1, "{log}");
    assert_eq!(refused(&coordinator, "reward-server").await, 0);
}
