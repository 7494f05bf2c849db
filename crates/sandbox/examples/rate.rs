//! Measures gradings a second and how fast a run past its wall limit is gone.
//!
//! `cargo run --release -p sandbox --example rate -- [seconds per row] [workers] [row]`; a row is such as
//! "tier A, zygote", and all of them where none is given.
//!
//! A grading is two isolated processes: the response, and the tests that question it. The program is trivial
//! on purpose: what is measured is the sandbox.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sandbox::{Error, Grader, GraderConfig, HumanEval, Limits, Problem, Tier, Verdict};

#[expect(clippy::disallowed_types, reason = "a measurement of wall time on OS threads")]
type Moment = std::time::Instant;

/// Programs that do not end by themselves: 01, 02, 03 and 08 of the attack corpus.
const ENDLESS: [(&str, &str); 4] = [
    ("busy loop", "    while True: pass\n"),
    ("sleep", "    import time\n    time.sleep(1000)\n"),
    (
        "loop that ignores signals",
        "    import signal\n    for s in (1, 2, 14, 15, 24): signal.signal(s, signal.SIG_IGN)\n    while True: pass\n",
    ),
    ("arithmetic in C", "    return 9 ** 9 ** 9\n"),
];

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(10.0);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(cores);
    let rows = arguments.next();
    println!("{workers} workers on {cores} cores, {seconds} s a row");
    for (name, tier, cold) in [
        ("tier A, zygote", Tier::A, false),
        ("tier A, cold", Tier::A, true),
        ("tier B, zygote", Tier::B, false),
    ] {
        let config = GraderConfig { workers, tier: Some(tier), cold, ..GraderConfig::default() };
        if rows.as_ref().is_none_or(|rows| name == rows) {
            rate(name, &Grader::start(config)?, workers, Duration::from_secs_f64(seconds))?;
        }
    }
    if rows.is_some() {
        return Ok(());
    }
    for tier in [Tier::A, Tier::B] {
        let config = GraderConfig { workers, tier: Some(tier), ..GraderConfig::default() };
        kills(tier, &Grader::start(config)?, seconds)?;
    }
    Ok(())
}

fn problem() -> Problem {
    Problem::HumanEval(HumanEval {
        task_id: "rate".to_owned(),
        prompt: "def add(a, b):\n".to_owned(),
        entry_point: "add".to_owned(),
        test: "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n"
            .to_owned(),
        mutates_arguments: false,
    })
}

/// Grades a right response over and over from `workers` threads.
fn rate(name: &str, grader: &Grader, workers: usize, time: Duration) -> Result<(), Error> {
    let (problem, limits) = (problem(), Limits::default());
    for _ in 0..workers * 4 {
        grader.grade(&problem, "    return a + b\n", &limits)?;
    }
    let (done, wrong) = (AtomicU64::new(0), AtomicU64::new(0));
    let started = Moment::now();
    let walls = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    let mut walls = Vec::new();
                    while started.elapsed() < time {
                        let grade = grader.grade(&problem, "    return a + b\n", &limits)?;
                        done.fetch_add(1, Ordering::Relaxed);
                        wrong.fetch_add(u64::from(grade.verdict != Verdict::Accepted), Ordering::Relaxed);
                        walls.push(grade.wall);
                    }
                    Ok::<_, Error>(walls)
                })
            })
            .collect();
        let walls = threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(Vec::new())));
        walls.collect::<Result<Vec<_>, _>>()
    })?;
    let (elapsed, done) = (started.elapsed(), done.into_inner());
    let mut walls: Vec<_> = walls.into_iter().flatten().collect();
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    let per_second = done as f64 / elapsed.as_secs_f64();
    println!(
        "{name}: {per_second:.0} gradings/s ({:.0} isolated processes/s), wall p50 {:.1?} p99 {:.1?}, {} not accepted",
        per_second * 2.0,
        quantile(&mut walls, 0.5),
        quantile(&mut walls, 0.99),
        wrong.into_inner(),
    );
    Ok(())
}

/// Time from the wall limit until nothing of the run is left, without the time that was the host's and not
/// the response's: a guest's set-up, and what it waited for a processor.
fn kills(tier: Tier, grader: &Grader, seconds: f64) -> Result<(), Error> {
    let wall = Duration::from_millis(100);
    let limits = Limits { cpu: Duration::from_secs(60), wall, ..Limits::default() };
    let rounds = ((seconds / 0.12 / ENDLESS.len() as f64) as usize).max(3);
    let mut all = Vec::new();
    for (name, body) in ENDLESS {
        let mut late = Vec::new();
        for _ in 0..rounds {
            let grade = grader.grade(&problem(), body, &limits)?;
            if grade.verdict == Verdict::WallLimit {
                late.push(grade.wall.saturating_sub(wall + grade.stalled));
            }
        }
        println!(
            "tier {tier}, kill, {name}: {} of {rounds}, p50 {:.1?} p99 {:.1?}",
            late.len(),
            quantile(&mut late, 0.5),
            quantile(&mut late, 0.99)
        );
        all.extend(late);
    }
    println!(
        "tier {tier}, kill, all: p50 {:.1?} p99 {:.1?}",
        quantile(&mut all, 0.5),
        quantile(&mut all, 0.99)
    );
    Ok(())
}

/// The value below which this part of the sorted list lies.
fn quantile(values: &mut [Duration], part: f64) -> Duration {
    values.sort_unstable();
    let index = (values.len() as f64 * part) as usize;
    values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or_default()
}
