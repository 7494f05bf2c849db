//! Several data sets, and a curriculum.

use coordinator::state::{Order, RunPlan, Schedule, SetPlan};
use types::PromptId;

use crate::small_run::plan;
use crate::world::{Faults, World};

fn sets() -> Vec<SetPlan> {
    let set = |name: &str, prompts, share| SetPlan { name: name.to_owned(), prompts, share };
    vec![set("code", 8, 3.0), set("math", 5, 1.0)]
}

#[test]
fn shares_of_data_sets_hold_across_crashes_and_each_has_figures_of_its_own() {
    for chaos in [false, true] {
        let mut world = World::new(RunPlan { sets: sets(), batches: 8, ..plan() }, 31);
        if chaos {
            world.faults = Faults::chaos();
            for _ in 0..1_500 {
                world.step();
            }
            world.end_faults();
        }
        world.run_to_the_end(60_000);
        let mut begun: Vec<PromptId> = world.compositions().into_iter().flatten().collect();
        begun.sort_unstable();
        begun.dedup();
        let of_code = begun.iter().filter(|prompt| prompt.ordinal < 8).count() as f64;
        let quota = begun.len() as f64 * 0.75;
        assert!((of_code - quota).abs() <= 1.0, "{of_code} of {}", begun.len());
        let steps: Vec<_> = world.state.history().steps().cloned().collect();
        for step in &steps {
            let groups: u64 = step.sets.values().map(|set| set.groups).sum();
            assert_eq!(groups, step.groups, "every group is of a set");
        }
        let code: u64 = steps.iter().filter_map(|step| Some(step.sets.get("code")?.groups)).sum();
        assert!(code > 0 && steps.iter().any(|step| step.sets.contains_key("math")));
    }
}

#[test]
fn a_curriculum_passes_over_what_is_always_right_or_always_wrong() {
    let schedule = Schedule {
        order: Order::Curriculum,
        band_low: 0.3,
        band_high: 0.7,
        outside_share: 0.0,
        ..Schedule::default()
    };
    let mut world = World::new(RunPlan { schedule, batches: 12, ..plan() }, 5);
    world.run_to_the_end(60_000);
    let mut begun: Vec<PromptId> = world.compositions().into_iter().flatten().collect();
    begun.sort_unstable();
    begun.dedup();
    let of_epoch = |epoch| begun.iter().filter(|prompt| prompt.epoch == epoch).count();
    assert_eq!(of_epoch(0), 13, "what was never tried is not passed over");
    assert!(of_epoch(1) < 13, "{begun:?}");
}
