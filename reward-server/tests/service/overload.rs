//! Four times as many rollouts as can be scored, on a server of its own: full speed, bounded memory, nothing
//! lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reward_server::Config;
use reward_server::config::ScorerKind;
use tokio::time::Instant;
use types::link::reward::ScoreReply;
use types::{Rollout, RolloutId};

use crate::grpc::{Actor, FakeCoordinator, Session};
use crate::process::Process;
use crate::stub::Stub;
use crate::tiny;
use crate::world::{RUN, connect_to, networks, scored, scorer, soon};

/// Rollouts that the server may have in work.
const PLACES: usize = 64;
/// Requests that the remote service answers at a time, and how long it takes for each: 400 a second.
const CONCURRENCY: usize = 8;
const SERVICE_TIME: Duration = Duration::from_millis(20);
/// Long responses, so that memory shows what the server keeps.
const RESPONSE_TOKENS: usize = 2000;

/// The coordinator: records every result at once, and counts how often it gets each.
async fn record_all(mut session: Session, expected: usize) -> (Session, BTreeMap<RolloutId, u32>) {
    let mut seen = BTreeMap::new();
    while seen.len() < expected {
        let id = scored(session.result().await).rollout().id();
        *seen.entry(id).or_default() += 1;
        session.record(id).await;
    }
    (session, seen)
}

/// What an actor went through.
#[derive(Default)]
struct Sent {
    recorded: BTreeSet<RolloutId>,
    refused: u32,
}

/// An actor that has a new rollout every `interval` and offers what is refused again when it was told to.
async fn send(actor: &mut Actor, rollouts: Vec<Rollout>, interval: Duration) -> Sent {
    let count = rollouts.len();
    let by_id: BTreeMap<RolloutId, Rollout> =
        rollouts.into_iter().map(|rollout| (rollout.id(), rollout)).collect();
    let start = Instant::now();
    let plan = by_id.keys().enumerate().map(|(number, id)| (start + interval * number as u32, *id));
    let mut due: BTreeSet<(Instant, RolloutId)> = plan.collect();
    let mut sent = Sent::default();
    while sent.recorded.len() < count {
        let next = due.first().copied();
        tokio::select! {
            () = tokio::time::sleep_until(next.map_or(start, |(at, _)| at)), if next.is_some() => {
                let (_, id) = due.pop_first().unwrap();
                actor.offer(&by_id[&id]).await;
            }
            reply = actor.reply() => match reply.unwrap() {
                ScoreReply::Recorded(id) => {
                    sent.recorded.insert(id);
                }
                ScoreReply::Overloaded { id, retry_after } => {
                    sent.refused += 1;
                    due.insert((Instant::now() + retry_after, id));
                }
            }
        }
    }
    sent
}

/// An actor that always has as much in work as there is room for.
async fn keep_full(actor: &mut Actor, rollouts: Vec<Rollout>) {
    let count = rollouts.len();
    let mut rest = rollouts.into_iter();
    for rollout in rest.by_ref().take(PLACES) {
        actor.offer(&rollout).await;
    }
    for _ in 0..count {
        assert!(matches!(actor.reply().await.unwrap(), ScoreReply::Recorded(_)));
        if let Some(rollout) = rest.next() {
            actor.offer(&rollout).await;
        }
    }
}

fn rollouts(from: u64, count: usize) -> Vec<Rollout> {
    let all = from..from + count as u64;
    all.map(|number| tiny::with_tokens(number, &tiny::tokens(number, RESPONSE_TOKENS), "")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn four_times_the_load_is_scored_at_full_speed_in_bounded_memory_and_loses_nothing() {
    let stub = Stub::slow(SERVICE_TIME, CONCURRENCY).await;
    let mut coordinator = FakeCoordinator::start().await;
    let mut http = stub.scorer();
    http.concurrency = CONCURRENCY;
    let mut config = Config {
        coordinator: Some(coordinator.address.clone()),
        tokenizer: Some(tiny::folder("policy")),
        scorers: scorer(ScorerKind::Http(http)),
        ..Config::default()
    };
    config.queue.max_rollouts = PLACES;
    let server = Process::start(&config);
    let session = coordinator.welcomed().await;
    let address = session.hello.address.clone();

    // As much as there is room for, always: the peak.
    let mut actor = connect_to(&address, "actor-0").await;
    let count = 800;
    let started = Instant::now();
    let (session, _) =
        futures::join!(record_all(session, count), keep_full(&mut actor, rollouts(0, count))).0;
    let peak = count as f64 / started.elapsed().as_secs_f64();
    let steady_bytes = server.peak_bytes();

    // Four actors, each as fast as the peak.
    let each = 500;
    let mut actors = Vec::new();
    for number in 0..4 {
        actors.push(connect_to(&address, &format!("actor-{}", number + 1)).await);
    }
    let started = Instant::now();
    let interval = Duration::from_secs_f64(1.0 / peak);
    let sending =
        actors.iter_mut().zip(1..).map(|(actor, part)| send(actor, rollouts(part * 10_000, each), interval));
    let recording = record_all(session, 4 * each);
    let (sent, (_, seen)) = soon(futures::future::join(futures::future::join_all(sending), recording)).await;
    let goodput = (4 * each) as f64 / started.elapsed().as_secs_f64();

    let refused: u32 = sent.iter().map(|sent| sent.refused).sum();
    let bytes = server.peak_bytes();
    println!(
        "peak {peak:.0}/s, at four times that {goodput:.0}/s, {refused} refused, {steady_bytes} then {bytes} bytes"
    );
    assert_eq!(sent.iter().map(|sent| sent.recorded.len()).sum::<usize>(), 4 * each, "nothing is lost");
    assert!(seen.values().all(|times| *times == 1), "nothing is scored twice");
    assert!(refused > 0, "the load was no overload");
    assert!(u64::from(refused) < 40 * each as u64, "{refused} refusals: the pauses are too short");
    assert!(goodput >= 0.9 * peak, "{goodput:.0}/s under overload, {peak:.0}/s at the peak");
    assert!(bytes as f64 <= 1.2 * steady_bytes as f64, "{bytes} bytes under overload, {steady_bytes} before");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_allowed_are_exhausted_resources_and_there_is_room_when_one_leaves() {
    let mut coordinator = FakeCoordinator::start().await;
    let mut config = Config { coordinator: Some(coordinator.address.clone()), ..networks() };
    config.queue.max_streams = 2;
    let server = crate::world::Server::start(config).await.unwrap();
    let _session = coordinator.welcomed().await;
    let first = crate::world::connect(&server, "actor-0").await;
    let _second = crate::world::connect(&server, "actor-1").await;
    let address = server.address.clone().unwrap();
    let status = Actor::connect(&address, RUN, "actor-2").await.err().unwrap();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert!(status.message().contains("2 streams are open"), "{status}");
    drop(first);
    let admitted = async {
        while let Err(status) = Actor::connect(&address, RUN, "actor-2").await {
            assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        }
    };
    soon(admitted).await;
}
