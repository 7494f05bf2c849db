//! A user's Python functions, well-behaved and not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reward_server::Config;
use reward_server::config::{Python, ScorerKind};
use serde_json::json;
use types::FailReason;
use types::link::reward::RewardReport;

use crate::tiny;
use crate::world::{Server, World, scored, scorer, why};

/// Does what the prompt's field `act` says.
const REWARD: &str = r#"
import os, signal, subprocess, sys, time

def reward(prompt, response, act="", label=0, **fields):
    print("a line on stdout is no answer")
    if act == "raise":
        raise ValueError("not today")
    if act == "crash":
        os._exit(3)
    if act == "nan":
        return float("nan")
    if act == "text":
        return "many"
    if act == "hang":
        time.sleep(1000)
    if act == "grow":
        return len(bytearray(1 << 40))
    if act == "told":
        os.kill(os.getpid(), signal.SIGTERM)
        child = subprocess.Popen(["sleep", "1000"])
        child.terminate()
        assert child.wait() == -signal.SIGTERM
    if act == "daemon":
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    return len(prompt) * 100 + len(response) + label
"#;

const BATCHED: &str = r#"
def reward_batch(prompts, responses, fields):
    if any(f.get("act") == "raise" for f in fields):
        raise KeyError("act")
    return [len(responses) * 0 + len(r) if f.get("act") != "nan" else float("inf") for r, f in zip(responses, fields)]
"#;

/// A folder with `reward.py`, and a server that asks it.
struct Scripted {
    dir: tempfile::TempDir,
    table: serde_json::Value,
}

impl Scripted {
    fn new(code: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("reward.py");
        std::fs::write(&file, code).unwrap();
        let table = json!({ "kind": "python", "file": file, "workers": 1 });
        Self { dir, table }
    }

    fn set(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.table[key] = value.into();
        self
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("reward.py")
    }

    fn config(&self) -> Config {
        let kind: ScorerKind = serde_json::from_value(self.table.clone()).unwrap();
        Config { tokenizer: Some(tiny::folder("policy")), scorers: scorer(kind), ..Config::default() }
    }
}

fn fields(act: &str) -> String {
    json!({ "prompt": "ab", "act": act, "label": 7, "other": [1] }).to_string()
}

/// Asks for one response; whatever it ends in.
async fn ask(world: &mut World, number: u64, act: &str) -> RewardReport {
    let rollout = tiny::rollout(number, "xyz", &fields(act));
    world.actor.offer(&rollout).await;
    let report = world.session.result().await;
    world.session.record(rollout.id()).await;
    world.actor.reply().await.unwrap();
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn the_function_gets_prompt_response_and_fields() {
    let scripted = Scripted::new(REWARD);
    let mut world = World::start(scripted.config()).await;
    assert_eq!(scored(ask(&mut world, 0, "").await).score(), 210.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_without_keywords_gets_the_fields_it_names() {
    let code = "def reward(prompt, response, label):\n    return label\n";
    let scripted = Scripted::new(code);
    let mut world = World::start(scripted.config()).await;
    assert_eq!(scored(ask(&mut world, 0, "").await).score(), 7.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn exceptions_and_nonsense_fail_their_sample_and_nothing_else() {
    let scripted = Scripted::new(REWARD);
    let mut world = World::start(scripted.config()).await;
    for (number, (act, expected)) in [
        ("raise", "ValueError: not today (reward.py:7)"),
        ("nan", "returned nan"),
        ("text", "TypeError: returned 'many', must be a number"),
    ]
    .into_iter()
    .enumerate()
    {
        let (reason, detail) = why(ask(&mut world, number as u64, act).await);
        assert_eq!(reason, FailReason::RewardError);
        assert!(detail.contains(expected), "{act}: {detail}");
    }
    assert_eq!(scored(ask(&mut world, 9, "").await).score(), 210.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_worker_fails_its_sample_and_is_replaced() {
    let scripted = Scripted::new(REWARD);
    let mut world = World::start(scripted.config()).await;
    let (reason, detail) = why(ask(&mut world, 0, "crash").await);
    assert_eq!(reason, FailReason::RewardError);
    assert!(detail.contains("has died (exit status: 3)"), "{detail}");
    assert_eq!(scored(ask(&mut world, 1, "").await).score(), 210.0);
}

/// A scheduler that ends a job signals all of its processes; what the server has is scored nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_stop_finishes() {
    let scripted = Scripted::new(REWARD);
    let mut world = World::start(scripted.config()).await;
    assert_eq!(scored(ask(&mut world, 0, "told").await).score(), 210.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_past_its_limit_is_a_time_out_and_the_next_one_works() {
    let scripted = Scripted::new(REWARD).set("timeout", "200ms");
    let mut world = World::start(scripted.config()).await;
    let (reason, detail) = why(ask(&mut world, 0, "hang").await);
    assert_eq!((reason, detail.as_str()), (FailReason::RewardTimeout, "python: no score within 200ms"));
    assert_eq!(scored(ask(&mut world, 1, "").await).score(), 210.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_out_of_memory_fails_its_sample() {
    let scripted = Scripted::new(REWARD).set("memory_bytes", 1u64 << 30);
    let mut world = World::start(scripted.config()).await;
    assert_eq!(why(ask(&mut world, 0, "grow").await).0, FailReason::RewardError);
    assert_eq!(scored(ask(&mut world, 1, "").await).score(), 210.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_leaves_behind_ends_with_it() {
    let scripted = Scripted::new(REWARD);
    let mut world = World::start(scripted.config()).await;
    assert_eq!(why(ask(&mut world, 0, "daemon").await).0, FailReason::RewardError);
    assert_eq!(scored(ask(&mut world, 1, "").await).score(), 210.0);
    world.server.token.cancel();
    world.server.ended().await.unwrap();
    crate::world::until("its processes are gone", || workers_of(&scripted.file()) == 0).await;
}

/// Processes with this file among their arguments.
fn workers_of(file: &Path) -> usize {
    let file = file.to_str().unwrap().as_bytes();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let has_file = |process: &std::fs::DirEntry| {
        let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).any(|argument| argument == file)
    };
    let is_process = |entry: &std::fs::DirEntry| {
        entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok())
    };
    processes.filter(is_process).filter(has_file).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batched_function_gets_what_waits_and_fails_as_one() {
    let scripted = Scripted::new(BATCHED);
    let mut world = World::start(scripted.config()).await;
    for number in 0..10 {
        world.actor.offer(&tiny::rollout(number, &"x".repeat(number as usize + 1), &fields(""))).await;
    }
    for _ in 0..10 {
        let scored = scored(world.session.result().await);
        assert_eq!(
            f64::from(scored.score()),
            (scored.rollout().id().prompt.ordinal + 1) as f64,
            "each its own"
        );
        world.session.record(scored.rollout().id()).await;
        world.actor.reply().await.unwrap();
    }
    let (_, detail) = why(ask(&mut world, 20, "raise").await);
    assert!(detail.contains("KeyError"), "{detail}");
    let (_, detail) = why(ask(&mut world, 21, "nan").await);
    assert!(detail.contains("returned inf"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_is_bad_input_at_the_start() {
    for (code, expected) in [
        ("def reward(prompt response): pass", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("x = 1", "defines no reward function"),
        ("def a(completions): pass\ndef b(completions): pass", "several reward functions (a, b)"),
    ] {
        let scripted = Scripted::new(code);
        let config = Config { coordinator: Some("127.0.0.1:1".into()), ..scripted.config() };
        let error = Server::start(config).await.err().unwrap();
        assert!(error.is::<service::BadInput>(), "{error:#}");
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("reward.py"), "{text}");
    }
    let missing = Scripted::new("").set("interpreter", "/no/such/python");
    let config = Config { coordinator: Some("127.0.0.1:1".into()), ..missing.config() };
    let error = Server::start(config).await.err().unwrap().to_string();
    assert!(error.contains("cannot start /no/such/python"), "{error}");
    let python: Python = serde_json::from_value(json!({ "file": "x.py" })).unwrap();
    assert_eq!((python.workers, python.timeout), (2, Duration::from_secs(30)));
}
