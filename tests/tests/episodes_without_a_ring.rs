//! `sluice eval`, the stage `eval` and `sluice generate` play the episodes that the ring plays: the same
//! turns, the same bounds, the same scores.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tests::{TinyRing, binary};

/// A ring that evaluates greedily before its first step, and a stage that compares its policies.
const EVALUATED: &str = r#"
[[stages]]
name = "eval"
[stages.eval]
problems = "{recipe}/data.jsonl"
judge = "scorers"
policies = [{name = "before", model = "{output}/sft"}, {name = "after", model = "{output}/policy"}]
n = 2
output = "{output}/eval"
[stages.eval.sampling]
max_new_tokens = 40

[coordinator]
"#;

/// A policy that asks an interpreter, and the recipe that it was taught by.
struct Taught {
    folder: tempfile::TempDir,
}

impl Taught {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ring = TinyRing::of_episodes(folder.path()).unwrap();
        let recipe = folder.path().join("recipe.toml");
        let text = fs::read_to_string(&recipe).unwrap().replacen("\n[coordinator]\n", EVALUATED, 1);
        fs::write(&recipe, text).unwrap();
        let ring = ring
            .with("coordinator.batches=2")
            .with("coordinator.eval.every=2")
            .with(&format!("coordinator.eval.data.path={}", folder.path().join("data.jsonl").display()));
        ring.run().unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    /// A command on the policy as it was before the ring.
    fn sluice(&self, command: &str, arguments: &[&str]) -> Output {
        let mut sluice = Command::new(binary("sluice").unwrap());
        sluice.args([command, "--max-new-tokens", "40", "--threads", "1", "--model"]);
        sluice.arg(self.path("run/sft")).args(arguments).env("OMP_NUM_THREADS", "1");
        sluice.output().unwrap()
    }

    /// What `sluice eval` says of the prompts.
    fn eval(&self, arguments: &[&str]) -> Value {
        let problems = self.path("data.jsonl").display().to_string();
        let output = self.sluice("eval", &[&["--problems", &problems, "--json"], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn is_refused(&self, arguments: &[&str], expected: &str) {
        let problems = self.path("data.jsonl").display().to_string();
        let output = self.sluice("eval", &[&["--problems", &problems], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{said}");
    }
}

fn rows(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Its class plays no sum above nine.
const CLASS: &str = r#"
class Sum:
    def reset(self, sum):
        if len(sum) > 1:
            raise RuntimeError("too large a sum")
        self.sum = sum
        return "Go on:\n"

    def step(self, text):
        return None, float(self.sum in text), True, False, {}
"#;

#[test]
fn responses_are_the_episodes_of_the_ring_wherever_they_are_drawn() {
    let taught = Taught::new();
    let recipe = taught.path("recipe.toml").display().to_string();

    // Greedily, the ring's evaluation, the command and the stage say the same.
    let of_ring = rows(&taught.path("run/ring/evals.jsonl")).remove(0);
    assert_eq!((&of_ring["version"], &of_ring["responses"]), (&Value::from(0), &Value::from(64)));
    let greedy = taught.eval(&["--scorers", &recipe]);
    let (score, expected) = (number(&greedy["score"]["mean"]), number(&of_ring["score_mean"]));
    assert!((score - expected).abs() < 1e-6, "{score} against the ring's {expected}");
    let episodes = &greedy["episodes"];
    assert_eq!(episodes["episodes"], 64);
    assert!(number(&episodes["tool_calls"]) > 12.0, "the policy does not ask: {episodes}");
    assert_eq!(number(&episodes["turns"]), 64.0 + number(&episodes["tool_calls"]), "{episodes}");
    let ends: f64 = episodes["ends"].as_object().unwrap().values().map(number).sum();
    assert_eq!(ends, 64.0, "{episodes}");
    let report: Value =
        serde_json::from_str(&fs::read_to_string(taught.path("run/eval/report.json")).unwrap()).unwrap();
    let before = &report["rows"][0];
    assert!((number(&before["score_greedy"]["mean"]) - expected).abs() < 1e-6, "{report}");
    assert_eq!(before["episodes"]["episodes"], 128, "{report}");
    let sample = rows(&taught.path("run/eval/before-samples.jsonl")).remove(0);
    assert_eq!(sample["turns"][0]["role"], "assistant", "{sample}");

    // One turn, where that is asked for, is another thing.
    let one_turn = taught.eval(&["--scorers", &recipe, "--one-turn"]);
    assert_eq!(one_turn["episodes"], Value::Null);
    assert!(number(&one_turn["score"]["mean"]) < score, "{one_turn} against {greedy}");

    sampled_episodes_repeat_themselves_and_are_read_back(&taught, &recipe);
    what_cannot_be_played_is_said(&taught, &recipe);
}

fn sampled_episodes_repeat_themselves_and_are_read_back(taught: &Taught, recipe: &str) {
    let sampled = ["--n", "3", "--seed", "5", "--temperature", "1"];
    let files = ["first.jsonl", "second.jsonl"].map(|name| taught.path(name).display().to_string());
    let said: Vec<Value> = files
        .iter()
        .map(|file| taught.eval(&[&["--scorers", recipe, "--output", file], &sampled[..]].concat()))
        .collect();
    assert_eq!(fs::read(&files[0]).unwrap(), fs::read(&files[1]).unwrap());
    assert_eq!(said[0], said[1]);
    let all = rows(Path::new(&files[0]));
    assert_eq!(all.len(), 192);
    for row in &all {
        let turns = row["turns"].as_array().unwrap();
        let roles: Vec<&str> = turns.iter().map(|turn| turn["role"].as_str().unwrap()).collect();
        assert_eq!(roles[0], "assistant", "{row}");
        assert!(roles.len() <= 6 && row["end"].is_string(), "{row}");
    }
    let asked = all.iter().find(|row| row["turns"].as_array().unwrap().len() == 3).unwrap();
    assert_eq!(asked["turns"][1]["role"], "tool", "{asked}");

    // What generate writes is the same episodes, and judging them says the same.
    let (input, output) = (
        taught.path("data.jsonl").display().to_string(),
        taught.path("generated.jsonl").display().to_string(),
    );
    let arguments = ["--input", &input, "--output", &output, "--environment", recipe];
    let generated = taught.sluice("generate", &[&arguments[..], &sampled].concat());
    let said_beside = String::from_utf8_lossy(&generated.stderr).into_owned();
    assert!(generated.status.success() && said_beside.contains("192 episodes of"), "{said_beside}");
    let lines = rows(Path::new(&output));
    assert_eq!(lines.len(), 192);
    for (line, row) in lines.iter().zip(&all) {
        assert_eq!((&line["turns"], &line["end"], &line["text"]), (&row["turns"], &row["end"], &row["text"]));
        let mask = line["response_mask"].as_array().unwrap();
        assert_eq!(mask.len(), line["response_tokens"].as_array().unwrap().len());
        assert_eq!(mask.len(), line["logprobs"].as_array().unwrap().len());
        let has_observation = line["turns"].as_array().unwrap().len() > 2;
        assert_eq!(mask.contains(&Value::from(0)), has_observation, "{line}");
    }
    let judged = taught.sluice("eval", &["--responses", &output, "--scorers", recipe, "--json"]);
    assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stderr));
    let judged: Value = serde_json::from_slice(&judged.stdout).unwrap();
    assert_eq!(judged["score"], said[0]["score"]);
}

fn what_cannot_be_played_is_said(taught: &Taught, recipe: &str) {
    let problems = taught.path("data.jsonl").display().to_string();
    let scorers = "[[reward_server.scorers]]\nkind = 'numeric-match'\nfield = 'sum'\n";
    let none = taught.write("none.toml", scorers);
    taught.is_refused(
        &["--scorers", recipe, "--environment", &none],
        "there is no [reward_server.environment]",
    );
    let agents = taught.write("agents.toml", &format!("[actor.agents]\nenabled = true\n{scorers}"));
    taught.is_refused(&["--scorers", &agents], "agents play the episodes of this recipe");
    let file = taught.write("environment.py", CLASS);
    let environment = format!("[reward_server.environment]\nkind = 'class'\nfile = {file:?}\n");
    let bad = taught.write("bad.toml", &format!("{environment}turns = 0\n{scorers}"));
    taught.is_refused(&["--scorers", &bad], "turns must be at least 1");

    // An environment that fails gives no response, and never a score.
    let rewarded = taught.write(
        "class.toml",
        &format!("{environment}[[reward_server.scorers]]\nkind = 'environment'\nyardstick = true\n"),
    );
    let output = taught.sluice("eval", &["--problems", &problems, "--scorers", &rewarded, "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("15 of 64 prompts have no response") && said.contains("too large a sum"), "{said}");
    let judged: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(judged["episodes"]["episodes"], 49, "{judged}");
    assert_eq!(judged["prompts"], 49, "{judged}");
    let raises = taught.write("environment.py", "class Never:\n    def reset(self):\n        raise OSError('gone')\n    def step(self, text):\n        return None\n");
    assert_eq!(raises, file);
    let output = taught.sluice("eval", &["--problems", &problems, "--scorers", &rewarded]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no prompt has a response") && said.contains("gone"), "{said}");
}
