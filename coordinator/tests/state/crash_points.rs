//! Crash points: whatever part of a journal became durable, a coordinator starts over it and goes on.

use coordinator::state::{Durable, Event, RunPlan, State};
use types::Timestamp;

use crate::small_run::{evaluation, plan};
use crate::world::{Faults, World};

/// Crash points of one test; four of them run side by side.
const POINTS: usize = 25_000;
/// Of these, one in so many is looked at through a snapshot, and for a second crash right after the start.
const THOROUGH: usize = 32;

/// A coordinator starts over what a journal has up to here, and everything adds up.
fn check_start(durable: &Durable, at: Timestamp) {
    let mut state = State::over(durable.clone());
    let started = Event::Started(Box::new(state.plan().clone()));
    drop(state.apply(at, started));
    drop(state.settle(at));
    assert_eq!(state.unaccounted(), 0);
}

fn check_thoroughly(durable: &Durable, at: Timestamp) {
    let snapshot = serde_json::to_vec(durable).unwrap();
    let read: Durable = serde_json::from_slice(&snapshot).unwrap();
    assert_eq!(&read, durable, "a snapshot reads back as another run");
    let (mut again, mut state) = (read.clone(), State::over(read));
    let started = Event::Started(Box::new(state.plan().clone()));
    let mut facts = state.apply(at, started).facts;
    facts.extend(state.settle(at).facts);
    for fact in facts {
        drop(again.replay(at, fact));
    }
    assert_eq!(&again, state.durable());
}

fn check_from(first: u64) {
    let mut points = 0;
    for seed in first.. {
        let plan = RunPlan { evaluation: Some(evaluation()), ..plan() };
        let mut world = World::new(plan.clone(), seed);
        world.faults = Faults::chaos();
        world.equal_scores_in_percent = 20;
        for _ in 0..2_000 {
            world.step();
        }
        let mut durable = Durable::new(plan);
        for (at, fact) in &world.journal {
            let read = serde_json::from_slice(&serde_json::to_vec(fact).unwrap()).unwrap();
            assert_eq!(fact, &read, "a fact reads back as another");
            drop(durable.replay(*at, read));
            check_start(&durable, *at);
            if points % THOROUGH == 0 {
                check_thoroughly(&durable, *at);
            }
            points += 1;
        }
        if points >= POINTS {
            println!("{points} crash points in the journals of {} worlds", seed + 1 - first);
            return;
        }
    }
}

#[test]
fn in_worlds_from_1000() {
    check_from(1_000);
}

#[test]
fn in_worlds_from_2000() {
    check_from(2_000);
}

#[test]
fn in_worlds_from_3000() {
    check_from(3_000);
}

#[test]
fn in_worlds_from_4000() {
    check_from(4_000);
}
