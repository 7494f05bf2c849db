//! Runs that can never succeed say so, with the cause, and end; runs that only wait do not.

use std::time::Duration;

use coordinator::state::{Cause, Event, Notice, Phase, RunPlan};
use types::{FailReason, RolloutId};

use crate::crowd::{Crowd, big_plan};
use crate::small_run::plan;
use crate::world::World;

fn run(plan: RunPlan, free_slots: u32) -> Crowd {
    let mut crowd = Crowd::new(plan, 1);
    crowd.join(0);
    crowd.heartbeat(0, free_slots);
    crowd
}

/// Lets some time pass in which the actor is alive, and `work` is done with what it is leased.
fn live(crowd: &mut Crowd, time: Duration, free_slots: u32, work: impl Fn(&mut Crowd, RolloutId)) {
    let end = crowd.now + time;
    while crowd.now < end && crowd.finished.is_none() {
        crowd.now = crowd.now + Duration::from_millis(500);
        crowd.heartbeat(0, free_slots);
        crowd.deliver(Event::Learner(alive()));
        for (_, id) in std::mem::take(&mut crowd.leased).into_iter().take(64) {
            work(crowd, id);
        }
    }
}

fn alive() -> coordinator::state::LearnerEvent {
    let phase = types::link::learner::LearnerPhase::Waiting;
    coordinator::state::LearnerEvent::Report(types::link::learner::LearnerReport::Alive(phase))
}

/// The cause is said at once, and ends the run after `hopeless_timeout`.
fn assert_given_up(crowd: &Crowd, sentence: &str) {
    let found = crowd.notices.iter().find_map(|notice| match notice {
        Notice::Hopeless { cause, .. } => Some(cause.to_string()),
        _ => None,
    });
    assert!(found.as_ref().is_some_and(|found| found.contains(sentence)), "{found:?}");
    assert_eq!(crowd.finished, Some(Phase::Stopped));
    let cause = crowd.state.given_up().map(ToString::to_string).unwrap();
    assert!(cause.contains(sentence), "{cause}");
}

#[test]
fn no_actor_with_room_for_a_group_ends_the_run() {
    let mut crowd = run(big_plan(), 3);
    live(&mut crowd, Duration::from_secs(20), 3, |_, _| {});
    assert!(crowd.finished.is_none(), "an actor with room may come");
    live(&mut crowd, Duration::from_secs(60), 3, |_, _| {});
    assert_given_up(&crowd, "no actor has room for one group of 4 responses: the most is 3 (actor actor-0)");
}

#[test]
fn an_actor_with_room_comes_in_time() {
    let mut crowd = run(big_plan(), 3);
    live(&mut crowd, Duration::from_secs(20), 3, |_, _| {});
    assert!(crowd.state.hopeless().is_some());
    live(&mut crowd, Duration::from_secs(60), 4, Crowd::score);
    assert_eq!((crowd.state.hopeless(), crowd.finished), (None, None));
}

#[test]
fn equal_scores_everywhere_end_the_run() {
    let mut crowd = run(big_plan(), 400);
    live(&mut crowd, Duration::from_secs(120), 400, |crowd, id| crowd.score_with(id, 0.5));
    assert_given_up(&crowd, "all scores carry no signal");
}

#[test]
fn prompts_that_do_not_fit_end_the_run_and_the_first_detail_is_said_once() {
    let mut crowd = run(big_plan(), 400);
    let detail = "the prompt has 9 tokens, the context 4";
    live(&mut crowd, Duration::from_secs(120), 400, |crowd, id| {
        crowd.fail(id, FailReason::Generation, detail);
    });
    assert_given_up(&crowd, detail);
    let said = crowd.notices.iter().filter(|notice| matches!(notice, Notice::FirstFailure { .. })).count();
    assert_eq!(said, 1);
}

#[test]
fn a_scorer_that_always_fails_ends_the_run() {
    let mut crowd = run(big_plan(), 400);
    live(&mut crowd, Duration::from_secs(120), 400, |crowd, id| {
        crowd.fail(id, FailReason::RewardError, "python: KeyError: 'gold'");
    });
    assert_given_up(&crowd, "python: KeyError: 'gold'");
}

#[test]
fn failures_between_scores_are_no_reason_to_stop() {
    let mut crowd = run(big_plan(), 400);
    live(&mut crowd, Duration::from_secs(120), 400, |crowd, id| {
        if id.prompt.ordinal % 50 == 0 {
            crowd.score(id);
        } else {
            crowd.fail(id, FailReason::RewardError, "busy");
        }
    });
    assert_eq!((crowd.state.given_up(), crowd.finished), (None, None));
}

#[test]
fn attempts_that_come_back_say_nothing_about_the_next_ones() {
    for reason in [FailReason::ActorLost, FailReason::Returned, FailReason::LeaseExpired] {
        let mut crowd = run(RunPlan { hopeless_groups: 1 << 30, ..big_plan() }, 400);
        live(&mut crowd, Duration::from_secs(120), 400, |crowd, id| crowd.fail(id, reason, "came back"));
        assert_eq!((crowd.state.hopeless(), crowd.finished), (None, None), "{reason:?}");
        assert!(!crowd.notices.iter().any(|notice| matches!(notice, Notice::FirstFailure { .. })));
    }
}

#[test]
fn nothing_that_moves_ends_the_run_after_the_timeout() {
    let plan = RunPlan { standstill_timeout: Duration::from_secs(60), ..big_plan() };
    let mut crowd = run(plan, 4);
    live(&mut crowd, Duration::from_secs(55), 4, |_, _| {});
    assert_eq!(crowd.finished, None);
    live(&mut crowd, Duration::from_secs(60), 4, |_, _| {});
    assert!(matches!(crowd.state.given_up(), Some(Cause::Standstill { .. })), "{:?}", crowd.state.given_up());
}

#[test]
fn a_coordinator_that_was_away_does_not_hold_that_against_the_run() {
    let plan = RunPlan { standstill_timeout: Duration::from_secs(60), ..big_plan() };
    let mut crowd = run(plan, 4);
    crowd.now = crowd.now + Duration::from_secs(600);
    crowd.deliver(Event::WasAway(Duration::from_secs(600)));
    live(&mut crowd, Duration::from_secs(50), 4, |_, _| {});
    assert_eq!((crowd.state.hopeless(), crowd.finished), (None, None));
}

#[test]
fn an_update_that_changes_no_weight_is_a_version_all_the_same() {
    for max_staleness in [0, 1] {
        let mut world = World::new(RunPlan { max_staleness, ..plan() }, 3);
        world.learning_changes_weights = false;
        world.run_to_the_end(20_000);
        assert_eq!(world.state.phase(), Phase::Finished);
    }
}
