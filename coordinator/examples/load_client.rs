//! Fake members over real gRPC against a running coordinator, and what they cost it:
//! `load_client ADDRESS PID ACTORS SECONDS`. Actors beat every two seconds and have what they are leased
//! scored at once.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a measurement")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use types::link::actor::{ActorHello, ActorLoad, ActorReport};
use types::link::learner::{LearnerHello, RecentSteps};
use types::link::reward::RewardHello;
use types::{
    BatchId, DType, Incarnation, LeaseId, Manifest, PolicyVersion, TensorEntry, TensorLayout, WeightHash,
};

#[path = "load/measure.rs"]
mod measure;

/// h2 gives a connection up on which more small messages than this wait to be read.
const STREAMS_PER_CONNECTION: usize = 50;
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// Responses that an actor works on at a time.
const SLOTS: u32 = 8;

#[derive(Default)]
struct Counts {
    joined: AtomicU64,
    leased: AtomicU64,
    scored: AtomicU64,
    recorded: AtomicU64,
    broken: AtomicU64,
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, pid, actors, seconds] = arguments.as_slice() else {
        panic!("load_client ADDRESS PID ACTORS SECONDS");
    };
    let (actors, seconds): (usize, u64) = (actors.parse().unwrap(), seconds.parse().unwrap());
    let counts = Arc::new(Counts::default());
    let (results, inbox) = mpsc::channel(4096);
    let first = connect(address).await;
    tokio::spawn(learner(first.clone()));
    tokio::spawn(reward_server(first, inbox, Arc::clone(&counts)));
    let begun = Instant::now();
    for group in 0..actors.div_ceil(STREAMS_PER_CONNECTION) {
        let channel = connect(address).await;
        for index in group * STREAMS_PER_CONNECTION..actors.min((group + 1) * STREAMS_PER_CONNECTION) {
            tokio::spawn(actor(channel.clone(), index, results.clone(), Arc::clone(&counts)));
        }
    }
    while counts.joined.load(Ordering::Relaxed) + counts.broken.load(Ordering::Relaxed) < actors as u64 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("{actors} actors joined in {:.1} s", begun.elapsed().as_secs_f64());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (cpu, recorded) = (measure::cpu_seconds(pid), counts.recorded.load(Ordering::Relaxed));
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let span = seconds as f64;
    let cores = (measure::cpu_seconds(pid) - cpu) / span;
    let scores = (counts.recorded.load(Ordering::Relaxed) - recorded) as f64 / span;
    let broken = counts.broken.load(Ordering::Relaxed);
    println!(
        "{cores:.2} cores, {:.0} MB, {scores:.0} scores/s, {broken} streams broken",
        measure::resident_mb(pid)
    );
}

async fn connect(address: &str) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

async fn actor(channel: Channel, index: usize, results: mpsc::Sender<pb::RolloutId>, counts: Arc<Counts>) {
    let hello = ActorHello {
        member: format!("actor-{index}").parse().unwrap(),
        incarnation: Incarnation(1),
        run: None,
        holding: Vec::new(),
        weights: None,
        source: None,
    };
    let (reports, outgoing) = mpsc::channel(16);
    reports.send(pb::ActorReport::from(hello)).await.unwrap();
    // A connection lives as long as a client of it.
    let mut client = CoordinatorClient::new(channel);
    let opened = client.act(ReceiverStream::new(outgoing)).await;
    let Ok(commands) = opened else {
        counts.broken.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let mut commands = commands.into_inner();
    let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
    let mut last_lease = LeaseId(0);
    counts.joined.fetch_add(1, Ordering::Relaxed);
    loop {
        let report = tokio::select! {
            command = commands.message() => match command.ok().flatten().and_then(|message| message.command) {
                Some(pb::actor_command::Command::PullWeights(pull)) => {
                    let confirmed = pb::WeightsConfirmed { version: pull.version, hash: pull.hash };
                    Some(pb::ActorReport { report: Some(pb::actor_report::Report::WeightsConfirmed(confirmed)) })
                }
                Some(pb::actor_command::Command::JoinBroadcastGroup(group)) => {
                    let ready = pb::BroadcastGroupReady { group: group.id };
                    Some(pb::ActorReport { report: Some(pb::actor_report::Report::BroadcastGroupReady(ready)) })
                }
                Some(pb::actor_command::Command::Lease(lease)) => {
                    last_lease = LeaseId(lease.id);
                    for id in lease.prompts.into_iter().flat_map(|prompt| prompt.wanted) {
                        counts.leased.fetch_add(1, Ordering::Relaxed);
                        results.send(id).await.unwrap();
                    }
                    None
                }
                Some(_) => None,
                None => break,
            },
            _ = beats.tick() => {
                let load = ActorLoad { free_slots: SLOTS, last_lease, ..ActorLoad::default() };
                Some(ActorReport::Load(load).into())
            }
        };
        if let Some(report) = report
            && reports.send(report).await.is_err()
        {
            break;
        }
    }
    counts.broken.fetch_add(1, Ordering::Relaxed);
}

async fn reward_server(channel: Channel, mut results: mpsc::Receiver<pb::RolloutId>, counts: Arc<Counts>) {
    let hello = RewardHello {
        member: "reward".parse().unwrap(),
        incarnation: Incarnation(1),
        run: None,
        address: "127.0.0.1:1".to_owned(),
    };
    let (reports, outgoing) = mpsc::channel(256);
    reports.send(pb::RewardReport::from(hello)).await.unwrap();
    let mut client = CoordinatorClient::new(channel);
    let mut commands = client.reward(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let recorded = Arc::clone(&counts);
    tokio::spawn(async move {
        while let Ok(Some(_)) = commands.message().await {
            recorded.recorded.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
    loop {
        let report = tokio::select! {
            Some(id) = results.recv() => measure::scored(id, counts.scored.fetch_add(1, Ordering::Relaxed)),
            _ = beats.tick() => pb::RewardReport {
                report: Some(pb::reward_report::Report::Load(pb::RewardLoad { queued: 0 })),
            },
        };
        reports.send(report).await.unwrap();
    }
}

async fn learner(channel: Channel) {
    let layout = TensorLayout { name: "w".to_owned(), shape: vec![1], dtype: DType::F32 };
    let tensors = vec![TensorEntry::new(layout, WeightHash([7; 32])).unwrap()];
    let hello = LearnerHello {
        member: "learner".parse().unwrap(),
        incarnation: Incarnation(1),
        run: None,
        world_size: 1,
        trained: BatchId(0),
        checkpointed: BatchId(0),
        manifest: Manifest::new(PolicyVersion(0), tensors).unwrap(),
        steps: RecentSteps::default(),
        store: "127.0.0.1:2".to_owned(),
        weights: "127.0.0.1:3".to_owned(),
    };
    let (reports, outgoing) = mpsc::channel(16);
    reports.send(pb::LearnerReport::from(hello)).await.unwrap();
    let mut client = CoordinatorClient::new(channel);
    let mut commands = client.learn(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
    loop {
        tokio::select! {
            command = commands.message() => if !matches!(command, Ok(Some(_))) { break },
            _ = beats.tick() => {
                let phase = types::link::learner::LearnerPhase::Waiting;
                let _ = reports.send(types::link::learner::LearnerReport::Alive(phase).into()).await;
            }
        }
    }
}
