//! A busy machine makes no right answer wrong, and lets nobody go who does not use the processor
//! (docs/decisions.md, D22).
//!
//! Grader and load share one processor, so that other tests have the others. With `SLUICE_OVERLOAD_RUNS` so
//! many honest programs are graded on the whole machine beside eight busy processes, a thousand in about 25
//! minutes on two cores: `SLUICE_OVERLOAD_RUNS=1000 cargo test -p sandbox --test overload -- --nocapture`.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/arena.rs"]
mod arena;
#[path = "support/problems.rs"]
mod problems;

use std::process::{Child, Command};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use sandbox::{GraderConfig, Limits, Problem, Tier, Verdict};

/// Processes that do nothing but use the processor, each with a share of its own.
struct Load(Vec<Child>);

impl Load {
    fn of(processes: usize) -> Self {
        let busy = || Command::new("setsid").args(["sh", "-c", "while :; do :; done"]).spawn().unwrap();
        Self((0..processes).map(|_| busy()).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// Keeps this thread, and what it starts from here on, on one processor.
fn on_one_processor() {
    let mut mask = CpuSet::new();
    mask.set(std::thread::available_parallelism().unwrap().get() - 1).unwrap();
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &mask).unwrap();
}

/// A right response to `increment` that takes this much processor time.
fn busy(cpu_ms: u64) -> String {
    format!(
        "import time\nend = time.process_time() + {cpu_ms} / 1000\nwhile time.process_time() < end:\n    pass\n\n\
         def solve(n):\n    return n + 1\n"
    )
}

fn limits(cpu_ms: u64) -> Limits {
    Limits::with_timeout(Duration::from_millis(cpu_ms))
}

fn on_a_busy_processor(tier: Tier) {
    on_one_processor();
    let _load = Load::of(4);
    let grader = arena::grader(tier);
    let problem: Problem = arena::problem("increment");
    for _ in 0..2 {
        // A fifth of the processor: past twice its limit on the wall.
        let grade = grader.grade(&problem, &busy(300), &limits(500)).unwrap();
        assert_eq!(grade.verdict, Verdict::Accepted, "{grade:?}");
        assert!(grade.wall > limits(500).wall && grade.stalled > grade.wall / 3, "{grade:?}");
    }
    for source in [
        "import time\ntime.sleep(1000)\n",
        "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()\n",
        "import os\nread, write = os.pipe()\nos.read(read, 1)\n",
        "import time\nwhile True:\n    time.sleep(0.01)\n",
    ] {
        let grade = grader.grade(&problem, source, &limits(300)).unwrap();
        assert_eq!(grade.verdict, Verdict::WallLimit, "{source}: {grade:?}");
    }
    let endless = "while True:\n    pass\n";
    let grade = grader.grade(&problem, endless, &limits(200)).unwrap();
    assert_eq!(grade.verdict, Verdict::TimeLimit, "it had its time: {grade:?}");
    let starved = Limits { overload_wall: Duration::from_millis(1200), ..limits(500) };
    let grade = grader.grade(&problem, endless, &starved).unwrap();
    assert_eq!(grade.verdict, Verdict::Overloaded, "{grade:?}");
    assert!(grade.detail.contains("the machine is overloaded"), "{}", grade.detail);
}

#[test]
fn a_busy_processor_makes_nothing_wrong_and_excuses_no_sleeper_in_tier_a() {
    on_a_busy_processor(Tier::A);
}

#[test]
fn a_busy_processor_makes_nothing_wrong_and_excuses_no_sleeper_in_tier_b() {
    on_a_busy_processor(Tier::B);
}

#[test]
fn what_was_overloaded_is_tried_again_as_often_as_configured() {
    on_one_processor();
    let _load = Load::of(3);
    let config =
        GraderConfig { tier: Some(Tier::A), workers: 1, overload_retries: 2, ..GraderConfig::default() };
    let grader = arena::grader_with(config);
    let starved = Limits { overload_wall: Duration::from_secs(1), ..limits(500) };
    let grade = grader.grade(&arena::problem("increment"), "while True:\n    pass\n", &starved).unwrap();
    assert_eq!(grade.verdict, Verdict::Overloaded, "{grade:?}");
    assert_eq!(grader.stats().overload_retries, 2);
}

#[test]
fn of_many_honest_programs_under_load_none_is_judged_wrong() {
    let asked = std::env::var_os("SLUICE_OVERLOAD_RUNS").map(|text| text.to_string_lossy().parse().unwrap());
    let runs: usize = asked.unwrap_or(12);
    if asked.is_none() {
        on_one_processor();
    }
    let _load = Load::of(if asked.is_none() { 4 } else { 8 });
    let jobs: Vec<(Problem, String)> = (0..runs)
        .map(|run| match run % 4 {
            0 => (arena::problem("increment"), busy(300 + (run as u64 * 37) % 900)),
            _ => {
                let record = problems::problems().swap_remove(run % 164);
                (record.problem, record.reference.unwrap())
            }
        })
        .collect();
    let cores = std::thread::available_parallelism().unwrap().get();
    let config = GraderConfig { workers: cores, ..GraderConfig::default() };
    let grader = arena::grader_with(config);
    let grades = problems::in_parallel(&jobs, |(problem, response)| {
        grader.grade(problem, response, &Limits::default()).unwrap()
    });
    let count = |verdict: Verdict| grades.iter().filter(|grade| grade.verdict == verdict).count();
    let longest = grades.iter().map(|grade| grade.wall).max();
    println!(
        "{runs} honest programs: {} accepted, {} overloaded, longest {longest:?} on the wall",
        count(Verdict::Accepted),
        count(Verdict::Overloaded)
    );
    let wrong: Vec<_> = grades
        .iter()
        .filter(|grade| grade.verdict.judges_response() && grade.verdict != Verdict::Accepted)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
