//! The state machine under a random world: members that come, go, fail and repeat themselves, in virtual
//! time. After every event the invariants of `state.rs` hold; with a fair world every run ends with every
//! attempt accounted for.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "state/choice.rs"]
mod choice;
#[path = "state/crash_points.rs"]
mod crash_points;
#[path = "state/crowd.rs"]
mod crowd;
#[path = "state/detectors.rs"]
mod detectors;
#[path = "state/drain.rs"]
mod drain;
#[path = "state/evaluations.rs"]
mod evaluations;
#[path = "state/fuzzed_journal.rs"]
mod fuzzed_journal;
#[path = "state/hopeless.rs"]
mod hopeless;
#[path = "state/journal.rs"]
mod journal;
#[path = "state/length_bias.rs"]
mod length_bias;
#[path = "state/plane.rs"]
mod plane;
#[path = "state/sets.rs"]
mod sets;
#[path = "state/simulation.rs"]
mod simulation;
#[path = "state/small_run.rs"]
mod small_run;
#[path = "state/snapshots.rs"]
mod snapshots;
#[path = "state/torn.rs"]
mod torn;
#[path = "state/vocabularies.rs"]
mod vocabularies;
#[path = "state/waiting.rs"]
mod waiting;
#[path = "state/world.rs"]
mod world;

use std::time::Duration;

use algo::filtration::{Filtration, Strategy as Filter};
use coordinator::state::{
    Applied, Effect, Event, Fact, FiltrationPlan, Order, Phase, RunPlan, Schedule, State, StepRecord,
    StrategyChoice,
};
use proptest::prelude::*;
use small_run::plan;
use types::{Ending, FailReason, FilterReason, PolicyVersion, PromptId, RolloutId, Timestamp};
use world::{Faults, World};

#[test]
fn a_quiet_world_trains_every_batch() {
    for staleness in [0, 2] {
        let mut world = World::new(RunPlan { max_staleness: staleness, ..plan() }, 1);
        world.run_to_the_end(20_000);
        let state = &world.state;
        assert_eq!(state.phase(), Phase::Finished);
        let account = state.account();
        let plan = state.plan();
        // best-worst keeps exactly 2 of N.
        assert_eq!(account.count(Ending::Trained), plan.batches * plan.batch_prompts * 2);
        assert_eq!(account.issued(), account.ended(), "nothing is left in flight");
        assert_eq!(world.max_staleness_trained, if staleness == 0 { 0 } else { world.max_staleness_trained });
        assert!(world.max_staleness_trained <= staleness);
    }
}

#[test]
fn synchronous_runs_issue_exactly_what_they_train() {
    let mut world = World::new(plan(), 3);
    world.run_to_the_end(20_000);
    let plan = world.state.plan();
    let needed = plan.batches * plan.batch_prompts * u64::from(plan.group_size);
    assert_eq!(world.state.account().issued(), needed);
}

#[test]
fn groups_without_signal_are_filtered_and_replaced() {
    let mut world = World::new(plan(), 5);
    world.equal_scores_in_percent = 40;
    world.run_to_the_end(50_000);
    let account = world.state.account();
    assert!(account.count(Ending::Filtered(FilterReason::NoSignal)) > 0);
    let plan = world.state.plan();
    assert_eq!(account.count(Ending::Trained), plan.batches * plan.batch_prompts * 2, "batches stay full");
}

/// Otherwise strategies could not be compared by it, nor with a run that filters nothing.
#[test]
fn what_is_said_of_all_responses_counts_every_complete_group() {
    let mut world = World::new(plan(), 5);
    world.equal_scores_in_percent = 40;
    world.run_to_the_end(50_000);
    let (plan, account) = (world.state.plan(), world.state.account());
    let steps: Vec<_> = world.state.history().steps().collect();
    let sum = |of: fn(&StepRecord) -> u64| steps.iter().map(|step| of(step)).sum::<u64>();
    let (groups, without) = (sum(|step| step.groups), sum(|step| step.groups_without_signal));
    assert_eq!(groups - without, plan.batches * plan.batch_prompts, "those that train");
    assert_eq!(sum(|step| step.responses), groups * u64::from(plan.group_size));
    let filtered = account.count(Ending::Filtered(FilterReason::NoSignal));
    assert_eq!(without * u64::from(plan.group_size), filtered, "and those that do not");
    assert!(without > 0);
}

/// Strategies that leave out groups without signal and strategies that do not say the same of one policy,
/// which is the mean of every response of every group.
#[test]
fn the_mean_score_is_that_of_all_responses_whatever_the_strategy() {
    let means = [Filter::None, Filter::BestWorst].map(|strategy| {
        let choice = StrategyChoice::Fixed(strategy);
        let filtration = FiltrationPlan { strategy: choice, ..FiltrationPlan::default() };
        let plan = RunPlan { deterministic: true, batches: 30, shuffle: false, filtration, ..plan() };
        let group_size = plan.group_size;
        let mut world = World::new(plan, 5);
        (world.equal_scores_in_percent, world.learning_changes_weights) = (40, false);
        world.run_to_the_end(200_000);
        let steps: Vec<_> = world.state.history().steps().cloned().collect();
        let responses: u64 = steps.iter().map(|step| step.responses).sum();
        let sum: f64 = steps.iter().map(|step| step.score_mean * step.responses as f64).sum();
        // Prompts come in order, so that these groups are the first ones.
        let groups: u64 = steps.iter().map(|step| step.groups).sum();
        let given: f64 = (0..groups)
            .flat_map(|n| (0..group_size).map(move |sibling| (n, sibling)))
            .map(|(n, sibling)| {
                let prompts = world.state.plan().prompts;
                let epoch = u32::try_from(n / prompts).unwrap();
                let prompt = PromptId { epoch, ordinal: n % prompts };
                let id = RolloutId { prompt, sibling, attempt: 0 };
                f64::from(world.score_of(id, PolicyVersion(0)).score)
            })
            .sum();
        assert_eq!(responses, groups * u64::from(group_size));
        let (said, expected) = (sum / responses as f64, given / responses as f64);
        assert!((said - expected).abs() < 1e-6, "{strategy:?}: {said} is said, {expected} was given");
        said
    });
    // Of groups that are not the same, but of one policy: 0.40; of those with signal alone it would be 0.50.
    assert!((means[0] - means[1]).abs() < 0.03, "{means:?}");
}

#[test]
fn deterministic_leases_do_not_depend_on_timing() {
    let plan = RunPlan { deterministic: true, lease_prompts: 3, ..plan() };
    let compositions: Vec<_> = [11, 12, 13, 14]
        .into_iter()
        .map(|seed| {
            let mut world = World::new(plan.clone(), seed);
            world.equal_scores_in_percent = 20;
            // A crash repeats whole leases, so that the composition is the same again.
            world.faults.crash_actor = if seed > 12 { 10 } else { 0 };
            world.run_to_the_end(50_000);
            (world.compositions(), world.trained_samples.clone())
        })
        .collect();
    for other in &compositions[1..] {
        assert_eq!(other.0, compositions[0].0, "which prompts are generated together");
        assert_eq!(other.1, compositions[0].1, "which responses are trained in which batch");
    }
}

#[test]
fn a_drain_stops_and_a_restart_goes_on() {
    let mut world = World::new(plan(), 7);
    for _ in 0..150 {
        world.step();
    }
    world.deliver(Event::DrainRequested);
    for _ in 0..2_000 {
        if world.state.phase() == Phase::Stopped {
            break;
        }
        world.step();
    }
    assert_eq!(world.state.phase(), Phase::Stopped);
    assert!(
        world.state.batches().checkpointed() >= world.state.batches().trained(),
        "what was trained is written"
    );
    world.restart();
    world.run_to_the_end(20_000);
    assert_eq!(world.state.phase(), Phase::Finished);
}

#[test]
fn a_complete_run_that_is_started_again_ends_at_once() {
    let mut world = World::new(plan(), 7);
    world.run_to_the_end(20_000);
    let effects = world.deliver(Event::Started(Box::new(plan())));
    assert!(effects.contains(&Effect::Finish(Phase::Finished)), "{effects:?}");
}

#[test]
fn a_learner_that_lost_its_checkpoint_is_refused() {
    let mut world = World::new(plan(), 9);
    while world.state.batches().checkpointed().0 == 0 {
        world.step();
    }
    let effects = world.learner_rejoins_from_nothing();
    let refused = effects.iter().any(|effect| match effect {
        Effect::Refuse { refusal, .. } => refusal.reason.contains("restore that checkpoint"),
        _ => false,
    });
    assert!(refused, "{effects:?}");
}

#[test]
fn a_silent_actor_is_lost_after_the_timeout_and_its_work_issued_anew() {
    let mut world = World::new(RunPlan { batches: 1, ..plan() }, 2);
    while world.state.in_flight() == 0 {
        world.step();
    }
    let timeout = world.state.plan().heartbeat_timeout;
    world.now = world.now + timeout + Duration::from_millis(1);
    let in_flight = world.state.in_flight();
    world.settle();
    let lapsed = world.journal.iter().filter_map(|(_, fact)| match fact {
        Fact::Lapsed { ids, reason: FailReason::ActorLost } => Some(ids.len() as u64),
        _ => None,
    });
    assert_eq!(lapsed.sum::<u64>(), in_flight, "all of it waits to be issued anew");
    world.run_to_the_end(20_000);
    assert!(world.state.account().count(Ending::Failed(FailReason::ActorLost)) > 0);
}

#[test]
fn a_plan_that_changes_the_meaning_of_the_journal_is_named() {
    let began = plan();
    let now = RunPlan { group_size: 8, batches: 99, ..plan() };
    assert_eq!(now.conflicts_with(&began), ["group_size was 4 when the run began and is 8 now"]);
    assert!(plan().conflicts_with(&began).is_empty());
}

#[test]
fn what_changed_while_the_run_went_on_is_recorded() {
    let mut world = World::new(plan(), 7);
    while world.state.batches().trained().0 < 2 {
        world.step();
    }
    let longer = RunPlan { batches: 8, lease_timeout: Duration::from_secs(90), ..plan() };
    world.deliver(Event::Started(Box::new(longer)));
    let changes = world.state.history().changes().map(|change| (change.after.0, change.change.clone()));
    let expected = [
        "batches was 6 when the run began and is 8 now",
        "lease_timeout was 60s when the run began and is 90s now",
    ];
    assert!(changes.eq(expected.map(|change| (2, change.to_owned()))));
}

#[test]
fn vade_trains_every_batch_and_never_issues_an_id_twice() {
    let schedule = Schedule { order: Order::Vade, ..Schedule::default() };
    let mut world = World::new(RunPlan { schedule, max_staleness: 1, ..plan() }, 4);
    world.equal_scores_in_percent = 30;
    world.run_to_the_end(50_000);
    assert_eq!(world.state.phase(), Phase::Finished);
    // `World` asserts that no response trains twice; prompts do come again.
    let prompts: Vec<_> = world.compositions().into_iter().flatten().collect();
    assert!(prompts.iter().any(|prompt| prompt.epoch > 0), "{prompts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_accounting_balances_under_chaos(
        seed: u64,
        staleness in 0..3u64,
        deterministic: bool,
        strategy in prop_oneof![
            Just(Filter::BestWorst),
            Just(Filter::BestRandom),
            Just(Filter::None),
            Just(Filter::Top { threshold: 0.5 }),
            Just(Filter::Power { k: 1.0 }),
        ],
        send_filtered: bool,
        settles in prop_oneof![Just(100u32), Just(20)],
        order in prop_oneof![Just(Order::Epochs), Just(Order::Vade), Just(Order::Curriculum)],
    ) {
        let max_staleness = if deterministic { 0 } else { staleness };
        let filtration = FiltrationPlan::fixed(Filtration { strategy, ..Filtration::default() });
        let schedule = Schedule { order, ..Schedule::default() };
        let mut world =
            World::new(RunPlan { max_staleness, deterministic, filtration, send_filtered, schedule, ..plan() }, seed);
        world.faults = Faults::chaos();
        world.equal_scores_in_percent = 10;
        world.settles_in_percent = settles;
        // `World` checks the invariants after every event.
        for _ in 0..1_500 {
            world.step();
        }
        world.end_faults();
        world.run_to_the_end(60_000);
    }

    #[test]
    fn a_journal_replays_to_the_same_state(seed: u64) {
        let mut world = World::new(plan(), seed);
        world.faults = Faults::chaos();
        for _ in 0..800 {
            world.step();
        }
        world.check_journal();
    }
}

#[test]
fn time_is_only_what_it_is_told() {
    let mut state = State::new(plan());
    assert_eq!(state.next_deadline(), None, "nothing is awaited before anybody came");
    assert_eq!(state.settle(Timestamp(u64::MAX)), Applied::default());
}
