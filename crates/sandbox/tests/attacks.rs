//! The attack corpus: every program of `tests/attacks/` in both tiers, each a test of its own. A new file is
//! a new test.
//!
//! Programs that try to get out are otherwise right and say so only where they got nowhere; programs that try
//! to pass are wrong. The header of each names the verdicts it may have. Each runs twice in a row on the same
//! zygotes, so that what it leaves for the next run is found by itself, and then an honest program has to be
//! accepted and the census has to be what it was.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/arena.rs"]
mod arena;

use std::collections::BTreeSet;
use std::time::Duration;

use arena::{Census, Program, RIGHT};
use libtest_mimic::{Arguments, Trial};
use sandbox::{Tier, Verdict};

fn survive(name: &str, tier: Tier) {
    let _alone = arena::alone();
    let program = Program::load("attacks", name);
    let expected = program.expected(tier);
    let grader = arena::grader(tier);
    let honest = || {
        let grade = grader.grade(&arena::problem("increment"), RIGHT, &arena::tight()).unwrap();
        assert_eq!(grade.verdict, Verdict::Accepted, "an honest program beside {name}: {}", grade.detail);
    };
    honest();
    // Every zygote that the pool starts by itself is there.
    let deadline = arena::Moment::now() + Duration::from_secs(20);
    while grader.stats().idle_candidates + grader.stats().idle_testers < 4 && arena::Moment::now() < deadline
    {
        std::thread::yield_now();
    }
    let before = Census::take();
    for _ in 0..2 {
        let limits = program.limits();
        let grade = grader.grade(&program.problem, &program.source, &limits).unwrap();
        assert!(
            expected.contains(&grade.verdict),
            "{name} in tier {tier}: {} ({}), expected {expected:?}",
            grade.verdict,
            grade.detail
        );
        assert!(grade.detail.is_ascii() && !grade.detail.contains(char::is_control), "{:?}", grade.detail);
        let own = grade.wall - grade.stalled;
        assert!(own < limits.wall + Duration::from_millis(500), "took {:?}, {own:?} of its own", grade.wall);
    }
    for _ in 0..3 {
        honest();
    }
    before.await_again(Duration::from_secs(10));
    let discarded = grader.stats().zygotes_discarded;
    assert_eq!(discarded, 0, "an attack reached a zygote");
    drop(grader);
    assert_eq!(arena::descendants(std::process::id()), [], "processes left by a dropped grader");
}

/// One program of every class, 01 to 74.
fn every_class_has_a_program(names: &BTreeSet<String>) {
    for class in 1..=74 {
        let prefix = format!("{class:02}-");
        assert!(names.iter().any(|name| name.starts_with(&prefix)), "no program of class {class}");
    }
}

fn main() {
    let names = arena::programs("attacks");
    let mut trials = Vec::new();
    for (name, tier) in names.iter().flat_map(|name| [(name, Tier::A), (name, Tier::B)]) {
        let file = name.clone();
        trials.push(Trial::test(format!("{name}::tier_{tier}"), move || {
            survive(&file, tier);
            Ok(())
        }));
    }
    trials.push(Trial::test("every_class_has_a_program", move || {
        every_class_has_a_program(&names);
        Ok(())
    }));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
