//! Held-out prompts: asked when it is time, counted apart, never trained on.

use coordinator::state::{EvaluationPlan, Event, Phase, RunPlan};
use types::{Ending, PolicyVersion};

use crate::small_run::{evaluation, plan};
use crate::world::World;

fn versions(world: &World) -> Vec<u64> {
    world.state.evaluations().map(|record| record.version.0).collect()
}

#[test]
fn held_out_prompts_are_asked_now_and_then_and_change_nothing_of_training() {
    for (deterministic, seed) in [(false, 1), (true, 2), (true, 3)] {
        let plain = RunPlan { deterministic, ..plan() };
        let mut without = World::new(plain.clone(), seed);
        without.run_to_the_end(20_000);
        let mut world = World::new(RunPlan { evaluation: Some(evaluation()), ..plain }, seed);
        world.run_to_the_end(40_000);
        let (found, account) = (versions(&world), world.state.account());
        assert_eq!(
            (found.first(), found.last()),
            (Some(&0), Some(&6)),
            "before the first step, after the last"
        );
        let asked = found.len() as u64 * 3 * 2;
        assert_eq!(account.count(Ending::Evaluated), asked);
        let of_training = without.state.account();
        assert_eq!(account.issued(), of_training.issued() + asked);
        assert_eq!(account.count(Ending::Trained), of_training.count(Ending::Trained));
        for (step, expected) in world.state.history().steps().zip(without.state.history().steps()) {
            assert_eq!((step.responses, step.groups), (expected.responses, expected.groups));
        }
        if deterministic {
            assert_eq!(found, [0, 2, 4, 6]);
            assert_eq!(world.trained_samples, without.trained_samples);
            assert!(world.state.evaluations().all(|record| record.drawn_by == record.version.0 as f64));
        }
        let best: Vec<_> = world.state.evaluations().filter(|record| record.is_best).collect();
        assert!(best.is_sorted_by(|one, next| one.score_mean < next.score_mean), "{best:?}");
        let in_steps = world.state.history().steps().filter(|step| step.eval_version.is_some()).count();
        assert_eq!(in_steps, found.len() - 1, "the last is over after the last step");
    }
}

#[test]
fn a_run_ends_with_a_checkpoint_when_too_many_evaluations_are_not_better() {
    for (max_staleness, seed) in [(0, 5), (2, 6), (2, 7)] {
        let evaluation = Some(EvaluationPlan { every: 1, stop_after: 1, ..evaluation() });
        let mut world = World::new(RunPlan { batches: 200, max_staleness, evaluation, ..plan() }, seed);
        let is_over = |world: &World| world.state.phase() == Phase::Finished;
        for _ in 0..100_000 {
            if is_over(&world) {
                break;
            }
            world.step();
        }
        let state = &world.state;
        assert!(is_over(&world), "{}", state.waiting_for());
        let batches = state.batches();
        assert!((1..200).contains(&batches.trained().0), "{}", batches.trained());
        assert_eq!((batches.formed(), batches.checkpointed()), (batches.trained(), batches.trained()));
        assert_eq!(state.account().issued(), state.account().ended(), "nothing is left in flight");
        let last = state.evaluations().last().unwrap();
        assert!(last.ends_run && !last.is_best);
        let ended = state.plan().clone();
        world.deliver(Event::Started(Box::new(ended)));
        world.settle();
        assert!(is_over(&world), "a run that has ended is not taken up again");
    }
}

#[test]
fn an_evaluation_that_is_due_while_one_is_under_way_comes_after_it() {
    let every = EvaluationPlan { every: 1, prompts: 40, ..evaluation() };
    let plan = RunPlan { max_staleness: 3, evaluation: Some(every), ..plan() };
    let mut world = World::new(plan, 8);
    world.run_to_the_end(60_000);
    let found = versions(&world);
    assert!(found.is_sorted_by(|one, next| one < next), "{found:?}");
    assert_eq!(found.last(), Some(&6));
    let drawn_by = world.state.evaluations().map(|record| record.drawn_by);
    assert!(found.iter().zip(drawn_by).all(|(version, drawn_by)| drawn_by >= *version as f64));
    assert_eq!(world.state.version(), PolicyVersion(6));
}
