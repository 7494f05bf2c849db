//! The study of the paper's methods, with models of minutes: two sweeps, and a line for each method.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tests::{binary, root};

/// What the study takes from tiny-coder, smaller. No policy of this size solves a problem, so that pairs to
/// prefer are written down instead of graded.
const MODELS: &str = r#"
name = "models"
seed = 3

[[stages]]
name = "problems"
[stages.command]
run = ["python3", "PROBLEMS", "--output", "{output}/problems", "--train", "48", "--demonstrations", "64", "--validation", "6", "--held-out", "8"]
output = "{output}/problems"

[[stages]]
name = "tokenizer"
[stages.tokenizer]
data = ["{output}/problems/demonstrations.jsonl"]
vocab_size = 320
output = "{output}/tokenizer"

[[stages]]
name = "sft"
[stages.sft]
data = "{output}/problems/demonstrations.jsonl"
output = "{output}/sft"
[stages.sft.init]
tokenizer = "{output}/tokenizer"
hidden_size = 32
intermediate_size = 64
layers = 1
heads = 2
kv_heads = 2
max_positions = 512
[stages.sft.training]
batch_size = 16

[[stages]]
name = "preferences"
[stages.command]
run = ["python3", "PAIRS", "{output}/problems/demonstrations.jsonl", "{output}/preferences"]
output = "{output}/preferences"

[[stages]]
name = "reward-model"
[stages.reward_model]
model = "{output}/sft"
data = "{output}/preferences/train.jsonl"
output = "{output}/reward-model"
[stages.reward_model.training]
batch_size = 16
"#;

const PAIRS: &str = "\
import json, pathlib, sys
folder = pathlib.Path(sys.argv[2])
folder.mkdir()
rows = [json.loads(line) for line in open(sys.argv[1])]
pairs = [{'prompt': row['prompt'], 'chosen': row['response'], 'rejected': '    pass\\n'} for row in rows]
(folder / 'train.jsonl').write_text(''.join(json.dumps(pair) + '\\n' for pair in pairs))
";

/// A copy of the study with a smaller ring.
fn copy_study(folder: &Path) {
    for entry in fs::read_dir(root().join("examples/pf-ppo-study")).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let mut text = fs::read_to_string(&path).unwrap();
        if path.extension().is_some_and(|kind| kind == "toml") {
            for (from, to) in [
                ("max_new_tokens = 96", "max_new_tokens = 12"),
                ("batch_prompts = 64", "batch_prompts = 4"),
                ("minibatch_size = 64", "minibatch_size = 8"),
                ("ppo_epochs = 3", "ppo_epochs = 1"),
                ("batch_size = 32", "batch_size = 16"),
            ] {
                text = text.replace(from, to);
            }
        }
        fs::write(folder.join(path.file_name().unwrap()), text).unwrap();
    }
}

fn study(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("python3");
    command.arg(folder.join("study.py")).arg("--sluice").arg(binary("sluice").unwrap());
    command.arg("--models").arg(folder.join("models.toml")).arg("--output").arg(folder.join("made"));
    command.args(["--quick", "--methods", "SFT", "RAFT", "DPO", "PPO-M", "top"]).args(arguments);
    // One thread an operation, and none that spins: tests share the machine.
    command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive").env("PYTHONDONTWRITEBYTECODE", "1");
    command.stdin(Stdio::null()).output().unwrap()
}

fn results(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("made-quick/pf-ppo-study.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_method_of_the_study_is_a_point_of_a_sweep_and_what_has_a_line_is_not_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    copy_study(folder);
    fs::write(folder.join("pairs.py"), PAIRS).unwrap();
    let problems = root().join("examples/tiny-coder/problems.py");
    let models = MODELS.replace("PROBLEMS", problems.to_str().unwrap());
    fs::write(folder.join("models.toml"), models.replace("PAIRS", "{recipe}/pairs.py")).unwrap();

    let first = study(folder, &[]);
    let said = String::from_utf8_lossy(&first.stderr);
    assert!(first.status.success(), "{}: {said}", first.status);
    let lines = results(folder);
    let methods: Vec<&str> = lines.iter().map(|line| line["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["SFT", "RAFT", "DPO", "PPO-M", "top"]);
    for line in &lines {
        assert_eq!(line["seed"], 101, "{line}");
        let rate = line["greedy"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&rate) && line["reward"].is_number(), "{line}");
        let is_ring = line["trained"].as_u64().unwrap() > 0;
        assert_eq!(is_ring, ["PPO-M", "top"].contains(&line["method"].as_str().unwrap()), "{line}");
    }
    let trained = |at: usize| lines[at]["trained"].as_u64().unwrap();
    assert_eq!(trained(3), 6 * 4 * 5, "PPO-M learns from all of six batches");
    assert!(trained(4) < trained(3), "what is below the threshold is left out: {lines:?}");
    let point = folder.join("made-quick/arms/top/seed-101/ring/config/coordinator.toml");
    let told = fs::read_to_string(point).unwrap();
    assert!(told.contains("strategy = \"top:") && !told.contains("TOP"), "{told}");
    let table = String::from_utf8_lossy(&first.stdout);
    assert!(table.contains("pass@1 greedy") && table.contains("\n| PPO-M | 1 | "), "{table}");

    // A line that is lost comes again from its run; nothing is run for it, nor for the others.
    let file = folder.join("made-quick/pf-ppo-study.jsonl");
    let text: String = lines[..4].iter().map(|line| format!("{line}\n")).collect();
    fs::write(&file, text).unwrap();
    let again = study(folder, &[]);
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success(), "{said}");
    assert!(said.contains("run 1 of 1: top") && said.contains("ring: done before"), "{said}");
    assert!(!said.contains("PPO-M") && !said.contains("offline"), "{said}");
    assert_eq!(results(folder), lines);
}
