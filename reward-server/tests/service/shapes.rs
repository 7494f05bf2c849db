//! Reward functions as users of verl, TRL and OpenRLHF have them, unchanged; and the comparison of
//! mathematics.

use std::path::Path;

use reward_server::Config;
use reward_server::config::ScorerKind;
use serde_json::{Value, json};
use types::FailReason;
use types::link::reward::RewardReport;

use crate::tiny;
use crate::world::{Server, World, scored, scorer, why};

const FIELDS: &str = r#"{"prompt": "ab", "data_source": "openai/gsm8k", "answer": "7", "label": "x", "act": "",
    "reward_model": {"style": "rule", "ground_truth": "42"}, "extra_info": {"index": 3}}"#;

/// The reports on these responses by a function of the user.
async fn reports(code: &str, table: Value, responses: &[(&str, Value)]) -> Vec<RewardReport> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("reward.py");
    std::fs::write(&file, code).unwrap();
    let mut kind = json!({ "kind": "python", "file": file, "workers": 1 });
    kind.as_object_mut().unwrap().extend(table.as_object().unwrap().clone());
    let kind: ScorerKind = serde_json::from_value(kind).unwrap();
    asked(kind, responses).await
}

async fn asked(kind: ScorerKind, responses: &[(&str, Value)]) -> Vec<RewardReport> {
    let config =
        Config { tokenizer: Some(tiny::folder("policy")), scorers: scorer(kind), ..Config::default() };
    let mut world = World::start(config).await;
    for (number, (response, fields)) in responses.iter().enumerate() {
        let mut line: Value = serde_json::from_str(FIELDS).unwrap();
        line.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        world.actor.offer(&tiny::rollout(number as u64, response, &line.to_string())).await;
    }
    let mut reports = Vec::new();
    for _ in responses {
        reports.push(world.session.result().await);
    }
    reports.sort_by_key(|report| match report {
        RewardReport::Scored(scored) => scored.rollout().id().prompt.ordinal,
        RewardReport::Failed(failure) => failure.id.prompt.ordinal,
        RewardReport::Load { .. } => u64::MAX,
    });
    reports
}

async fn one(code: &str) -> f64 {
    let mut reports = reports(code, json!({}), &[("xyz", json!({}))]).await;
    f64::from(scored(reports.remove(0)).score())
}

#[tokio::test(flavor = "multi_thread")]
async fn verls_compute_score_runs_unchanged() {
    let code = r#"
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "openai/gsm8k" and extra_info["index"] == 3, (data_source, extra_info)
    return {"score": float(ground_truth) + len(solution_str), "acc": True}
"#;
    assert_eq!(one(code).await, 45.0);
    let code =
        "async def compute_score(solution_str, ground_truth, **kwargs):\n    return len(solution_str)\n";
    assert_eq!(one(code).await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn trls_functions_run_unchanged() {
    let code = r#"
def format_reward(prompts, completions, answer, **kwargs):
    assert kwargs["data_source"] == ["openai/gsm8k"] * len(prompts)
    return [len(prompt) + len(completion) + int(a) for prompt, completion, a in zip(prompts, completions, answer)]
"#;
    assert_eq!(one(code).await, 12.0);
    let code = "async def anything(completions, **kwargs):\n    return {\"rewards\": [c == \"xyz\" for c in completions]}\n";
    assert_eq!(one(code).await, 1.0);
    let code = r#"
def chat_reward(prompts, completions, **kwargs):
    return [len(p[0]["content"]) * 10 + len(c[0]["content"]) for p, c in zip(prompts, completions)]
"#;
    let messages = json!({ "messages": [{ "role": "user", "content": "hello" }] });
    let mut found = reports(code, json!({}), &[("xyz", messages)]).await;
    assert_eq!(scored(found.remove(0)).score(), 53.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn openrlhfs_reward_func_runs_unchanged() {
    let code = r#"
class Tensor:
    def __init__(self, values): self.values = values
    def tolist(self): return self.values

def reward_func(queries, prompts, labels):
    assert labels == ["x"] * len(queries), labels
    scores = Tensor([len(q) * 100 + len(p) for q, p in zip(queries, prompts)])
    return {"rewards": scores, "scores": scores, "extra_logs": {"dummy": scores}}
"#;
    assert_eq!(one(code).await, 502.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_may_have_any_name_if_it_is_named() {
    let code = "def a(completions): return [1.0] * len(completions)\ndef b(completions): return [2.0] * len(completions)\n";
    let mut found = reports(code, json!({ "function": "b" }), &[("xyz", json!({}))]).await;
    assert_eq!(scored(found.remove(0)).score(), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_number_fails_its_response_and_not_its_batch() {
    let code = r#"
def f(completions, act, **kwargs):
    values = {"nan": float("nan"), "none": None, "text": "0.5", "list": [1, 2], "": 1.0}
    return [values[a] for a in act]
"#;
    let acts = ["", "nan", "none", "text", "list", ""];
    let asked: Vec<(&str, Value)> = acts.iter().map(|act| ("xyz", json!({ "act": act }))).collect();
    let expected = ["", "nan", "None", "'0.5'", "[1, 2]", ""];
    for (report, expected) in reports(code, json!({}), &asked).await.into_iter().zip(expected) {
        if expected.is_empty() {
            assert_eq!(scored(report).score(), 1.0);
            continue;
        }
        let (reason, detail) = why(report);
        assert_eq!(reason, FailReason::RewardError);
        assert!(detail.contains(&format!("returned {expected}")), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_judged_is_unsupported() {
    let code = "def reward(prompt, response): raise NotImplementedError('no label')\n";
    let (reason, detail) = why(reports(code, json!({}), &[("x", json!({}))]).await.remove(0));
    assert_eq!(reason, FailReason::Unsupported, "{detail}");
}

/// Where `setup/install.sh math` puts math-verify. Whoever has not run it says so; else nothing would ever
/// run `math.py`.
fn packages() -> Option<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/math");
    let is_there = || {
        let asked = std::process::Command::new("python3").args(["-c", "import math_verify"]).output();
        folder.join("math_verify").is_dir() || asked.is_ok_and(|ran| ran.status.success())
    };
    if std::env::var_os("SLUICE_WITHOUT_MATH").is_some_and(|value| value == "1") {
        eprintln!("left out: SLUICE_WITHOUT_MATH is 1");
        return None;
    }
    assert!(is_there(), "math-verify is missing: run setup/install.sh math, or set SLUICE_WITHOUT_MATH=1");
    Some(folder)
}

fn math(packages: &Path) -> ScorerKind {
    let table = json!({ "kind": "math", "packages": packages, "workers": 1, "interpreter": "python3" });
    serde_json::from_value(table).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_math_verify_the_server_does_not_start() {
    let empty = tempfile::tempdir().unwrap();
    // A module of that name that cannot be imported, wherever the interpreter has one.
    std::fs::write(empty.path().join("math_verify.py"), "raise ImportError('not here')").unwrap();
    let config = Config {
        tokenizer: Some(tiny::folder("policy")),
        coordinator: Some("127.0.0.1:1".into()),
        scorers: scorer(math(empty.path())),
        ..Config::default()
    };
    let error = Server::start(config).await.err().unwrap();
    assert!(error.is::<service::BadInput>(), "{error:#}");
    assert!(error.to_string().contains("setup/install.sh math"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_are_compared_as_mathematics() {
    let Some(packages) = packages() else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/math.jsonl");
    let rows: Vec<Value> =
        service::jsonl::read(&path).unwrap().map(|line| line.unwrap().parse().unwrap()).collect();
    let responses: Vec<(&str, Value)> = rows
        .iter()
        .map(|row| (row["response"].as_str().unwrap(), json!({ "label": row["label"] })))
        .collect();
    let mut wrong = Vec::new();
    for (report, row) in asked(math(&packages), &responses).await.into_iter().zip(&rows) {
        let found = match report {
            RewardReport::Scored(scored) => json!(scored.score()),
            other => {
                let (reason, detail) = why(other);
                assert_eq!(reason, FailReason::Unsupported, "{row}: {detail}");
                json!("refused")
            }
        };
        // Where people disagree about the truth, that it is judged at all.
        if found != row["score"] && !(row["score"].is_null() && found.is_number()) {
            wrong.push(format!("{row}: {found}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    assert!(rows.len() >= 70, "{} rows", rows.len());
}

/// Each rationale of GSM8K's test set has its own label's answer, and not the next one's.
#[tokio::test(flavor = "multi_thread")]
async fn gsm8ks_rationales_have_their_labels_answers() {
    let Some(packages) = packages() else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/gsm8k_test.jsonl.gz");
    let lines = service::jsonl::read(&path).unwrap().step_by(8);
    let rows: Vec<Value> = lines.map(|line| line.unwrap().parse().unwrap()).collect();
    let answers: Vec<&str> = rows.iter().map(|row| row["answer"].as_str().unwrap()).collect();
    let labels: Vec<&str> = answers.iter().map(|answer| answer.rsplit("#### ").next().unwrap()).collect();
    let mut asked_for: Vec<(&str, Value)> = Vec::new();
    let mut expected = Vec::new();
    for (at, answer) in answers.iter().enumerate() {
        let other = (at + 1) % labels.len();
        asked_for.push((answer, json!({ "label": labels[at] })));
        asked_for.push((answer, json!({ "label": labels[other] })));
        expected.extend([true, labels[at].replace(',', "") == labels[other].replace(',', "")]);
    }
    let found = asked(math(&packages), &asked_for).await;
    for (report, (asked, expected)) in found.into_iter().zip(asked_for.iter().zip(expected)) {
        assert_eq!(scored(report).score() == 1.0, expected, "{asked:?}");
    }
}
