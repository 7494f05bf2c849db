//! Which responses train, where that is decided over a whole batch or by what earlier batches have shown, and
//! batches whose refills are used up.

use std::collections::BTreeMap;

use algo::filtration::{Filtration, Mode, Strategy};
use coordinator::state::{AutoPlan, Fact, FiltrationPlan, Phase, RunPlan, StepRecord, StrategyChoice};
use types::{BatchId, Ending, FilterReason, PromptId};

use crate::small_run::plan;
use crate::world::World;

fn auto() -> FiltrationPlan {
    let candidates = vec![Strategy::BestOfN, Strategy::None, Strategy::BestWorst];
    let auto = AutoPlan { start: Strategy::BestOfN, candidates, margin: 0.0, windows: 2, min_groups: 10 };
    FiltrationPlan { strategy: StrategyChoice::Auto, window_batches: 4, auto, ..FiltrationPlan::default() }
}

fn chosen(world: &World) -> Vec<Strategy> {
    let facts = world.journal.iter();
    let strategies = facts.filter_map(|(_, fact)| match fact {
        Fact::StrategyChosen { strategy, .. } => Some(*strategy),
        _ => None,
    });
    strategies.collect()
}

fn steps(world: &World) -> Vec<StepRecord> {
    world.state.history().steps().cloned().collect()
}

#[test]
fn what_is_chosen_and_drawn_is_the_same_again_after_crashes() {
    let plan = RunPlan { deterministic: true, batches: 12, batch_prompts: 8, filtration: auto(), ..plan() };
    let mut runs = Vec::new();
    for seed in 21..25 {
        let mut world = World::new(plan.clone(), seed);
        if seed > 21 {
            (world.faults.crash_actor, world.faults.crash_in_commit) = (5, 5);
        }
        for _ in 0..4_000 {
            world.step();
        }
        world.end_faults();
        world.run_to_the_end(60_000);
        let decisions: Vec<_> = steps(&world)
            .iter()
            .map(|step| (step.filtration.strategy.clone(), step.filtration.decision.clone()))
            .collect();
        runs.push((chosen(&world), world.trained_samples.clone(), decisions));
    }
    assert!(!runs[0].0.is_empty(), "something is chosen: {:?}", runs[0].2);
    for other in &runs[1..] {
        assert_eq!(other.0, runs[0].0, "what was chosen");
        assert_eq!(other.1, runs[0].1, "which responses are trained in which batch");
        assert_eq!(other.2, runs[0].2, "what is said about it");
    }
    let strategies: Vec<&str> = runs[0].2.iter().map(|(strategy, _)| strategy.as_str()).collect();
    assert_eq!(strategies[0], "best-of-n");
    assert_ne!(strategies.last(), Some(&"best-of-n"));
    let changed =
        runs[0].2.iter().filter_map(|(_, said)| said.as_ref()).filter(|said| said.starts_with("chooses"));
    assert_eq!(changed.count(), runs[0].0.len(), "the step says why");
}

#[test]
fn a_choice_is_said_on_the_page_and_in_force_for_the_groups_after_it() {
    let mut world = World::new(RunPlan { batches: 12, batch_prompts: 8, filtration: auto(), ..plan() }, 3);
    world.run_to_the_end(60_000);
    let chosen = chosen(&world);
    assert!(!chosen.is_empty());
    let changes: Vec<String> = world.state.history().changes().map(|change| change.change.clone()).collect();
    let first = format!("the filtration strategy was best-of-n and is {} now: R² is at least", chosen[0]);
    assert!(changes[0].starts_with(&first), "{changes:?}");
    let steps = steps(&world);
    let after = steps.iter().position(|step| step.filtration.strategy != "best-of-n").unwrap();
    assert_eq!(steps[0].filtration.batch.kept, 8, "one of each group");
    assert!(steps[after..].iter().any(|step| step.filtration.batch.kept > 8));
}

/// Weights of a batch before it is trained, by prompt.
fn weights(world: &World) -> Option<BTreeMap<PromptId, Vec<f32>>> {
    let batch = world.state.batches().untrained().next()?;
    let mut weights: BTreeMap<PromptId, Vec<f32>> = BTreeMap::new();
    for sample in &batch.samples {
        weights.entry(sample.id.prompt).or_default().push(sample.weight);
    }
    Some(weights)
}

fn first_weights(strategy: Strategy, mode: Mode) -> BTreeMap<PromptId, Vec<f32>> {
    let filtration = FiltrationPlan::fixed(Filtration { strategy, mode, ..Filtration::default() });
    let mut world = World::new(RunPlan { filtration, ..plan() }, 6);
    loop {
        world.step();
        if let Some(weights) = weights(&world) {
            world.run_to_the_end(20_000);
            return weights;
        }
    }
}

#[test]
fn power_weighs_responses_over_the_whole_batch_and_per_prompt_within_the_prompt() {
    let sums = |weights: BTreeMap<PromptId, Vec<f32>>| -> Vec<f32> {
        weights.values().map(|weights| weights.iter().sum()).collect()
    };
    let buffer = sums(first_weights(Strategy::Power { k: 2.0 }, Mode::Select));
    assert!((buffer.iter().sum::<f32>() - 20.0).abs() < 1e-3, "5 prompts of 4: {buffer:?}");
    assert!(buffer.iter().any(|sum| (sum - 4.0).abs() > 0.1), "prompts differ: {buffer:?}");
    let per_prompt = sums(first_weights(Strategy::PowerPerPrompt { k: 2.0 }, Mode::Select));
    assert!(per_prompt.iter().all(|sum| (sum - 4.0).abs() < 1e-3), "{per_prompt:?}");
}

#[test]
fn draws_over_the_buffer_leave_what_was_not_drawn_as_filtered() {
    let drawn = first_weights(Strategy::BestWorst, Mode::ResampleBuffer { draws: 4 });
    assert_eq!(drawn.values().flatten().sum::<f32>(), 20.0, "4 draws for each of 5 prompts");
    assert!(drawn.values().all(|weights| weights.len() <= 2), "the best and the worst of each: {drawn:?}");
    let mode = Mode::ResampleBuffer { draws: 1 };
    let filtration = FiltrationPlan::fixed(Filtration { mode, ..Filtration::default() });
    let mut world = World::new(RunPlan { filtration, ..plan() }, 6);
    world.run_to_the_end(20_000);
    let account = world.state.account();
    let (trained, filtered) =
        (account.count(Ending::Trained), account.count(Ending::Filtered(FilterReason::Strategy)));
    assert!(
        trained <= 30 && trained + filtered == 120,
        "{trained} of 6 batches of 5 draws, {filtered} filtered"
    );
}

#[test]
fn a_batch_goes_on_with_what_it_has_when_its_refills_are_used_up() {
    for max_staleness in [0, 2] {
        let mut world = World::new(RunPlan { max_refill_batches: Some(1), max_staleness, ..plan() }, 8);
        world.equal_scores_in_percent = 80;
        world.run_to_the_end(60_000);
        assert_eq!(world.state.phase(), Phase::Finished);
        let steps = steps(&world);
        assert!(steps.iter().any(|step| step.prompts < 5), "some batches are short");
        for step in &steps {
            assert!(step.prompts >= 1);
            let in_vain = step.refill.groups;
            assert!(step.prompts == 5 || in_vain >= 5, "a short batch has used up its refills: {step:?}");
            assert!(step.groups >= step.prompts + in_vain, "those too old for their batch come on top");
            assert_eq!(step.refill.tokens, in_vain * 4 * 12);
        }
        assert_eq!(steps.last().map(|step| step.batch), Some(BatchId(6)));
    }
}

#[test]
fn without_refills_a_batch_is_what_its_first_prompts_give() {
    let mut world = World::new(RunPlan { max_refill_batches: Some(0), ..plan() }, 8);
    world.equal_scores_in_percent = 30;
    world.run_to_the_end(60_000);
    for step in steps(&world) {
        assert!(step.groups == 5 || step.prompts == 1, "{} groups for {} prompts", step.groups, step.prompts);
    }
}
