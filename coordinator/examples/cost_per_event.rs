//! Microseconds that the coordinator's state takes for a heartbeat, a lease and a score, by the number of
//! actors, and what a snapshot of a large state costs: `cargo run --release -p coordinator --example
//! cost_per_event`.

#![allow(clippy::unwrap_used, reason = "a measurement")]

use std::collections::BTreeMap;
use std::time::Duration;

use coordinator::journal::{Entries, Journal};
use coordinator::state::{
    ActorEvent, Applied, Durable, Effect, Event, Fact, FiltrationPlan, LearnerEvent, RewardEvent, RunPlan,
    Schedule, ScoreSummary, State,
};
use tokio::time::Instant;
use types::link::actor::{ActorCommand, ActorHello, ActorLoad, ActorReport};
use types::link::learner::{LearnerHello, RecentSteps};
use types::{
    BatchId, DType, Incarnation, LeaseId, Manifest, MemberId, PolicyVersion, RolloutId, Sampling,
    TensorEntry, TensorLayout, Timestamp, WeightHash,
};

/// Events of each kind that are timed: the least of so many rounds counts, so that what else the machine does
/// has no say.
const EVENTS: usize = 4_000;
const ROUNDS: usize = 5;
/// Facts of a lot, as the loop takes them under load.
const LOT: usize = 256;

fn main() {
    println!("{:>7} {:>12} {:>12} {:>12}  us per event", "actors", "heartbeat", "lease", "score");
    for actors in [10, 100, 1_000, 10_000] {
        let mut run = Run::new(actors);
        let heartbeats = run.time(|run, index| run.heartbeat(index, 0));
        // A lease is one group of four.
        let leases = run.time(|run, index| run.heartbeat(index, 4));
        let ids = std::mem::take(&mut run.leased);
        let mut scores = f64::INFINITY;
        for ids in ids.chunks(ids.len().div_ceil(ROUNDS)) {
            let started = Instant::now();
            ids.iter().for_each(|id| run.score(*id));
            scores = scores.min(started.elapsed().as_secs_f64() * 1e6 / ids.len() as f64);
        }
        println!("{actors:>7} {heartbeats:>12.2} {leases:>12.2} {scores:>12.2}");
    }
    println!(
        "\n{:>7} {:>9}  snapshot: MB, ms in one piece; ms of a commit: median, longest",
        "actors", "responses"
    );
    for (actors, responses) in [(1_000, 8_000), (10_000, 80_000), (1_000, 100_000), (10_000, 100_000)] {
        measure_snapshots(actors, responses);
    }
}

/// What it takes to write a state with so many responses in flight and to read it back, and how long the
/// journal's commits take beside that.
fn measure_snapshots(actors: usize, responses: usize) {
    let mut run = Run::new(actors);
    for index in (0..actors).cycle() {
        if run.leased.len() >= responses {
            break;
        }
        run.heartbeat(index, u32::try_from(responses.div_ceil(actors)).unwrap());
    }
    let started = Instant::now();
    let bytes = serde_json::to_vec(run.state.durable()).unwrap();
    let read: Durable = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(&read, run.state.durable());
    let in_one_piece = started.elapsed().as_secs_f64() * 1e3;

    // Every response is scored, but for those of the last lots, until a snapshot of them all was written.
    let ids = std::mem::take(&mut run.leased);
    ids.iter().take(responses / 2).for_each(|id| run.score(*id));
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(folder.path(), run.state.plan()).unwrap();
    let mut took = Vec::new();
    for facts in run.facts.chunks(LOT) {
        let entries = Entries { facts: facts.to_vec(), ..Entries::default() };
        let started = Instant::now();
        journal.commit(&entries).unwrap();
        took.push(started.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    let (megabytes, median, longest) = (bytes.len() as f64 / 1e6, took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{actors:>7} {responses:>9}  {megabytes:>8.1} {in_one_piece:>8.0} {median:>8.2} {longest:>8.2}  ({} commits)",
        took.len()
    );
}

struct Run {
    state: State,
    now: Timestamp,
    actors: Vec<MemberId>,
    /// The last lease of each.
    leases: Vec<LeaseId>,
    leased: Vec<RolloutId>,
    facts: Vec<(Timestamp, Fact)>,
}

impl Run {
    fn new(actors: usize) -> Self {
        let plan = plan();
        let mut run = Self {
            state: State::new(plan.clone()),
            now: Timestamp(1_000_000),
            actors: (0..actors).map(|n| format!("actor-{n}").parse().unwrap()).collect(),
            leases: vec![LeaseId(0); actors],
            leased: Vec::new(),
            facts: Vec::new(),
        };
        run.deliver(Event::Started(Box::new(plan)));
        run.deliver(Event::Learner(LearnerEvent::Joined(learner())));
        for index in 0..actors {
            let member = run.actors[index].clone();
            let hello = ActorHello {
                member: member.clone(),
                incarnation: Incarnation(1),
                run: None,
                holding: Vec::new(),
                weights: None,
                source: None,
                vocabulary: None,
                gpu: None,
            };
            run.deliver(Event::Actor { member, event: ActorEvent::Joined(hello) });
        }
        run
    }

    fn time(&mut self, mut event: impl FnMut(&mut Self, usize)) -> f64 {
        let mut least = f64::INFINITY;
        for round in 0..ROUNDS {
            let started = Instant::now();
            for step in round * EVENTS..(round + 1) * EVENTS {
                event(self, step * 7 % self.actors.len());
            }
            least = least.min(started.elapsed().as_secs_f64() * 1e6 / EVENTS as f64);
        }
        least
    }

    fn heartbeat(&mut self, index: usize, free_slots: u32) {
        self.now = self.now + Duration::from_micros(50);
        let last_lease = self.leases[index];
        let report = ActorReport::Load(ActorLoad { free_slots, last_lease, ..ActorLoad::default() });
        let event = ActorEvent::Report(report);
        self.deliver(Event::Actor { member: self.actors[index].clone(), event });
    }

    fn score(&mut self, id: RolloutId) {
        let (score, oldest) = ((id.seed(5) % 1000) as f32 / 1000.0, PolicyVersion(0));
        let summary = ScoreSummary {
            id,
            score,
            outcome: None,
            tokens: 9,
            oldest,
            truncated: false,
            turns: 1,
            numbers: BTreeMap::new(),
            contributions: BTreeMap::new(),
            digest: Some(id.seed(7)),
        };
        let event = RewardEvent::Scored(summary);
        self.deliver(Event::Reward { member: "reward".parse().unwrap(), event });
    }

    fn deliver(&mut self, event: Event) {
        let applied = self.state.apply(self.now, event);
        self.take(applied);
        let settled = self.state.settle(self.now);
        self.take(settled);
    }

    fn take(&mut self, Applied { facts, effects, .. }: Applied) {
        let now = self.now;
        self.facts.extend(facts.into_iter().map(|fact| (now, fact)));
        for effect in effects {
            match effect {
                Effect::Lease { member, grant } => {
                    let index = member.as_str().trim_start_matches("actor-").parse::<usize>().unwrap();
                    self.leases[index] = grant.id;
                    self.leased.extend(grant.groups.iter().flat_map(|group| group.wanted.iter().copied()));
                }
                Effect::Actor { member, command } => {
                    if let ActorCommand::PullWeights { version, hash, .. } = *command {
                        let report = ActorReport::WeightsConfirmed { version, hash };
                        self.deliver(Event::Actor { member, event: ActorEvent::Report(report) });
                    }
                }
                _ => {}
            }
        }
    }
}

fn learner() -> LearnerHello {
    let layout = TensorLayout { name: "w".to_owned(), shape: vec![1], dtype: DType::F32 };
    let entry = TensorEntry::new(layout, WeightHash([1; 32])).unwrap();
    LearnerHello {
        member: "learner".parse().unwrap(),
        incarnation: Incarnation(1),
        run: None,
        world_size: 1,
        trained: BatchId(0),
        checkpointed: BatchId(0),
        manifest: Manifest::new(PolicyVersion(0), vec![entry]).unwrap(),
        steps: RecentSteps::default(),
        store: "127.0.0.1:2".into(),
        weights: "127.0.0.1:3".into(),
        vocabulary: None,
        gpu: None,
    }
}

fn plan() -> RunPlan {
    RunPlan {
        run: "cost".parse().unwrap(),
        seed: 17,
        prompts: 1 << 30,
        sets: Vec::new(),
        data_hash: "0".into(),
        shuffle: true,
        schedule: Schedule::default(),
        group_size: 4,
        batch_prompts: 1 << 30,
        batches: 1000,
        max_staleness: 0,
        max_prompts_in_flight: 1 << 30,
        lease_prompts: 8,
        deterministic: false,
        lease_timeout: Duration::from_secs(1800),
        heartbeat_timeout: Duration::from_secs(3600),
        broadcast_timeout: Duration::from_secs(60),
        broadcast_members: 32,
        drain_timeout: Duration::from_secs(20),
        hopeless_timeout: Duration::from_secs(300),
        hopeless_groups: 1024,
        standstill_timeout: Duration::from_secs(3600),
        straggler_timeout: Duration::from_secs(300),
        max_attempts: 3,
        min_group: 2,
        filtration: FiltrationPlan::default(),
        max_refill_batches: None,
        send_filtered: false,
        sampling: Sampling::default(),
        evaluation: None,
        episodes: false,
        told: std::collections::BTreeMap::new(),
    }
}
