//! A rollout is delivered until the coordinator's journal has it.

use std::collections::BTreeMap;
use std::time::Duration;

use types::link::actor::ActorReport;
use types::link::reward::{ScoreReply, ScoreRequest};
use types::{FailReason, PolicyVersion, Rollout, RolloutId, SamplingParams};

use crate::grpc::{self, ScoreStream};
use crate::world::{World, soon};

fn sampling() -> SamplingParams {
    SamplingParams { max_new_tokens: 6, ..SamplingParams::default() }
}

/// The rollouts that come next, by id.
async fn rollouts(stream: &mut ScoreStream, count: usize) -> BTreeMap<RolloutId, Rollout> {
    let mut found = BTreeMap::new();
    while found.len() < count {
        match soon("a rollout", stream.up.recv()).await.expect("the stream ended before all rollouts came") {
            ScoreRequest::Hello { run, member } => {
                assert_eq!(
                    (run.to_string(), member.to_string()),
                    ("run-1".to_owned(), "actor-under-test".to_owned())
                );
            }
            ScoreRequest::Rollout { rollout, .. } => {
                assert!(found.insert(rollout.id(), rollout).is_none(), "twice on one stream, too early");
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_is_sent_until_it_is_recorded() {
    // Longer than three responses take on a busy machine, or the first would come again before the last is
    // there.
    let mut world = World::start(|config| config.acknowledge_timeout = Duration::from_secs(3)).await;
    let (address, mut streams) = grpc::reward_server(&mut world.tasks).await;
    let mut link = world.ready(sampling()).await;
    link.reward_servers(&[address]).await;
    let wanted = link.lease(0, 3).await;

    let mut first = soon("a stream", streams.recv()).await.unwrap();
    let sent = rollouts(&mut first, 3).await;
    assert_eq!(sent.keys().copied().collect::<Vec<_>>(), wanted);
    for rollout in sent.values() {
        assert_eq!(rollout.fields(), "", "what the scorers know never was here");
        assert!(rollout.spans().iter().all(|span| span.version == PolicyVersion(1)));
        assert_eq!(rollout.response_tokens().len(), rollout.rollout_logprobs().len());
    }
    // One is recorded, then the server breaks off: only the others come again, the same to the bit.
    first.down.send(ScoreReply::Recorded(wanted[0])).await.unwrap();
    link.unacknowledged(2).await;
    drop(first);
    let mut second = soon("another stream", streams.recv()).await.unwrap();
    let again = rollouts(&mut second, 2).await;
    assert!(again.iter().all(|(id, rollout)| sent[id] == *rollout) && !again.contains_key(&wanted[0]));

    // One is refused for a moment, the other not acknowledged at all: both come again.
    let retry_after = Duration::from_millis(10);
    second.down.send(ScoreReply::Overloaded { id: wanted[1], retry_after }).await.unwrap();
    for id in &wanted[1..] {
        let once_more = rollouts(&mut second, 1).await;
        assert_eq!(once_more[id], again[id]);
        second.down.send(ScoreReply::Recorded(*id)).await.unwrap();
    }
    world.finish(link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_silent_gets_no_second_chance_where_there_is_another() {
    let mut world = World::start(|config| config.acknowledge_timeout = Duration::from_millis(300)).await;
    let (first, mut at_first) = grpc::reward_server(&mut world.tasks).await;
    let (second, mut at_second) = grpc::reward_server(&mut world.tasks).await;
    let mut link = world.ready(sampling()).await;
    link.reward_servers(&[first, second]).await;
    let mut one = soon("a stream", at_first.recv()).await.unwrap();
    let mut two = soon("a stream", at_second.recv()).await.unwrap();
    let wanted = link.lease(0, 1).await;

    let (mut late, mut other) = tokio::select! {
        _ = rollouts(&mut one, 1) => (one, two),
        _ = rollouts(&mut two, 1) => (two, one),
    };
    // Both are silent, and nothing waits for either: each time it is the other's turn.
    for _ in 0..2 {
        assert!(rollouts(&mut other, 1).await.keys().eq(&wanted));
        assert!(rollouts(&mut late, 1).await.keys().eq(&wanted));
    }
    other.down.send(ScoreReply::Recorded(wanted[0])).await.unwrap();
    world.finish(link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_takes_long_with_a_second_one_is_given_too() {
    let mut world = World::start(|config| config.hedge_delay = Duration::from_millis(300)).await;
    let (first, mut at_first) = grpc::reward_server(&mut world.tasks).await;
    let (second, mut at_second) = grpc::reward_server(&mut world.tasks).await;
    let mut link = world.ready(sampling()).await;
    link.reward_servers(&[first]).await;
    let mut slow = soon("a stream", at_first.recv()).await.unwrap();
    let wanted = link.lease(0, 16).await;
    let sent = rollouts(&mut slow, 16).await;
    // The only server keeps all; then there is a second one, which is given as many as the budget has.
    link.reward_servers(&[first, second]).await;
    let mut quick = soon("a stream", at_second.recv()).await.unwrap();
    let hedged = rollouts(&mut quick, 10).await;
    assert!(hedged.iter().all(|(id, rollout)| sent[id] == *rollout));
    let eleventh = tokio::time::timeout(Duration::from_secs(1), rollouts(&mut quick, 1)).await;
    assert!(eleventh.is_err(), "beyond the budget: {eleventh:?}");

    // Its answers count, and those of the first still do. One it has no room for: it is not to be asked again
    // so soon.
    let mut answered = hedged.keys();
    let id = *answered.next().unwrap();
    let retry_after = Duration::from_secs(3600);
    quick.down.send(ScoreReply::Overloaded { id, retry_after }).await.unwrap();
    for id in answered {
        quick.down.send(ScoreReply::Recorded(*id)).await.unwrap();
    }
    let alone = wanted.iter().find(|id| !hedged.contains_key(id)).unwrap();
    slow.down.send(ScoreReply::Recorded(*alone)).await.unwrap();
    link.unacknowledged(6).await;
    // Ten acknowledged allow one more.
    let more = rollouts(&mut quick, 1).await;
    assert!(more.keys().all(|id| wanted.contains(id) && !hedged.contains_key(id)), "{:?}", more.keys());
    // For what was acknowledged an answer changes nothing.
    for id in &wanted {
        slow.down.send(ScoreReply::Recorded(*id)).await.unwrap();
    }
    world.finish(link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_runs_out_bounds_generation_and_scoring() {
    let mut world = World::start(|_| {}).await;
    let (address, mut streams) = grpc::reward_server(&mut world.tasks).await;
    let long = SamplingParams { max_new_tokens: 240, ..SamplingParams::default() };
    let mut link = world.ready(long).await;
    link.reward_servers(&[address]).await;
    let mut stream = soon("a stream", streams.recv()).await.unwrap();
    // The reward server is told how much of the lease is left.
    let lease = Duration::from_secs(50);
    let delivered = link.lease_for(lease, 0, 1).await;
    let request = loop {
        match soon("a rollout", stream.up.recv()).await.unwrap() {
            ScoreRequest::Hello { .. } => {}
            ScoreRequest::Rollout { rollout, time_left } => break (rollout.id(), time_left),
        }
    };
    assert_eq!(request.0, delivered[0]);
    assert!(request.1 < lease && request.1 > lease / 2, "{:?} left", request.1);
    // What is not generated by then is given up, and the actor says so.
    let overdue = link.lease_for(Duration::ZERO, 1, 3).await;
    let mut given_up = Vec::new();
    for _ in &overdue {
        let failed = link.until("given up", |report| match report {
            ActorReport::Failed(failure) => Some(failure),
            _ => None,
        });
        let failure = soon("giving up", failed).await;
        assert_eq!(failure.reason, FailReason::LeaseExpired);
        given_up.push(failure.id);
    }
    given_up.sort();
    assert_eq!(given_up, overdue);
    stream.down.send(ScoreReply::Recorded(delivered[0])).await.unwrap();
    world.finish(link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_server_loses_its_rollouts_to_the_others() {
    let mut world = World::start(|_| {}).await;
    let (one, mut streams_one) = grpc::reward_server(&mut world.tasks).await;
    let (two, mut streams_two) = grpc::reward_server(&mut world.tasks).await;
    let mut link = world.ready(sampling()).await;
    link.reward_servers(&[one]).await;
    link.lease(0, 4).await;
    let mut first = soon("a stream", streams_one.recv()).await.unwrap();
    let sent = rollouts(&mut first, 4).await;
    // The coordinator no longer lists it.
    link.reward_servers(&[two]).await;
    let mut second = soon("a stream to the other", streams_two.recv()).await.unwrap();
    assert_eq!(rollouts(&mut second, 4).await, sent);

    // A coordinator that comes back is told what must not be issued anew, and which weights are in use.
    let hash = world.weights.lock().unwrap().0.manifest.hash();
    drop(link);
    let (link, hello) = world.welcome(sampling()).await;
    let mut holding = hello.holding;
    holding.sort();
    assert_eq!(holding, sent.keys().copied().collect::<Vec<_>>());
    assert_eq!(
        (hello.weights, hello.run.unwrap().to_string()),
        (Some((PolicyVersion(1), hash)), "run-1".to_owned())
    );
    let read = types::Vocabulary::of(crate::world::tokenizer().tokens());
    assert!(read.tokens() > 256);
    assert_eq!(hello.vocabulary, Some(read), "the learner's tokenizer");
    for id in sent.keys() {
        second.down.send(ScoreReply::Recorded(*id)).await.unwrap();
    }
    world.finish(link).await;
}
