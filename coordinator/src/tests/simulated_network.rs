//! The coordinator over a simulated network (turmoil), in virtual time: its gRPC services, its loop and its
//! journal as they are, and members that come with the links of the real ones. Messages are late, hosts are
//! cut off, one way or both, and processes die, the coordinator among them. Nothing is lost, doubled or
//! skipped meanwhile, and once the faults have ceased the run finishes.
//!
//! What the state machine decides is tried in a thousand worlds of its own (`tests/state`); here it is what
//! lies around it.
//!
//! `SIMULATION_SEED=N` runs the world of one seed, `SIMULATION_SEEDS=N` so many.

#[path = "simulated_network/actor.rs"]
mod actor;
#[path = "simulated_network/learner.rs"]
mod learner;
#[path = "simulated_network/reward_server.rs"]
mod reward_server;
#[path = "simulated_network/wire.rs"]
mod wire;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use service::{CoordinatorTerm, OnError, Pulse, Security, TaskSet};
use tokio_util::sync::CancellationToken;
use turmoil::Sim;
use types::{BatchId, Incarnation, MemberId, PolicyVersion, RolloutId};

use crate::config::Config;
use crate::data::{DataConfig, DataSet};
use crate::disk_room::DiskRoom;
use crate::grpc::Grpc;
use crate::journal::Journal;
use crate::server_loop::{Parts, ServerLoop};
use crate::state::{Phase, State};
use crate::status::Status;
use crate::worst::Worst;

/// Batches of a run: about as many as are trained while things go wrong.
const BATCHES: u64 = 40;
/// Worlds of the test.
const SEEDS: u64 = 24;
/// How long things go wrong, and how long the run may take afterwards.
const FAULTY: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_secs(600);
/// Virtual time between two looks at the world.
const TICK: Duration = Duration::from_millis(5);
/// One tick in so many begins a fault.
const FAULT_IN: u32 = 150;
/// How long one lasts, at most: beyond every timeout of the links and of the plan.
const LONGEST_FAULT: u64 = 25_000;

const MEMBERS: [&str; 6] = ["actor-0", "actor-1", "actor-2", "reward-0", "reward-1", "learner"];

/// What lies outside of the coordinator: what members have told each other, and the learner's disk.
#[derive(Debug, Default)]
struct Outside {
    /// Processes started.
    starts: u64,
    /// Responses on the way to a reward server.
    offered: BTreeMap<MemberId, VecDeque<Offer>>,
    /// What reward servers told actors to be recorded.
    recorded: BTreeMap<MemberId, VecDeque<RolloutId>>,
    /// Batches as they came first, by the responses that train.
    sent: BTreeMap<BatchId, BTreeSet<RolloutId>>,
    /// What the learner's newest checkpoint holds.
    checkpoint: BTreeMap<BatchId, BTreeSet<RolloutId>>,
    /// Streams that broke.
    broken: u64,
    /// How the run ended.
    ended: Option<Status>,
    /// What the coordinator said last of what it waits for.
    waiting_for: String,
}

/// A response that an actor sends to a reward server.
#[derive(Debug, Clone)]
struct Offer {
    id: RolloutId,
    version: PolicyVersion,
    actor: MemberId,
}

/// What all hosts share; no host holds it across a wait.
#[derive(Debug, Clone, Default)]
struct World(Rc<RefCell<Outside>>);

impl World {
    fn with<T>(&self, look: impl FnOnce(&mut Outside) -> T) -> T {
        look(&mut self.0.borrow_mut())
    }

    /// A process's number: later ones are greater.
    fn new_incarnation(&self) -> Incarnation {
        self.with(|outside| {
            outside.starts += 1;
            Incarnation(outside.starts)
        })
    }
}

fn config(folder: &Path, rng: &mut ChaCha8Rng) -> Config {
    let lines: String = (0..13).map(|n| format!("{{\"prompt\": \"question {n}\"}}\n")).collect();
    std::fs::write(folder.join("prompts.jsonl"), lines).unwrap();
    Config {
        run: "world".to_owned(),
        seed: rng.random_range(0..1000),
        journal: folder.join("journal"),
        batches: BATCHES,
        batch_prompts: rng.random_range(2..6),
        group_size: rng.random_range(2..6),
        max_staleness: rng.random_range(0..3),
        lease_prompts: rng.random_range(1..4),
        broadcast_members: rng.random_range(1..4),
        lease_timeout: Duration::from_secs(60),
        heartbeat_timeout: Duration::from_secs(10),
        broadcast_timeout: Duration::from_secs(5),
        data: DataConfig { path: folder.join("prompts.jsonl"), ..DataConfig::default() },
        ..Config::default()
    }
}

/// A coordinator's process, from its start until the run has ended.
async fn coordinator(world: World, config: Config) -> anyhow::Result<()> {
    let data = Arc::new(DataSet::read(&config.data, config.shuffles(), config.seed)?);
    let plan = config.plan(&data)?;
    let (journal, durable) = Journal::open(&config.journal, &plan)?;
    let term = CoordinatorTerm { run: plan.run.to_string(), term: durable.term() + 1 };
    let (token, done) = (CancellationToken::new(), CancellationToken::new());
    let parts = Parts {
        state: State::over(durable),
        plan,
        journal,
        room: DiskRoom::new(config.journal, 0),
        data: Arc::clone(&data),
        steps_file: None,
        evals_file: None,
        samples: None,
        worst: Worst::default(),
        done: done.clone(),
        pulse: Pulse::default(),
    };
    let (server_loop, handle, view) = ServerLoop::new(parts);
    let mut tasks = TaskSet::default();
    let grpc = Grpc::new(handle, tasks.spawner(), done.clone(), term, data);
    let router = grpc.router(&Security::open());
    let incoming = wire::incoming().await?;
    let stop = token.clone();
    tasks.add("server loop", OnError::Shutdown, server_loop.run(stop));
    tasks.add("grpc", OnError::Shutdown, async move {
        let serving = router.serve_with_incoming_shutdown(incoming, done.clone().cancelled_owned());
        tokio::select! {
            served = serving => Ok(served?),
            () = async { done.cancelled().await; tokio::time::sleep(Duration::from_secs(1)).await } => Ok(()),
        }
    });
    let running = tasks.run(token, Duration::from_secs(5));
    tokio::pin!(running);
    let mut status = view.status;
    loop {
        tokio::select! {
            ended = &mut running => {
                ended?;
                let last = Status::clone(&status.borrow());
                world.with(|outside| outside.ended = Some(last));
                return Ok(());
            }
            Ok(()) = status.changed() => {
                let waiting_for = status.borrow_and_update().waiting_for.clone();
                world.with(|outside| outside.waiting_for = waiting_for);
            }
        }
    }
}

/// What goes wrong, and until when.
struct Faults {
    rng: ChaCha8Rng,
    under_way: Vec<(Duration, Fault)>,
    /// How often each kind has been, by its number.
    seen: [u32; 5],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Nothing passes between the coordinator and this member.
    CutOff(&'static str),
    /// Nothing passes in one direction.
    OneWay(&'static str, &'static str),
    /// What is sent stays on the way.
    Held(&'static str),
    /// The process is dead.
    Down(&'static str),
}

impl Faults {
    fn turn(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let over: Vec<Fault> =
            self.under_way.extract_if(.., |(until, _)| *until <= now).map(|(_, fault)| fault).collect();
        over.into_iter().for_each(|fault| mend(sim, fault));
        if now >= FAULTY || self.rng.random_range(0..FAULT_IN) > 0 {
            return;
        }
        let member = MEMBERS[self.rng.random_range(0..MEMBERS.len())];
        let kind = self.rng.random_range(0..5);
        let fault = match kind {
            0 => Fault::CutOff(member),
            1 if self.rng.random_range(0..2) == 0 => Fault::OneWay("coordinator", member),
            1 => Fault::OneWay(member, "coordinator"),
            2 => Fault::Held(member),
            3 => Fault::Down(member),
            _ => Fault::Down("coordinator"),
        };
        if self.under_way.iter().any(|(_, other)| other.concerns() == fault.concerns()) {
            return;
        }
        self.seen[kind] += 1;
        match fault {
            Fault::CutOff(member) => sim.partition("coordinator", member),
            Fault::OneWay(from, to) => sim.partition_oneway(from, to),
            Fault::Held(member) => sim.hold("coordinator", member),
            Fault::Down(host) => sim.crash(host),
        }
        let longest = if self.rng.random_range(0..3) == 0 { LONGEST_FAULT } else { 3_000 };
        let until = (now + Duration::from_millis(self.rng.random_range(10..longest))).min(FAULTY);
        self.under_way.push((until, fault));
    }
}

impl Fault {
    /// Which process it happens to.
    fn concerns(self) -> &'static str {
        match self {
            Fault::CutOff(member) | Fault::Held(member) | Fault::Down(member) => member,
            Fault::OneWay("coordinator", member) | Fault::OneWay(member, _) => member,
        }
    }
}

fn mend(sim: &mut Sim<'_>, fault: Fault) {
    match fault {
        Fault::CutOff(member) => sim.repair("coordinator", member),
        Fault::OneWay(from, to) => sim.repair_oneway(from, to),
        Fault::Held(member) => sim.release("coordinator", member),
        Fault::Down(host) => sim.bounce(host),
    }
}

/// What a world has seen: its faults by kind, and streams broken.
struct Seen {
    faults: [u32; 5],
    broken: u64,
}

fn simulate(seed: u64) -> Seen {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let config = config(folder.path(), &mut rng);
    let world = World::default();
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .enable_random_order()
        .tick_duration(TICK)
        .simulation_duration(FAULTY + QUIET + Duration::from_secs(60))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis([5, 50, 400][rng.random_range(0..3)]))
        .tcp_capacity(1024)
        .build();
    let (shared, plan) = (world.clone(), config.clone());
    sim.host("coordinator", move || {
        let started = coordinator(shared.clone(), plan.clone());
        async move { Ok(started.await?) }
    });
    for name in MEMBERS {
        let (shared, seed): (_, u64) = (world.clone(), rng.random());
        sim.host(name, move || {
            let (world, name): (World, MemberId) = (shared.clone(), name.parse().unwrap());
            async move {
                // Each process draws otherwise.
                let incarnation = world.new_incarnation();
                let rng = ChaCha8Rng::seed_from_u64(seed ^ incarnation.0);
                match name.as_str().split('-').next().unwrap() {
                    "actor" => actor::run(world, name, incarnation, rng).await,
                    "reward" => reward_server::run(world, name, incarnation, rng).await,
                    _ => learner::run(world, name, incarnation, rng).await,
                }
                Ok(())
            }
        });
    }
    let mut faults = Faults { rng, under_way: Vec::new(), seen: [0; 5] };
    while world.with(|outside| outside.ended.is_none()) {
        let now = sim.elapsed();
        assert!(
            now < FAULTY + QUIET,
            "not finished: waits for {}",
            world.with(|outside| outside.waiting_for.clone())
        );
        faults.turn(&mut sim, now);
        sim.step().unwrap_or_else(|error| panic!("after {now:?}: {error}"));
    }
    drop(sim);
    check_the_end(&world, &config);
    Seen { faults: faults.seen, broken: world.with(|outside| outside.broken) }
}

/// What has to hold of a run that is complete.
fn check_the_end(world: &World, config: &Config) {
    let status = world.with(|outside| outside.ended.take()).unwrap();
    assert_eq!(status.phase, Phase::Finished, "{}", status.waiting_for);
    assert_eq!((status.trained, status.account.in_flight, status.account.unaccounted), (BATCHES, 0, 0));
    assert_eq!(status.account.issued, status.account.endings.values().sum::<u64>());
    let (sent, checkpoint) = world.with(|outside| (outside.sent.clone(), outside.checkpoint.clone()));
    assert!(sent.keys().copied().eq((1..=BATCHES).map(BatchId)), "no batch is skipped");
    assert_eq!(sent, checkpoint, "the learner's last checkpoint holds what was sent");
    let trained: Vec<RolloutId> = sent.values().flatten().copied().collect();
    let once: BTreeSet<RolloutId> = trained.iter().copied().collect();
    assert_eq!(once.len(), trained.len(), "a response trains once");
    // The journal says so too, to whoever opens it.
    let data = DataSet::read(&config.data, config.shuffles(), config.seed).unwrap();
    let (_, durable) = Journal::open(&config.journal, &config.plan(&data).unwrap()).unwrap();
    let state = State::over(durable);
    assert_eq!(state.batches().trained(), BatchId(BATCHES));
    assert_eq!(state.account().issued(), status.account.issued);
}

fn setting(name: &str) -> Option<u64> {
    std::env::var_os(name).map(|text| text.to_str().unwrap().parse().unwrap())
}

#[test]
fn nothing_is_lost_doubled_or_skipped_on_a_network_that_fails() {
    let seeds = match setting("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..setting("SIMULATION_SEEDS").unwrap_or(SEEDS),
    };
    let (mut faults, mut broken) = ([0; 5], 0);
    for seed in seeds.clone() {
        let seen = std::panic::catch_unwind(|| simulate(seed));
        let seen = seen.unwrap_or_else(|_| panic!("SIMULATION_SEED={seed} shows it"));
        faults.iter_mut().zip(seen.faults).for_each(|(sum, count)| *sum += count);
        broken += seen.broken;
    }
    println!("{seeds:?}: cut off, one way, held, dead, coordinator dead {faults:?}; {broken} streams broken");
    assert!(seeds.count() < 4 || faults.iter().all(|count| *count > 0) && broken > 0, "{faults:?} {broken}");
}
