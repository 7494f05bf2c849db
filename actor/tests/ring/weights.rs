//! Weights are taken up only when every hash is right.

use types::link::actor::{ActorCommand, ActorReport};
use types::{PolicyVersion, SamplingParams};

use crate::world::{World, published};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_weights_are_refused_and_the_old_ones_stay() {
    let mut world = World::start(|_| {}).await;
    let mut link = world.ready(SamplingParams::default()).await;
    let (description, mut damaged) = published(2);
    let at = damaged.len() - 3;
    damaged[at] ^= 1;
    *world.weights.lock().unwrap() = (description, damaged);
    world.order_pull(&link).await;
    let detail = link.until("failed weights", |report| match report {
        ActorReport::WeightsFailed { version, detail } => Some((version, detail)),
        ActorReport::WeightsConfirmed { .. } => panic!("damaged weights were confirmed"),
        _ => None,
    });
    let (version, detail) = detail.await;
    assert_eq!(version, PolicyVersion(2));
    assert!(detail.contains("hash"), "{detail}");
    // Whole ones are taken up; the pull goes on where its stream breaks off.
    *world.weights.lock().unwrap() = published(2);
    let ordered = world.order_pull(&link).await;
    let confirmed = link.until("confirmed weights", |report| match report {
        ActorReport::WeightsConfirmed { version, hash } => Some((version, hash)),
        ActorReport::WeightsFailed { detail, .. } => panic!("{detail}"),
        _ => None,
    });
    assert_eq!(confirmed.await, ordered);
    link.command(ActorCommand::Finish).await;
    world.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_of_the_same_content_is_taken_up_without_a_transfer() {
    let mut world = World::start(|_| {}).await;
    let mut link = world.ready(SamplingParams::default()).await;
    let hash = world.weights.lock().unwrap().0.manifest.hash();
    // A pull of others that is under way is given up.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let source = silent.local_addr().unwrap().to_string();
    let other = published(2).0.manifest.hash();
    link.command(ActorCommand::PullWeights { source, version: PolicyVersion(2), hash: other }).await;
    // Nobody is there.
    let source = "127.0.0.1:1".to_owned();
    link.command(ActorCommand::PullWeights { source, version: PolicyVersion(3), hash }).await;
    let confirmed = link.until("confirmed weights", |report| match report {
        ActorReport::WeightsConfirmed { version, hash } => Some((version, hash)),
        ActorReport::WeightsFailed { detail, .. } => panic!("{detail}"),
        _ => None,
    });
    assert_eq!(confirmed.await, (PolicyVersion(3), hash));
    link.command(ActorCommand::Finish).await;
    world.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_actor_that_is_told_to_go_back_keeps_what_it_has() {
    let mut world = World::start(|_| {}).await;
    *world.weights.lock().unwrap() = published(3);
    let mut link = world.ready(SamplingParams::default()).await;
    *world.weights.lock().unwrap() = published(2);
    world.order_pull(&link).await;
    let detail = link.until("failed weights", |report| match report {
        ActorReport::WeightsFailed { version, detail } => Some((version, detail)),
        ActorReport::WeightsConfirmed { .. } => panic!("it went back"),
        _ => None,
    });
    let (version, detail) = detail.await;
    assert_eq!(version, PolicyVersion(2));
    assert!(detail.contains("generates with v3"), "{detail}");
    *world.weights.lock().unwrap() = published(4);
    let ordered = world.order_pull(&link).await;
    let confirmed = link.until("confirmed weights", |report| match report {
        ActorReport::WeightsConfirmed { version, hash } => Some((version, hash)),
        _ => None,
    });
    assert_eq!(confirmed.await, ordered);
    link.command(ActorCommand::Finish).await;
    world.ends().await;
}
