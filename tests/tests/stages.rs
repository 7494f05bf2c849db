//! Stages that draw from a policy, with real networks: its best responses by a reward model, and comparisons.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tests::binary;

/// A policy that is taught to write the identity, a reward model that was told to prefer it, what it makes of
/// them, and a comparison.
const RECIPE: &str = r#"
name = "stages"
seed = 3

[[stages]]
name = "tokenizer"
[stages.tokenizer]
data = ["{recipe}/demonstrations.jsonl"]
vocab_size = 300
output = "{output}/tokenizer"

[[stages]]
name = "sft"
[stages.sft]
data = "{recipe}/demonstrations.jsonl"
output = "{output}/sft"
[stages.sft.init]
tokenizer = "{output}/tokenizer"
hidden_size = 32
intermediate_size = 64
layers = 2
heads = 2
kv_heads = 2
max_positions = 64
[stages.sft.training]
epochs = 20
batch_size = 16
[stages.sft.optimizer]
lr = 3e-3

[[stages]]
name = "reward-model"
[stages.reward_model]
model = "{output}/sft"
data = "{recipe}/pairs.jsonl"
output = "{output}/reward-model"
[stages.reward_model.training]
epochs = 4
batch_size = 16
[stages.reward_model.optimizer]
lr = 1e-3

[[stages]]
name = "best-of-n"
[stages.best_of_n]
model = "{output}/sft"
reward_model = "{output}/reward-model"
data = "{recipe}/problems.jsonl"
max_prompts = 8
n = 6
output = "{output}/best"
[stages.best_of_n.sampling]
max_new_tokens = 16
temperature = 2.0

[[stages]]
name = "raft"
[stages.sft]
model = "{output}/sft"
data = "{output}/best/demonstrations.jsonl"
output = "{output}/raft"

[[stages]]
name = "eval"
[stages.eval]
problems = "{recipe}/problems.jsonl"
validation = "{recipe}/problems.jsonl"
temperatures = [2.0, 0.1]
policies = [{ name = "SFT", model = "{output}/sft" }, { name = "RAFT", model = "{output}/raft" }]
reward_model = "{output}/reward-model"
reference = "{output}/sft"
n = 4
pass_at = [2]
kinds = "kinds"
output = "{output}/eval"
[stages.eval.sampling]
max_new_tokens = 16
temperature = 2.0
"#;

fn write(path: &Path, rows: impl Iterator<Item = Value>) {
    let mut text = String::new();
    rows.for_each(|row| writeln!(text, "{row}").unwrap());
    fs::write(path, text).unwrap();
}

/// The first problem of each pair is solved by the identity, the second by nothing that the policy was
/// taught.
fn problem(number: usize) -> Value {
    let (kind, expected) = if number.is_multiple_of(2) { ("identity", 7) } else { ("successor", 8) };
    json!({
        "task_id": format!("p/{number}"), "prompt": format!("def f{number}(x):\n"), "entry_point": format!("f{number}"),
        "test": format!("def check(candidate):\n    assert candidate(7) == {expected}\n"), "kinds": ["all", kind],
    })
}

fn run(folder: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(binary("sluice").unwrap());
    // One thread an operation, and none that spins: tests share the machine.
    command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive").stdin(Stdio::null());
    command.arg("run").arg(folder.join("recipe.toml"));
    command.args(["--set", &format!("output={}", folder.join("run").display())]).args(more).output().unwrap()
}

#[test]
fn a_comparison_finds_each_policys_temperature_and_the_best_responses_are_the_reward_models() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("recipe.toml"), RECIPE).unwrap();
    let prompt = |number: usize| format!("def f{number}(x):\n");
    let demonstration = |number| json!({"prompt": prompt(number), "response": "    return x\n"});
    let pair =
        |number| json!({"prompt": prompt(number), "chosen": "    return x\n", "rejected": "    retur 1\n"});
    write(&folder.join("demonstrations.jsonl"), (0..64).map(demonstration));
    write(&folder.join("pairs.jsonl"), (0..64).map(pair));
    write(&folder.join("problems.jsonl"), (0..12).map(problem));
    let output = run(folder, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);

    let read = |name: &str| fs::read_to_string(folder.join("run").join(name)).unwrap();
    let lines = |name: &str| -> Vec<Value> {
        read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (best, scores) = (lines("best/demonstrations.jsonl"), lines("best/responses-scores.jsonl"));
    assert_eq!((best.len(), scores.len()), (8, 48));
    for (best, group) in best.iter().zip(scores.chunks(6)) {
        let highest = group.iter().map(|line| line["score"].as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert_eq!(best["score"].as_f64().unwrap(), highest, "{best}");
    }

    let report: Value = serde_json::from_str(&read("eval/report.json")).unwrap();
    let sft = &report["rows"][0];
    assert_eq!(sft["pass_at_1_greedy"]["mean"], 0.5, "{sft}");
    assert_eq!(sft["kinds"]["identity"]["mean"], 1.0, "{sft}");
    assert_eq!(sft["kinds"]["successor"]["mean"], 0.0, "{sft}");
    assert_eq!(sft["kinds"]["all"]["problems"], 12, "{sft}");
    // A policy that knows its answer is best where it is surest.
    let temperature = sft["best_temperature"]["temperature"].as_f64().unwrap();
    assert!((temperature - 0.1).abs() < 1e-6, "{sft}");
    assert_eq!(sft["best_temperature"]["of_problems"]["mean"], 0.5, "{sft}");
    let mean = |figure: &Value| figure["mean"].as_f64().unwrap();
    let (sampled, pass_at_2) = (mean(&sft["pass_at_1_sampled"]), mean(&sft["pass_at_k"]["2"]));
    assert!(sampled < 0.5 && sampled <= pass_at_2, "{sft}");
    let kl = sft["kl_to_reference"].as_f64().unwrap();
    assert!(sft["gain"].is_null() && kl.abs() < 1e-3, "the reference is the policy itself: {sft}");
    let raft = &report["rows"][1];
    assert!(
        raft["gain"]["sampled"]["mean"].is_number() && raft["gain"]["greedy"]["mean"].is_number(),
        "{raft}"
    );
}

#[test]
fn a_k_of_more_responses_than_there_are_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("recipe.toml"), RECIPE.replace("pass_at = [2]", "pass_at = [5]")).unwrap();
    for name in ["demonstrations.jsonl", "pairs.jsonl", "problems.jsonl"] {
        write(&folder.join(name), std::iter::once(problem(0)));
    }
    let output = Command::new(binary("sluice").unwrap())
        .arg("check-config")
        .arg(folder.join("recipe.toml"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("pass_at: pass@5"), "{}: {said}", output.status);
}
