//! Fake members over real gRPC against a running coordinator, and what they cost it:
//! `load_client ADDRESS PID ACTORS SECONDS [STREAMS]`. Actors beat every two seconds and have what they are
//! leased scored at once; the learner trains each batch at once. STREAMS actors share a connection (50); with
//! 1 each has its own, as real ones have: both processes then need a descriptor for each (`ulimit -n`).

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a measurement")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proto::pb::coordinator_client::CoordinatorClient;
use proto::{LearnerCommands, pb};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use types::link::actor::{ActorCommand, ActorHello, ActorLoad, ActorReport};
use types::link::learner::{
    LearnerCommand, LearnerHello, LearnerPhase, LearnerReport, RecentSteps, StepMetrics,
};
use types::link::reward::RewardHello;
use types::{
    BatchId, DType, Incarnation, LeaseId, Manifest, PolicyVersion, TensorEntry, TensorLayout, WeightHash,
};

#[path = "load/measure.rs"]
mod measure;

/// h2 gives a connection up on which more small messages than this wait to be read.
const STREAMS_PER_CONNECTION: &str = "50";
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// Responses that an actor works on at a time.
const SLOTS: u32 = 8;

#[derive(Default)]
struct Counts {
    joined: AtomicU64,
    leased: AtomicU64,
    scored: AtomicU64,
    recorded: AtomicU64,
    batches: AtomicU64,
    /// The newest version that an actor has confirmed.
    version: AtomicU64,
    broken: AtomicU64,
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, pid, actors, seconds, streams @ ..] = arguments.as_slice() else {
        panic!("load_client ADDRESS PID ACTORS SECONDS [STREAMS]");
    };
    let (actors, seconds): (usize, u64) = (actors.parse().unwrap(), seconds.parse().unwrap());
    let streams: usize = streams.first().map_or(STREAMS_PER_CONNECTION, String::as_str).parse().unwrap();
    let counts = Arc::new(Counts::default());
    let (results, inbox) = mpsc::channel(4096);
    let first = connect(address).await;
    tokio::spawn(learner(first.clone(), Arc::clone(&counts)));
    tokio::spawn(reward_server(first, inbox, Arc::clone(&counts)));
    let begun = Instant::now();
    for group in 0..actors.div_ceil(streams) {
        let channel = connect(address).await;
        for index in group * streams..actors.min((group + 1) * streams) {
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
    let batches = counts.batches.load(Ordering::Relaxed);
    let broken = counts.broken.load(Ordering::Relaxed);
    println!(
        "{cores:.2} cores, {:.0} MB, {scores:.0} scores/s, {batches} batches in all, {broken} streams broken",
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
        vocabulary: None,
        gpu: None,
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
            message = commands.message() => {
                let Some(message) = message.ok().flatten() else { break };
                match ActorCommand::try_from(message).unwrap() {
                    ActorCommand::PullWeights { version, hash, .. } => {
                        counts.version.fetch_max(version.0, Ordering::Relaxed);
                        Some(ActorReport::WeightsConfirmed { version, hash })
                    }
                    ActorCommand::ReceiveWeights { manifest, .. } => {
                        let (version, hash) = (manifest.version(), manifest.hash());
                        counts.version.fetch_max(version.0, Ordering::Relaxed);
                        Some(ActorReport::WeightsConfirmed { version, hash })
                    }
                    ActorCommand::JoinBroadcastGroup(group) => Some(ActorReport::BroadcastGroupReady(group.id)),
                    ActorCommand::Lease(lease) => {
                        last_lease = lease.id;
                        for id in lease.prompts.into_iter().flat_map(|prompt| prompt.wanted) {
                            counts.leased.fetch_add(1, Ordering::Relaxed);
                            results.send(id.into()).await.unwrap();
                        }
                        None
                    }
                    _ => None,
                }
            }
            _ = beats.tick() => {
                Some(ActorReport::Load(ActorLoad { free_slots: SLOTS, last_lease, ..ActorLoad::default() }))
            }
        };
        if let Some(report) = report
            && reports.send(report.into()).await.is_err()
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
        vocabulary: None,
    };
    let (reports, outgoing) = mpsc::channel(256);
    reports.send(pb::RewardReport::from(hello)).await.unwrap();
    let mut client = CoordinatorClient::new(channel);
    let mut commands = client.reward(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let recorded = Arc::clone(&counts);
    tokio::spawn(async move {
        while let Ok(Some(command)) = commands.message().await {
            if let Some(pb::reward_command::Command::Recorded(ids)) = command.command {
                recorded.recorded.fetch_add(ids.ids.len() as u64, Ordering::Relaxed);
            }
        }
    });
    let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
    loop {
        let report = tokio::select! {
            Some(id) = results.recv() => {
                let number = counts.scored.fetch_add(1, Ordering::Relaxed);
                measure::scored(id, number, counts.version.load(Ordering::Relaxed))
            }
            _ = beats.tick() => pb::RewardReport {
                report: Some(pb::reward_report::Report::Load(pb::RewardLoad { queued: 0 })),
            },
        };
        reports.send(report).await.unwrap();
    }
}

/// Trains each batch at once: the new version has the old content.
async fn learner(channel: Channel, counts: Arc<Counts>) {
    let hello = LearnerHello {
        member: "learner".parse().unwrap(),
        incarnation: Incarnation(1),
        run: None,
        world_size: 1,
        trained: BatchId(0),
        checkpointed: BatchId(0),
        manifest: manifest(0),
        steps: RecentSteps::default(),
        store: "127.0.0.1:2".to_owned(),
        weights: "127.0.0.1:3".to_owned(),
        vocabulary: None,
        gpu: None,
    };
    let (reports, outgoing) = mpsc::channel(16);
    reports.send(pb::LearnerReport::from(hello)).await.unwrap();
    let mut client = CoordinatorClient::new(channel).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
    let mut commands = client.learn(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let mut parts = LearnerCommands::default();
    let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
    loop {
        let answers = tokio::select! {
            message = commands.message() => {
                let Some(message) = message.ok().flatten() else { break };
                match parts.push(message).unwrap() {
                    Some(LearnerCommand::Batch(batch)) => {
                        counts.batches.fetch_add(1, Ordering::Relaxed);
                        let (batch, manifest) = (batch.id(), manifest(batch.id().0));
                        let metrics = Box::new(StepMetrics { step_seconds: 0.001, ..StepMetrics::default() });
                        let trained = LearnerReport::Trained { batch, manifest, metrics };
                        vec![trained, LearnerReport::Checkpointed(batch)]
                    }
                    Some(LearnerCommand::JoinBroadcastGroup(group)) => {
                        vec![LearnerReport::BroadcastGroupReady(group.id)]
                    }
                    Some(LearnerCommand::Publish { group, version }) => {
                        vec![LearnerReport::Published { group, version, seconds: 0.001 }]
                    }
                    _ => vec![],
                }
            }
            _ = beats.tick() => vec![LearnerReport::Alive(LearnerPhase::Waiting)],
        };
        for answer in answers {
            if reports.send(answer.into()).await.is_err() {
                return;
            }
        }
    }
}

fn manifest(version: u64) -> Manifest {
    let layout = TensorLayout { name: "w".to_owned(), shape: vec![1], dtype: DType::F32 };
    let tensors = vec![TensorEntry::new(layout, WeightHash([7; 32])).unwrap()];
    Manifest::new(PolicyVersion(version), tensors).unwrap()
}
