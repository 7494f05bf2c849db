//! Hidden unit tests as a scorer and as the yardstick, in the real sandbox.

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Once;
use std::time::Duration;

use extraction::Extract;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use reward_server::Config;
use reward_server::config::{LengthPenalty, Rule, SandboxConfig, ScorerConfig, ScorerKind, UnitTests};
use sandbox::Limits;
use serde_json::json;
use types::FailReason;

use crate::tiny;
use crate::world::{World, scored, scorer, why};

/// The sandbox's helper is a program of its own, which testing this crate alone does not build.
pub(crate) fn build_sandbox_init() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let program = std::env::current_exe().unwrap();
        if program.ancestors().any(|folder| folder.join("sluice-sandbox-init").is_file()) {
            return;
        }
        let release = program.ancestors().any(|path| path.ends_with("release"));
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--offline", "-p", "sandbox", "--bin", "sluice-sandbox-init"]);
        cargo.args(release.then_some("--release"));
        cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
        assert!(cargo.status().unwrap().success(), "sluice-sandbox-init cannot be built");
    });
}

pub(crate) fn with_sandbox(scorers: Vec<ScorerConfig>) -> Config {
    build_sandbox_init();
    Config {
        tokenizer: Some(tiny::folder("policy")),
        sandbox: Some(SandboxConfig::default()),
        scorers,
        ..Config::default()
    }
}

pub(crate) fn tests(rule: Rule) -> Vec<ScorerConfig> {
    scorer(ScorerKind::UnitTests(UnitTests { rule }))
}

/// Doubling a number, four cases.
fn doubling() -> String {
    let cases: Vec<_> = (0..4).map(|x| json!({"args": [x], "expected": 2 * x})).collect();
    json!({"prompt": "Write f.", "kind": "function_calls", "entry_point": "f", "cases": cases}).to_string()
}

const RIGHT: &str = "def f(x):\n    return x + x\n";
/// Right for 0 and 1.
const HALF: &str = "def f(x):\n    return 2 * x if x < 2 else 7\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_share_of_passed_tests_is_the_score() {
    let mut world = World::start(with_sandbox(tests(Rule::Share))).await;
    for (number, response, score, outcome) in
        [(0, RIGHT, 1.0, 1.0), (1, HALF, 0.5, 0.0), (2, "def f(x:", 0.0, 0.0)]
    {
        world.actor.offer(&tiny::rollout(number, response, &doubling())).await;
        let scored = scored(world.session.result().await);
        assert_eq!((scored.score(), scored.outcome()), (score, Some(outcome)), "{response}");
        assert_eq!(scored.rollout().fields(), "", "nobody reads them any more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_or_nothing_is_another_rule_with_the_same_outcome() {
    let mut world = World::start(with_sandbox(tests(Rule::All))).await;
    world.actor.offer(&tiny::rollout(0, HALF, &doubling())).await;
    let scored = scored(world.session.result().await);
    assert_eq!((scored.score(), scored.outcome()), (0.0, Some(0.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outcome_is_the_yardstick_even_when_it_decides_nothing() {
    let length = LengthPenalty { free_tokens: 1, max_tokens: 2 };
    let mut scorers = scorer(ScorerKind::LengthPenalty(length));
    scorers.extend(tests(Rule::Share));
    scorers[1].share.weight = Some(0.0);
    let mut world = World::start(with_sandbox(scorers)).await;
    world.actor.offer(&tiny::rollout(0, RIGHT, &doubling())).await;
    let judged = scored(world.session.result().await);
    assert_eq!((judged.score(), judged.outcome()), (-1.0, Some(1.0)));
    world.actor.offer(&tiny::rollout(1, RIGHT, r#"{"prompt": "no tests"}"#)).await;
    assert_eq!(scored(world.session.result().await).outcome(), None);
    let broken = r#"{"prompt": "Write f.", "kind": "function_calls", "entry_point": "f"}"#;
    world.actor.offer(&tiny::rollout(2, RIGHT, broken)).await;
    let unjudged = scored(world.session.result().await);
    assert_eq!((unjudged.score(), unjudged.outcome()), (-1.0, None), "what decides nothing fails nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_sandbox_cannot_judge_is_never_a_score() {
    let mut world = World::start(with_sandbox(tests(Rule::Share))).await;
    world.actor.offer(&tiny::rollout(0, RIGHT, r#"{"prompt": "no tests"}"#)).await;
    assert_eq!(why(world.session.result().await).0, FailReason::Unsupported);
    let replacing = json!({
        "task_id": 1, "prompt": "Read a number.",
        "test_list": ["import builtins\nbuiltins.input = lambda *a: '5'\nassert f() == 5"]
    });
    let reads = "def f():\n    return int(input())\n";
    world.actor.offer(&tiny::rollout(1, reads, &replacing.to_string())).await;
    let (reason, detail) = why(world.session.result().await);
    assert_eq!(reason, FailReason::Unsupported, "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_is_the_block_that_the_tests_call() {
    let mut world = World::start(with_sandbox(tests(Rule::Share))).await;
    let chat = format!("First try:\n```python\n{HALF}```\nBetter:\n```python\n{RIGHT}```\nDone.");
    for (number, response) in [(0, chat.as_str()), (1, RIGHT)] {
        world.actor.offer(&tiny::rollout(number, response, &doubling())).await;
        assert_eq!(scored(world.session.result().await).score(), 1.0, "{response}");
    }
    let mut config = with_sandbox(tests(Rule::Share));
    config.sandbox.as_mut().unwrap().extract = Extract::Whole;
    let mut world = World::start(config).await;
    world.actor.offer(&tiny::rollout(0, &chat, &doubling())).await;
    assert_eq!(scored(world.session.result().await).score(), 0.0, "no program as a whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_program_begins_with_the_prelude() {
    let mut config = with_sandbox(tests(Rule::Share));
    config.sandbox.as_mut().unwrap().grader.prelude = "from typing import *".to_owned();
    let mut world = World::start(config).await;
    let annotated = RIGHT.replacen("def f(x)", "def f(x: List[int])", 1);
    world.actor.offer(&tiny::rollout(0, &annotated, &doubling())).await;
    assert_eq!(scored(world.session.result().await).score(), 1.0, "{annotated}");
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_programs_are_run_once() {
    let mut world = World::start(with_sandbox(tests(Rule::Share))).await;
    // Run anew it would pass half of the time.
    let coin = "import os\ndef f(x):\n    return 1 if os.urandom(1)[0] < 128 else 0\n";
    let fields = json!({
        "prompt": "Toss a coin.", "kind": "function_calls", "entry_point": "f", "cases": [{"args": [0], "expected": 1}]
    });
    for number in 0..30 {
        world.actor.offer(&tiny::rollout(number, coin, &fields.to_string())).await;
    }
    let first = scored(world.session.result().await).score();
    for _ in 1..30 {
        assert_eq!(scored(world.session.result().await).score(), first);
    }
}

/// Processes that use their share of a processor until they are dropped.
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

/// Whom the machine gave no processor is no failure of the response: the ring counts `failed{overload}`.
#[test]
fn a_starved_program_fails_as_an_overload_and_has_no_score() {
    // This thread, and all that it starts from here on: server, sandbox and load share one processor.
    let mut processor = CpuSet::new();
    processor.set(std::thread::available_parallelism().unwrap().get() - 1).unwrap();
    sched_setaffinity(Pid::from_raw(0), &processor).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = with_sandbox(tests(Rule::Share));
        let sandbox = config.sandbox.as_mut().unwrap();
        let limits = Limits::with_timeout(Duration::from_millis(500));
        sandbox.limits = Limits { overload_wall: Duration::from_millis(1200), ..limits };
        sandbox.grader.workers = 1;
        let mut world = World::start(config).await;
        let load = Load::of(4);
        world.actor.offer(&tiny::rollout(0, "def f(x):\n    while True:\n        pass\n", &doubling())).await;
        let (reason, detail) = why(world.session.result().await);
        assert_eq!(reason, FailReason::Overload, "{detail}");
        assert!(detail.contains("the machine is overloaded"), "{detail}");
        drop(load);
        world.actor.offer(&tiny::rollout(1, RIGHT, &doubling())).await;
        assert_eq!(scored(world.session.result().await).score(), 1.0);
    });
}
