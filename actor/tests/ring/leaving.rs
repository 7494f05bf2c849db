//! A drain loses nothing: what is finished is delivered, what is not is handed back.

use std::collections::BTreeSet;
use std::time::Duration;

use types::link::actor::{ActorCommand, ActorReport};
use types::link::reward::{ScoreReply, ScoreRequest};
use types::{FailReason, RolloutId, SamplingParams};

use crate::grpc;
use crate::world::{World, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_hands_back_what_it_does_not_finish() {
    let mut world = World::start(|config| config.drain_timeout = Duration::ZERO).await;
    let (address, mut streams) = grpc::reward_server(&mut world.tasks).await;
    let sampling = SamplingParams { max_new_tokens: 240, ..SamplingParams::default() };
    let mut link = world.ready(sampling).await;
    link.reward_servers(&[address]).await;
    let mut stream = soon("a stream", streams.recv()).await.unwrap();
    let mut issued: BTreeSet<RolloutId> = BTreeSet::new();
    for ordinal in 0..30 {
        issued.extend(link.lease(ordinal, 16).await);
    }
    // At least one is delivered before the coordinator tells the actor to leave.
    let mut delivered = BTreeSet::new();
    while delivered.is_empty() {
        if let ScoreRequest::Rollout { rollout, .. } = soon("a rollout", stream.up.recv()).await.unwrap() {
            delivered.insert(rollout.id());
            stream.down.send(ScoreReply::Recorded(rollout.id())).await.unwrap();
        }
    }
    link.command(ActorCommand::Drain).await;
    link.until("draining", |report| matches!(report, ActorReport::Draining).then_some(())).await;
    let mut returned = BTreeSet::new();
    while delivered.len() + returned.len() < issued.len() {
        tokio::select! {
            report = link.report("the rest") => if let ActorReport::Failed(failure) = report {
                assert_eq!(failure.reason, FailReason::Returned);
                assert!(returned.insert(failure.id), "handed back twice");
            },
            Some(request) = stream.up.recv() => if let ScoreRequest::Rollout { rollout, .. } = request {
                assert!(delivered.insert(rollout.id()), "delivered twice");
                stream.down.send(ScoreReply::Recorded(rollout.id())).await.unwrap();
            },
        }
    }
    assert!(!returned.is_empty());
    assert_eq!(&delivered | &returned, issued);
    assert!(delivered.is_disjoint(&returned));
    world.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_actor_told_to_stop_finishes_what_it_has() {
    let mut world = World::start(|config| config.drain_timeout = Duration::from_secs(60)).await;
    let (address, mut streams) = grpc::reward_server(&mut world.tasks).await;
    let mut link = world.ready(SamplingParams { max_new_tokens: 50, ..SamplingParams::default() }).await;
    link.reward_servers(&[address]).await;
    let mut stream = soon("a stream", streams.recv()).await.unwrap();
    let issued: BTreeSet<RolloutId> = link.lease(0, 20).await.into_iter().collect();
    link.until("work", |report| match report {
        ActorReport::Load(load) => (load.running > 0).then_some(()),
        _ => None,
    })
    .await;
    world.token.cancel();
    link.until("draining", |report| matches!(report, ActorReport::Draining).then_some(())).await;
    let mut delivered = BTreeSet::new();
    while delivered.len() < issued.len() {
        if let ScoreRequest::Rollout { rollout, .. } = soon("a rollout", stream.up.recv()).await.unwrap() {
            delivered.insert(rollout.id());
            stream.down.send(ScoreReply::Recorded(rollout.id())).await.unwrap();
        }
    }
    assert_eq!(delivered, issued);
    world.ends().await;
}
