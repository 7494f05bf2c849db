//! Deterministic simulation: a thousand worlds in which everything goes wrong for a while, each a function of
//! its seed. Nothing is lost, doubled or skipped meanwhile, and once the faults have ceased the run finishes.
//!
//! A failure names its seed: `SIMULATION_SEED=N` runs that world alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use algo::filtration::{Mode, NoSignal, Strategy as Filter};
use coordinator::state::{
    AutoPlan, Fact, FiltrationPlan, Order, Phase, RunPlan, Schedule, SetPlan, StrategyChoice,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use types::{DropReason, Ending, FailReason};

use crate::small_run::{evaluation, plan};
use crate::world::{Faults, World};

/// Seeds of one test; four of them run side by side.
const SEEDS: u64 = 250;
/// Failures after which a test looks at no further seed.
const MOST_FAILURES: usize = 5;
/// Steps with faults, and without.
const FAULTY_STEPS: usize = 2_500;
const QUIET_STEPS: usize = 40_000;

fn plan_of(rng: &mut ChaCha8Rng) -> RunPlan {
    let deterministic = rng.random_range(0..4) == 0;
    let order = [Order::Epochs, Order::Epochs, Order::Vade, Order::Curriculum][rng.random_range(0..4)];
    let set = |name: &str, prompts, share| SetPlan { name: name.to_owned(), prompts, share };
    let has_sets = order != Order::Vade && rng.random_range(0..2) == 0;
    let sets = if has_sets { vec![set("a", 8, 2.0), set("b", 5, 0.7)] } else { Vec::new() };
    RunPlan {
        seed: rng.random_range(0..1000),
        sets,
        deterministic,
        max_staleness: if deterministic { 0 } else { rng.random_range(0..4) },
        lease_prompts: rng.random_range(1..5),
        group_size: rng.random_range(2..6),
        batch_prompts: rng.random_range(1..7),
        batches: rng.random_range(2..9),
        broadcast_members: rng.random_range(1..4),
        filtration: filtration_of(rng),
        max_refill_batches: [None, Some(0), Some(1)][rng.random_range(0..3)],
        straggler_timeout: Duration::from_secs([0, 2, 300][rng.random_range(0..3)]),
        send_filtered: rng.random_range(0..2) == 0,
        schedule: Schedule { order, ..Schedule::default() },
        evaluation: (rng.random_range(0..2) == 0).then(evaluation),
        episodes: rng.random_range(0..3) == 0,
        ..plan()
    }
}

fn filtration_of(rng: &mut ChaCha8Rng) -> FiltrationPlan {
    let strategies = [
        Filter::BestWorst,
        Filter::BestRandom,
        Filter::None,
        Filter::Top { threshold: 0.5 },
        Filter::BestOfN,
        Filter::Power { k: 2.0 },
    ];
    let strategy = match rng.random_range(0..=strategies.len()) {
        chosen if chosen < strategies.len() => StrategyChoice::Fixed(strategies[chosen]),
        _ => StrategyChoice::Auto,
    };
    let modes = [Mode::Select, Mode::Resample { draws: 2 }, Mode::ResampleBuffer { draws: 2 }];
    let auto = AutoPlan { margin: 0.0, windows: 1, min_groups: 1, ..AutoPlan::default() };
    FiltrationPlan {
        strategy,
        mode: modes[rng.random_range(0..modes.len())],
        no_signal: [NoSignal::BestWorst, NoSignal::Always][rng.random_range(0..2)],
        auto,
        ..FiltrationPlan::default()
    }
}

fn simulate(seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut world = World::new(plan_of(&mut rng), seed);
    world.faults = Faults::mixture(&mut rng);
    world.equal_scores_in_percent = [0, 10, 30][rng.random_range(0..3)];
    world.settles_in_percent = [100, 100, 20][rng.random_range(0..3)];
    world.learning_changes_weights = rng.random_range(0..5) > 0;
    for _ in 0..FAULTY_STEPS {
        world.step();
        if world.state.phase() == Phase::Stopped {
            // Given up: somebody resumes it.
            world.restart();
        }
    }
    world.end_faults();
    // A run that is being given up stops, and somebody resumes it.
    for _ in 0..QUIET_STEPS {
        match world.state.phase() {
            Phase::Draining => world.step(),
            Phase::Stopped => world.restart(),
            Phase::Running | Phase::Finished => break,
        }
    }
    world.run_to_the_end(QUIET_STEPS);
    let waits = !world.state.plan().straggler_timeout.is_zero();
    let ended = world.journal.iter().any(|(_, fact)| matches!(fact, Fact::WaitEnded(_)));
    let stale = world.state.account().count(Ending::Dropped(DropReason::Stale));
    assert!(!waits || ended || stale == 0, "{stale} responses were too old, though their batches could wait");
}

/// An attempt whose environment was lost is made again, and each of these is counted as what it is.
#[test]
fn lost_environments_cost_attempts_and_no_samples() {
    let plan = RunPlan { episodes: true, batches: 12, max_attempts: 20, ..plan() };
    let mut world = World::new(plan, 3);
    world.faults = Faults { crash_reward_server: 40, ..Faults::default() };
    world.run_to_the_end(QUIET_STEPS);
    let account = world.state.account();
    let lost = account.count(Ending::Failed(FailReason::Environment));
    assert!(lost > 20, "{lost} attempts lost their environment: {account:#?}");
}

fn simulate_from(first: u64) {
    #[expect(clippy::disallowed_methods, reason = "a person who replays a failure sets it")]
    let only = std::env::var("SIMULATION_SEED").ok();
    let seeds = match only {
        Some(seed) => {
            let seed: u64 = seed.parse().unwrap();
            seed..seed + 1
        }
        None => first..first + SEEDS,
    };
    let fails = |seed: &u64| catch_unwind(AssertUnwindSafe(|| simulate(*seed))).is_err();
    let failed: Vec<u64> = seeds.filter(fails).take(MOST_FAILURES).collect();
    for seed in &failed {
        eprintln!(
            "the world of seed {seed} failed; again: SIMULATION_SEED={seed} cargo nextest run --locked --workspace \
             --profile ci -E 'package(coordinator) & test(simulation::seeds_from_0)'"
        );
    }
    assert!(failed.is_empty(), "worlds that failed: {failed:?}");
}

#[test]
fn seeds_from_0() {
    simulate_from(0);
}

#[test]
fn seeds_from_250() {
    simulate_from(250);
}

#[test]
fn seeds_from_500() {
    simulate_from(500);
}

#[test]
fn seeds_from_750() {
    simulate_from(750);
}
