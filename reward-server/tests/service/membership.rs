//! Servers that come and go in the middle of a run.

use std::collections::BTreeSet;
use std::time::Duration;

use reward_server::Config;
use reward_server::config::{Format, ScorerKind};
use tokio::time::Instant;
use types::RolloutId;
use types::link::reward::ScoreReply;

use crate::grpc::FakeCoordinator;
use crate::process::Process;
use crate::stub::Stub;
use crate::tiny;
use crate::world::{connect_to, scored, scorer, soon};

const SOON: Duration = Duration::from_secs(2);

fn config(coordinator: &FakeCoordinator, kind: ScorerKind) -> Config {
    Config {
        coordinator: Some(coordinator.address.clone()),
        tokenizer: Some(tiny::folder("policy")),
        scorers: scorer(kind),
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_scores_within_two_seconds() {
    let mut coordinator = FakeCoordinator::start().await;
    let config = config(&coordinator, ScorerKind::Format(Format { finished: true, ..Format::default() }));
    let mut fastest = Duration::MAX;
    // The machine may be busy with other tests; once is proof enough.
    for number in 0..5 {
        let started = Instant::now();
        let _server = Process::start(&config);
        let mut session = coordinator.welcomed().await;
        let actor = connect_to(&session.hello.address, "actor-0").await;
        actor.offer(&tiny::rollout(number, "x", "")).await;
        scored(session.result().await);
        fastest = fastest.min(started.elapsed());
        if fastest < SOON {
            return;
        }
    }
    panic!("the fastest of five took {fastest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_a_server_loses_nothing() {
    const ROLLOUTS: u64 = 40;
    let stub = Stub::closed().await;
    let mut coordinator = FakeCoordinator::start().await;
    let config = config(&coordinator, ScorerKind::Http(stub.scorer()));
    let mut first = Process::start(&config);
    let mut session = coordinator.welcomed().await;
    let mut actor = connect_to(&session.hello.address, "actor-0").await;
    let rollouts: Vec<_> = (0..ROLLOUTS).map(|number| tiny::rollout(number, "the answer", "")).collect();
    for rollout in &rollouts {
        actor.offer(rollout).await;
    }
    // Half are scored, and of those half are recorded.
    stub.let_through(20);
    let mut journal: BTreeSet<RolloutId> = BTreeSet::new();
    for number in 0..20 {
        let id = scored(session.result().await).rollout().id();
        if number < 10 {
            journal.insert(id);
            session.record(id).await;
        }
    }
    let mut told: BTreeSet<RolloutId> = BTreeSet::new();
    while told.len() < 10 {
        let ScoreReply::Recorded(id) = actor.reply().await.unwrap() else { panic!("refused") };
        told.insert(id);
    }
    first.kill();
    let killed = Instant::now();
    while session.any_report().await.is_some() {}
    assert!(killed.elapsed() < SOON, "the coordinator knew after {:?}", killed.elapsed());
    while let Ok(reply) = actor.reply().await {
        let ScoreReply::Recorded(id) = reply else { continue };
        told.insert(id);
    }
    assert_eq!(told, journal, "an actor was told exactly of what the journal has");

    let _second = Process::start(&config);
    let mut session = coordinator.welcomed().await;
    let mut actor = connect_to(&session.hello.address, "actor-0").await;
    stub.let_through(ROLLOUTS as usize);
    for rollout in rollouts.iter().filter(|rollout| !told.contains(&rollout.id())) {
        actor.offer(rollout).await;
    }
    let rest = async {
        while journal.len() < rollouts.len() {
            let id = scored(session.result().await).rollout().id();
            assert!(journal.insert(id), "{id} was recorded already");
            session.record(id).await;
            assert_eq!(actor.reply().await.unwrap(), ScoreReply::Recorded(id));
        }
    };
    soon(rest).await;
}
