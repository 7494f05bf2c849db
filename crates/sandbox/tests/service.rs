//! The grader as a service: many callers, overload, lost processes, shutdown.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/arena.rs"]
mod arena;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandbox::{Error, Grader, GraderConfig, Limits, Tier, Verdict};

fn config(workers: usize) -> GraderConfig {
    GraderConfig { workers, tier: Some(Tier::A), ..GraderConfig::default() }
}

const ENDLESS: &str = "def solve(n):\n    while True:\n        pass\n";

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = arena::Moment::now() + Duration::from_secs(20);
    while !condition() {
        assert!(arena::Moment::now() < deadline, "not within 20 s: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn many_callers_share_few_workers() {
    let _alone = arena::alone();
    let grader = arena::grader_with(config(2));
    let problem = arena::problem("increment");
    std::thread::scope(|scope| {
        for caller in 0..16 {
            let (grader, problem) = (&grader, &problem);
            scope.spawn(move || {
                for round in 0..4 {
                    let right = (caller + round) % 2 == 0;
                    let response = if right { arena::RIGHT } else { "def solve(n):\n    return n\n" };
                    let grade = grader.grade(problem, response, &Limits::default()).unwrap();
                    let expected = if right { Verdict::Accepted } else { Verdict::WrongAnswer };
                    assert_eq!(grade.verdict, expected, "{}", grade.detail);
                }
            });
        }
    });
    let stats = grader.stats();
    assert_eq!((stats.verdicts[&Verdict::Accepted], stats.verdicts[&Verdict::WrongAnswer]), (32, 32));
    assert_eq!((stats.runs, stats.busy, stats.waiting, stats.overloaded), (128, 0, 0, 0));
}

#[test]
fn overload_is_an_error_and_no_verdict() {
    let _alone = arena::alone();
    let grader = arena::grader_with(GraderConfig {
        max_waiting: 1,
        queue_timeout: Duration::from_millis(300),
        ..config(1)
    });
    let problem = arena::problem("increment");
    let limits = Limits { cpu: Duration::from_secs(60), wall: Duration::from_secs(3), ..Limits::default() };
    wait_until("a full pool", || grader.stats().idle_candidates == 2 && grader.stats().idle_testers == 2);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| grader.grade(&problem, ENDLESS, &limits).unwrap());
        wait_until("the worker is busy", || grader.stats().busy == 1);
        let waiting = scope.spawn(|| grader.grade(&problem, arena::RIGHT, &limits));
        wait_until("a caller waits", || grader.stats().waiting == 1);
        let turned_away = grader.grade(&problem, arena::RIGHT, &limits).unwrap_err();
        assert!(matches!(turned_away, Error::Overloaded { workers: 1, waiting: 1, waited: Duration::ZERO }));
        let timed_out = waiting.join().unwrap().unwrap_err();
        let waited = match timed_out {
            Error::Overloaded { waited, .. } => waited,
            other => panic!("{other}"),
        };
        assert!(waited >= Duration::from_millis(300) && timed_out_text(&waited), "{waited:?}");
        assert_eq!(busy.join().unwrap().verdict, Verdict::WallLimit);
    });
    assert_eq!(grader.stats().overloaded, 2);
    assert_eq!(
        grader.stats().verdicts.values().sum::<u64>(),
        1,
        "only the one that was graded has a verdict"
    );
    assert_eq!(grader.grade(&problem, arena::RIGHT, &limits).unwrap().verdict, Verdict::Accepted);
}

fn timed_out_text(waited: &Duration) -> bool {
    *waited < Duration::from_secs(2)
}

#[test]
fn killed_zygotes_are_replaced_and_no_grading_is_lost() {
    let _alone = arena::alone();
    let grader = arena::grader_with(config(1));
    let problem = arena::problem("increment");
    let grade = || grader.grade(&problem, arena::RIGHT, &Limits::default()).unwrap();
    assert_eq!(grade().verdict, Verdict::Accepted);
    for round in 0..4 {
        wait_until("a full pool", || {
            let stats = grader.stats();
            stats.idle_candidates == 2 && stats.idle_testers == 2
        });
        // Helpers and zygotes in turn: whatever dies, nobody else may be affected.
        let all = arena::descendants(std::process::id());
        let victims = all.iter().filter(|(_, name)| name.starts_with("python") == (round % 2 == 0));
        for (pid, _) in victims {
            // It may have gone down with an earlier one.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        // With both zygotes of a kind dead the repetition may find the other dead pair; the third is new.
        let verdicts: Vec<_> = (0..3).map(|_| grade().verdict).collect();
        let honest = [Verdict::Accepted, Verdict::InternalError];
        assert!(verdicts.iter().all(|verdict| honest.contains(verdict)), "{verdicts:?}");
        assert_eq!(verdicts[2], Verdict::Accepted, "{verdicts:?}");
    }
    assert!(grader.stats().zygotes_discarded > 0);
}

#[test]
fn a_zygote_is_replaced_after_its_runs() {
    let _alone = arena::alone();
    let grader = arena::grader_with(GraderConfig { max_runs_per_zygote: 3, ..config(1) });
    let problem = arena::problem("increment");
    for _ in 0..20 {
        assert_eq!(
            grader.grade(&problem, arena::RIGHT, &Limits::default()).unwrap().verdict,
            Verdict::Accepted
        );
    }
    let stats = grader.stats();
    assert!(stats.zygotes_recycled >= 10, "{stats:?}");
    assert_eq!(stats.zygotes_discarded, 0);
}

#[test]
fn cold_candidates_start_from_nothing() {
    let _alone = arena::alone();
    let address = "def solve(n):\n    raise ValueError(id(solve) ^ hash(object()))\n";
    let distinct = |cold: bool| {
        let grader = arena::grader_with(GraderConfig { cold, ..config(1) });
        let detail =
            || grader.grade(&arena::problem("increment"), address, &Limits::default()).unwrap().detail;
        let details: std::collections::BTreeSet<String> = (0..6).map(|_| detail()).collect();
        assert_eq!(
            grader.grade(&arena::problem("increment"), arena::RIGHT, &Limits::default()).unwrap().verdict,
            Verdict::Accepted
        );
        details.len()
    };
    assert_eq!(distinct(true), 6, "six interpreters, six layouts");
    assert!(distinct(false) <= 2, "forks of one or two zygotes share their layout");
}

#[test]
fn dropping_a_grader_ends_everything() {
    let _alone = arena::alone();
    let before = arena::Census::take();
    for tier in [Tier::A, Tier::B] {
        let grader = arena::grader_with(GraderConfig { tier: Some(tier), ..config(2) });
        grader.grade(&arena::problem("increment"), arena::RIGHT, &Limits::default()).unwrap();
        drop(grader);
        assert_eq!(arena::descendants(std::process::id()), []);
        before.await_again(Duration::from_secs(5));
    }
}

/// Runs this test program again as a server, and kills it with SIGKILL in the middle of a grading.
#[test]
fn a_killed_server_takes_everything_along() {
    const VICTIM: &str = "SLUICE_SANDBOX_VICTIM";
    if let Some(tier) = std::env::var_os(VICTIM) {
        let tier = if tier == "a" { Tier::A } else { Tier::B };
        let grader = arena::grader_with(GraderConfig { tier: Some(tier), ..config(1) });
        std::thread::scope(|scope| {
            let limits =
                Limits { cpu: Duration::from_secs(60), wall: Duration::from_secs(60), ..Limits::default() };
            let grader = &grader;
            scope.spawn(move || grader.grade(&arena::problem("increment"), ENDLESS, &limits));
            wait_until("the guest runs", || grader.stats().busy == 1);
            println!("\nready");
        });
        return;
    }
    let _alone = arena::alone();
    // Orphans of the victim come to this process, so that none can hide.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    for tier in ["a", "b"] {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_killed_server_takes_everything_along", "--nocapture"])
            .env(VICTIM, tier)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ready"), "tier {tier}");
        wait_until("helpers, zygotes and guests", || arena::descendants(victim.id()).len() > 4);
        victim.kill().unwrap();
        victim.wait().unwrap();
        wait_until("all of it is gone", || {
            // Reaps what has been adopted.
            while nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
                .is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
            {}
            arena::descendants(std::process::id()).is_empty()
        });
    }
    nix::sys::prctl::set_child_subreaper(false).unwrap();
}

#[test]
fn refused_calls_are_counted_by_name() {
    let _alone = arena::alone();
    let grader = arena::grader_with(config(1));
    let response = "import socket\ndef solve(n):\n    try:\n        socket.socket()\n    except OSError:\n        return n + 1\n";
    let grade = grader.grade(&arena::problem("increment"), response, &Limits::default()).unwrap();
    assert_eq!(grade.verdict, Verdict::Accepted, "{}", grade.detail);
    assert_eq!(
        grader.stats().denied_syscalls.get("socket"),
        Some(&6),
        "{:?}",
        grader.stats().denied_syscalls
    );
}

#[test]
fn configured_import_paths_are_importable_and_read_only() {
    let _alone = arena::alone();
    let folder = tempfile::TempDir::new().unwrap();
    // Readable by whatever user guests run as.
    let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    std::fs::write(folder.path().join("ours.py"), "ONE = 1\n").unwrap();
    let response = format!(
        "import ours\ndef solve(n):\n    try:\n        open({:?}, 'w')\n    except OSError:\n        return n + ours.ONE\n",
        folder.path().join("planted")
    );
    for tier in [Tier::A, Tier::B] {
        let import_paths = vec![folder.path().to_owned()];
        let grader = arena::grader_with(GraderConfig { import_paths, tier: Some(tier), ..config(1) });
        let grade = grader.grade(&arena::problem("increment"), &response, &Limits::default()).unwrap();
        assert_eq!(grade.verdict, Verdict::Accepted, "tier {tier}: {}", grade.detail);
    }
    assert!(!folder.path().join("planted").exists());
}

#[test]
fn every_interpreter_at_hand_works() {
    let _alone = arena::alone();
    // Distributions and version managers put them here; at least the first exists wherever these tests run.
    let mut found = vec!["/usr/bin/python3".into(), "python3".into()];
    if let Some(versions) =
        std::env::var_os("HOME").map(|home| std::path::Path::new(&home).join(".pyenv/versions"))
    {
        let entries = std::fs::read_dir(versions).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| entry.path().join("bin/python3")).filter(|path| path.exists()));
    }
    let mut working = 0;
    for interpreter in found {
        for tier in [Tier::A, Tier::B] {
            let with = GraderConfig { interpreter: Some(interpreter.clone()), tier: Some(tier), ..config(1) };
            let grader = match Grader::start(with) {
                Ok(grader) => grader,
                // Too old ones are refused by name and version.
                Err(error @ Error::Interpreter { .. }) if error.to_string().contains("or newer") => continue,
                Err(error) => panic!("{}: {error}", interpreter.display()),
            };
            for name in ["threads", "asyncio", "standard-library", "helper-classes"] {
                let program = arena::Program::load("honest", name);
                let grade = grader.grade(&program.problem, &program.source, &Limits::default()).unwrap();
                assert_eq!(
                    grade.verdict,
                    Verdict::Accepted,
                    "{} {name}: {}",
                    interpreter.display(),
                    grade.detail
                );
            }
            working += 1;
        }
    }
    assert!(working >= 2, "no interpreter works");
}
