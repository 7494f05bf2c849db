//! Thousands of hostile runs on one grader leave nothing behind.
//!
//! `SLUICE_SOAK_RUNS` sets how many in each tier (80 where not set). The limits are small, so that most runs
//! end by a limit. The long one takes about nine minutes a tier on two cores: `SLUICE_SOAK_RUNS=10000 cargo
//! test -p sandbox --test soak -- --nocapture`.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/allocated.rs"]
mod allocated;
#[path = "support/arena.rs"]
mod arena;

use std::collections::BTreeMap;
use std::time::Duration;

use allocated::allocated;
use arena::{Census, Program};
use sandbox::{GraderConfig, Limits, Tier, Verdict};

fn soak(tier: Tier) {
    let _alone = arena::alone();
    let runs: usize =
        std::env::var_os("SLUICE_SOAK_RUNS").map_or(80, |text| text.to_string_lossy().parse().unwrap());
    let programs: Vec<_> =
        arena::programs("attacks").iter().map(|name| Program::load("attacks", name)).collect();
    let limits = Limits {
        cpu: Duration::from_millis(60),
        wall: Duration::from_millis(250),
        memory_bytes: 64 << 20,
        ..arena::tight()
    };
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let grader = arena::grader_with(GraderConfig {
        tier: Some(tier),
        workers,
        max_runs_per_zygote: 50,
        ..GraderConfig::default()
    });
    let full = || {
        let deadline = arena::Moment::now() + Duration::from_secs(20);
        while grader.stats().idle_candidates + grader.stats().idle_testers < 2 * (workers + 1) {
            assert!(arena::Moment::now() < deadline, "the pool does not fill up");
            std::thread::yield_now();
        }
    };
    let mut verdicts: BTreeMap<Verdict, usize> = BTreeMap::new();
    let mut round = |count: usize| {
        for index in 0..count {
            let program = &programs[index % programs.len()];
            let grade = grader.grade(&program.problem, &program.source, &limits).unwrap();
            *verdicts.entry(grade.verdict).or_default() += 1;
            // Right programs whose attack got nowhere are the only ones that may pass.
            let may_pass = program.expected(tier).contains(&Verdict::Accepted);
            assert!(may_pass || grade.verdict != Verdict::Accepted, "{} was accepted", program.name);
            if index % 25 == 0 {
                let honest =
                    grader.grade(&arena::problem("increment"), arena::RIGHT, &arena::tight()).unwrap();
                assert_eq!(honest.verdict, Verdict::Accepted, "after {}: {}", program.name, honest.detail);
            }
        }
    };
    // Pools and caches reach their size first.
    round((runs / 4).max(programs.len().min(runs)));
    full();
    let (before, live) = (Census::take(), allocated());
    round(runs);
    full();
    before.await_again(Duration::from_secs(20));
    let grown = allocated().saturating_sub(live);
    assert!(grown * 20 <= live, "{live} bytes were allocated before, {grown} more after");
    let stats = grader.stats();
    println!(
        "tier {tier}: {verdicts:?}, {} recycled, {} discarded, {live} bytes allocated before, {grown} more after",
        stats.zygotes_recycled, stats.zygotes_discarded
    );
    assert_eq!(verdicts.get(&Verdict::InternalError), None);
}

#[test]
fn soak_tier_a() {
    soak(Tier::A);
}

#[test]
fn soak_tier_b() {
    soak(Tier::B);
}
