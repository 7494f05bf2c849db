//! A grader of its own for each test, problems to attack, and a census of what a run left behind.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox::{Grader, GraderConfig, HumanEval, Limits, Problem, Stdio, StdioCase, Tier, Verdict};

#[expect(clippy::disallowed_types, reason = "tests wait for real processes")]
pub(crate) type Moment = std::time::Instant;

/// Tests of one program that count processes and descriptors must not run beside each other.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn grader(tier: Tier) -> Grader {
    grader_with(GraderConfig { tier: Some(tier), workers: 1, ..GraderConfig::default() })
}

pub(crate) fn grader_with(config: GraderConfig) -> Grader {
    Grader::start(config).unwrap_or_else(|error| panic!("{error}"))
}

/// Limits under which an attack is over soon.
pub(crate) fn tight() -> Limits {
    Limits {
        cpu: Duration::from_millis(500),
        // Far above the processor time, so that a busy machine does not turn one limit into the other.
        wall: Duration::from_secs(8),
        overload_wall: Duration::from_secs(60),
        memory_bytes: 160 << 20,
        output_bytes: 256 << 10,
        value_bytes: 1 << 20,
        file_bytes: 4 << 20,
        files: 64,
        open_files: 32,
        processes: 48,
    }
}

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// A program of `tests/<folder>/` with its header.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) problem: Problem,
}

impl Program {
    pub(crate) fn load(folder_name: &str, name: &str) -> Self {
        let path = folder(folder_name).join(format!("{name}.py"));
        let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let problem = problem(header(&source, "problem").first().copied().unwrap_or("increment"));
        Self { name: name.to_owned(), source, problem }
    }

    /// Tight limits, with the wall time of the header where it has one.
    pub(crate) fn limits(&self) -> Limits {
        let wall =
            header(&self.source, "wall_ms").first().map(|text| Duration::from_millis(text.parse().unwrap()));
        Limits { wall: wall.unwrap_or(tight().wall), ..tight() }
    }

    /// The verdicts that the header allows in a tier.
    pub(crate) fn expected(&self, tier: Tier) -> Vec<Verdict> {
        let names = header(&self.source, tier.name());
        assert!(!names.is_empty(), "{}: no verdict for tier {tier}", self.name);
        let parse = |name: &&str| {
            serde_json::from_value(serde_json::json!(name)).unwrap_or_else(|_| panic!("{name}"))
        };
        let mut verdicts: Vec<Verdict> = names.iter().map(parse).collect();
        // The filter of a container refuses dangerous calls before ours sees them. The program then gets
        // nowhere, lives on, and is right.
        if behind_a_filter()
            && (verdicts.contains(&Verdict::DangerousSyscall) || self.name.starts_with("31-"))
        {
            verdicts.extend([Verdict::Accepted, Verdict::RuntimeError]);
        }
        verdicts
    }
}

/// Whether this process is under a seccomp filter already.
fn behind_a_filter() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() != "0"))
}

/// The words after `# key:`.
fn header<'a>(source: &'a str, key: &str) -> Vec<&'a str> {
    let start = format!("# {key}: ");
    let line =
        source.lines().take_while(|line| line.starts_with('#')).find_map(|line| line.strip_prefix(&start));
    line.map(|words| words.split_whitespace().collect()).unwrap_or_default()
}

/// Names of all programs in a folder, without `.py`.
pub(crate) fn programs(folder_name: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder(folder_name)).unwrap();
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
}

/// Problems with an obvious answer.
pub(crate) fn problem(name: &str) -> Problem {
    let check = |test: &str| {
        Problem::HumanEval(HumanEval {
            task_id: name.to_owned(),
            prompt: String::new(),
            entry_point: "solve".to_owned(),
            test: test.to_owned(),
            mutates_arguments: false,
        })
    };
    match name {
        "increment" => check(
            "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(41) == 42\n    \
             assert abs(candidate(-1) - 0) < 1e-9\n    for n in range(5, 8):\n        assert candidate(n) == n + 1\n",
        ),
        "sort" => check(
            "def check(candidate):\n    for items in ([3, 1, 2], [5, 4]):\n        given = list(items)\n        \
             out = candidate(given)\n        assert out == sorted(given)\n",
        ),
        "sum" => check(
            "def check(candidate):\n    for items in ([3, 1, 2], [5, 4]):\n        given = list(items)\n        \
             assert candidate(given) == sum(given)\n",
        ),
        "twice" => check("def check(candidate):\n    assert candidate([candidate(1)]) == 2\n"),
        "words" => check(
            "def check(candidate):\n    try:\n        candidate(1)\n    except ValueError as error:\n        \
             assert str(error) == 'the words'\n    else:\n        assert False\n",
        ),
        "listed" => check("def check(candidate):\n    assert list(candidate(3)) == [0, 1, 2]\n"),
        "measured" => check(
            "import math\ndef check(candidate):\n    for n in range(5):\n        try:\n            assert abs(candidate(n) - n) < 1e-6\n        \
             except TypeError:\n            assert candidate(n) < n + 1\n    assert math.isclose(candidate(3), 3)\n",
        ),
        "contained" => check(
            "def check(candidate):\n    for n in range(1, 5):\n        assert n in candidate(n)\n        \
             assert isinstance(n, candidate(n + 1))\n",
        ),
        "mapped" => {
            check("def check(candidate):\n    assert all(map(lambda n: candidate(n) == n + 1, [1, 2, 3]))\n")
        }
        "program" => {
            let case = |stdin: &str, expected: &str| StdioCase {
                stdin: stdin.into(),
                expected_stdout: expected.into(),
            };
            let cases = vec![case("1 2\n", "3\n"), case("4 5 6\n", "15\n")];
            Problem::Stdio(Stdio { task_id: name.to_owned(), cases, ..Stdio::default() })
        }
        other => panic!("no problem {other:?}"),
    }
}

/// A response to `increment` that is right.
pub(crate) const RIGHT: &str = "def solve(n):\n    return n + 1\n";

/// What this process and its descendants are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) processes: usize,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) mounts: usize,
    pub(crate) files: usize,
}

impl Census {
    pub(crate) fn take() -> Self {
        let count = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
        Self {
            processes: descendants(std::process::id()).len(),
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count(),
            // Others use these folders too; what a guest leaves would carry a name of the corpus.
            files: ["/tmp", "/dev/shm", "/var/tmp"].iter().map(|path| marked(path)).sum(),
        }
    }

    /// Waits until everything is as it was, at most this long.
    pub(crate) fn await_again(&self, at_most: Duration) {
        let deadline = Moment::now() + at_most;
        let mut now = Self::take();
        while now != *self && Moment::now() < deadline {
            std::thread::yield_now();
            now = Self::take();
        }
        assert_eq!(now, *self, "left behind after {at_most:?}: {:?}", descendants(std::process::id()));
    }
}

fn marked(folder: &str) -> usize {
    const NAMES: [&str; 8] =
        ["mark", "big", "sparse", "result", "verdict.json", "hard", "fifo", "conftest.py"];
    NAMES.iter().filter(|name| fs::symlink_metadata(Path::new(folder).join(name)).is_ok()).count()
}

/// Process ids and names of all descendants of a process.
pub(crate) fn descendants(of: u32) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let mut open = vec![of];
    while let Some(pid) = open.pop() {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
                let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
                found.push((child, name.trim().to_owned()));
                open.push(child);
            }
        }
    }
    found
}
