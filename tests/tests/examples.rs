//! Everything in `examples/` that takes a minute or less runs, and says what its page says.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tests::{binary, read_until, root};

/// Runs a command in a folder of its own, on one thread an operation: tests share the machine.
fn run(mut command: Command, folder: &Path) -> Output {
    command.current_dir(folder).stdin(Stdio::null());
    command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}:\n{said}", output.status);
    output
}

/// Runs a recipe of `examples/` in a folder. What it makes is in `runs/` of that folder.
fn run_recipe(recipe: &str, folder: &Path) {
    let mut command = Command::new(binary("sluice").unwrap());
    command.arg("run").arg(root().join("examples").join(recipe));
    run(command, folder);
}

/// The training steps of a run, in order.
fn steps(folder: &Path, name: &str) -> Vec<Value> {
    json_lines(folder, name, "steps")
}

/// A file of a run's ring.
fn json_lines(folder: &Path, name: &str, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(format!("runs/{name}/ring/{file}.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a Rust example of a crate prints.
fn rust_example(name: &str, arguments: &[&str], folder: &Path) -> String {
    let mut command = Command::new(binary(&format!("examples/{name}")).unwrap());
    command.args(arguments);
    String::from_utf8(run(command, folder).stdout).unwrap()
}

#[test]
fn own_model_trains_two_batches_and_a_rust_program_generates_with_it() {
    let folder = tempfile::tempdir().unwrap();
    run_recipe("own-model/recipe.toml", folder.path());
    let steps = steps(folder.path(), "own-model");
    assert_eq!(steps.len(), 2);
    for step in &steps {
        let without_signal = step["groups_without_signal"].as_u64().unwrap();
        let responses = Some(5 * (8 + without_signal));
        assert_eq!((step["prompts"].as_u64(), step["responses"].as_u64()), (Some(8), responses), "{step}");
        assert_eq!(step["metrics"]["samples"], 16, "{step}");
        assert!(step["metrics"]["policy_grad_norm"].as_f64().unwrap() > 0.0, "{step}");
        assert!(step["metrics"]["value_loss"].as_f64().unwrap() > 0.0, "no critic was trained: {step}");
    }
    let samples = json_lines(folder.path(), "own-model", "samples");
    for fate in ["trains", "filtered{strategy}"] {
        assert!(samples.iter().any(|sample| sample["fate"] == fate), "{fate}: {samples:?}");
    }
    let policy = folder.path().join("runs/own-model/policy");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(policy.join(file).exists(), "the policy has no {file}");
    }

    // A Rust program generates with it, and repeats itself.
    let arguments = [policy.to_str().unwrap(), "3 plus 4 is"];
    let said = rust_example("generate", &arguments, folder.path());
    assert_eq!(said.lines().count(), 3, "{said}");
    for line in said.lines() {
        assert!(line.starts_with('"') && line.contains(" tokens, log-prob -"), "{said}");
    }
    assert_eq!(said, rust_example("generate", &arguments, folder.path()));
}

/// `examples/code-interpreter` on a few problems: it does everything that the whole does, and learns nothing.
#[test]
fn the_code_interpreter_is_trained_and_measured() {
    let folder = tempfile::tempdir().unwrap();
    let example = root().join("examples/code-interpreter");
    let problems = example.join("problems.py");
    let made = [
        "--output",
        "{output}/problems",
        "--lessons",
        "96",
        "--demonstrations",
        "32",
        "--validation",
        "8",
        "--held-out",
        "12",
    ];
    let mut make = vec!["python3", problems.to_str().unwrap()];
    make.extend(made);
    let mut command = Command::new(binary("sluice").unwrap());
    command.arg("run").arg(example.join("recipe.toml"));
    command.args(["--set", &format!("stages[0].command.run={}", serde_json::to_string(&make).unwrap())]);
    for setting in ["stages[2].sft.training.epochs=1", "coordinator.batches=1", "coordinator.batch_prompts=4"]
    {
        command.args(["--set", setting]);
    }
    run(command, folder.path());
    let rows = |name: &str| {
        let text =
            fs::read_to_string(folder.path().join(format!("runs/code-interpreter/problems/{name}.jsonl")));
        let rows: Vec<Value> =
            text.unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        rows
    };
    // No product that is learnt from is judged by, and no line is wrong but where somebody has said what
    // it is about.
    let large = |name: &str| rows(name).into_iter().filter(|row| row["kind"] == "large").collect::<Vec<_>>();
    let train = large("train");
    for other in [large("validation"), large("held_out")] {
        assert!(
            other.len() >= 4
                && other.iter().all(|row| train.iter().all(|seen| seen["messages"] != row["messages"]))
        );
    }
    let lessons = rows("lessons");
    let called = lessons.iter().filter(|row| row["messages"].as_array().unwrap().len() == 4);
    assert!((40..80).contains(&called.count()), "more than half of the lessons call the interpreter");

    let evaluations = json_lines(folder.path(), "code-interpreter", "evals");
    assert_eq!(
        evaluations.iter().map(|line| line["responses"].as_u64().unwrap()).collect::<Vec<_>>(),
        [12, 12]
    );
    let mut measure = Command::new("python3");
    measure.arg(example.join("measure.py")).arg(binary("sluice").unwrap());
    let table = String::from_utf8(run(measure, folder.path()).stdout).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 8, "{table}");
    assert!(
        lines[2].starts_with("| SFT | greedily | ") && lines[7].starts_with("| GRPO | at its best, "),
        "{table}"
    );
    for line in &lines[2..] {
        let right: f64 = line.split(['|', '±']).nth(3).unwrap().trim().parse().unwrap();
        assert!((0.0..=100.0).contains(&right) && line.matches('±').count() == 5, "{line}");
    }
}

#[test]
fn grpo_trains_on_whole_groups_without_critic_and_reference() {
    let folder = tempfile::tempdir().unwrap();
    run_recipe("grpo/recipe.toml", folder.path());
    let steps = steps(folder.path(), "grpo");
    assert_eq!(steps.len(), 4);
    for step in &steps {
        assert_eq!((step["responses"].as_u64(), step["metrics"]["samples"].as_u64()), (Some(64), Some(64)));
        for unmeasured in ["value_loss", "explained_variance", "critic_grad_norm", "kl_to_ref"] {
            assert_eq!(step["metrics"][unmeasured], Value::Null, "{unmeasured}: {step}");
        }
        let score = step["score_mean"].as_f64().unwrap();
        assert!((-0.5..1.0).contains(&score), "reward.py gives no such mean: {step}");
        let scorer = &step["scorers"]["python"];
        assert!((scorer["mean"].as_f64().unwrap() - score).abs() < 1e-6, "{step}");
        assert!(scorer["deviation"].as_f64().unwrap() > 0.0, "{step}");
        assert_eq!(
            (step["groups"].as_u64(), step["without_signal"].as_f64()),
            (Some(8), Some(0.0)),
            "{step}"
        );
    }
    let samples = json_lines(folder.path(), "grpo", "samples");
    assert!((8..=8 * 6).contains(&samples.len()), "{} samples", samples.len());
    for sample in &samples {
        let [number, score] = [&sample["scorers"]["python"], &sample["score"]].map(|n| n.as_f64().unwrap());
        assert!((number - score).abs() < 1e-6, "{sample}");
        assert_eq!(sample["fate"], "trains", "{sample}");
        assert!(sample["prompt"].as_str().is_some_and(|prompt| prompt.contains(" is")), "{sample}");
        assert!(sample["response"].is_string() && sample["response_tokens"].as_u64() > Some(0), "{sample}");
    }
}

#[test]
fn the_grading_service_tells_programs_apart() {
    let folder = tempfile::tempdir().unwrap();
    run_recipe("grading-service/tokenizer.toml", folder.path());
    let mut server = Command::new(binary("sluice-reward-server").unwrap());
    server.arg("--config").arg(root().join("examples/grading-service/reward-server.toml"));
    // Any free port, and an end with this test.
    server.args(["--set", "endpoint.listen=127.0.0.1:0", "--set", "service.follow_stdin=true"]);
    server.current_dir(folder.path()).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut server = server.spawn().unwrap();
    let mut log = BufReader::new(server.stderr.take().unwrap());
    let line = read_until(&mut log, |line| line.contains("listening what=\"rewards\"")).unwrap();
    let address = line.trim().rsplit_once("address=").unwrap().1;

    let mut client = Command::new("python3");
    client.arg(root().join("examples/grading-service/grade.py")).arg(format!("http://{address}/get_reward"));
    let said = String::from_utf8(run(client, folder.path()).stdout).unwrap();
    assert_eq!(said, " 1.00  right\n 0.75  nearly right\n 0.00  equal to everything\n 0.00  endless\n");
    drop(server.stdin.take());
    assert!(server.wait().unwrap().success());
}

#[test]
fn a_rust_program_grades_with_the_sandbox() {
    let folder = tempfile::tempdir().unwrap();
    let said = rust_example("grade", &[], folder.path());
    let lines: Vec<&str> = said.lines().collect();
    assert!(["tier A", "tier B"].contains(&lines[0]), "{said}");
    assert_eq!(lines[1].trim(), "accepted 2/2", "{said}");
    assert!(lines[2].starts_with("wrong_answer 0/2"), "{said}");
    assert!(lines[3].starts_with("runtime_error 0/2"), "{said}");
    assert_eq!(lines.len(), 4);
}

#[test]
fn a_rust_program_computes_a_loss() {
    let folder = tempfile::tempdir().unwrap();
    let said = rust_example("loss", &[], folder.path());
    let expected = "advantages [0.7510, 0.5800, 0.4000, -1.0000]\n\
                    loss -0.1671\n\
                    gradient with respect to the log-probs [-0.2075, -0.1450, 0.0000, 0.3054]\n";
    assert_eq!(said, expected);
}

#[test]
fn the_study_of_noise_masks_compares_methods_and_repeats_itself() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|output| {
        let mut command = Command::new(binary("noise-mask").unwrap());
        command.args(["--quick", "--output", output]);
        let said = String::from_utf8(run(command, folder.path()).stdout).unwrap();
        (said, fs::read_to_string(folder.path().join(output).join("results.jsonl")).unwrap())
    });
    assert_eq!(first, second);
    let (said, results) = first;

    let methods = [
        "no mask",
        "no mask, loss × ln(cells)",
        "random masks",
        "random masks, loss × ln(cells)",
        "learned masks, the paper's loss",
        "learned masks, REINFORCE",
    ];
    for method in methods {
        assert!(said.contains(&format!("\n| {method} | ")), "{said}");
    }
    assert!(
        said.starts_with(
            "300 images to learn from, 300 to choose learning rates by, 1197 to judge by, 2 seeds"
        ),
        "{said}"
    );
    let runs: Vec<Value> = results.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(runs.len(), 2 * methods.len());
    for run in &runs {
        for figure in ["accuracy", "macro_f1"] {
            // Three passes over 300 digits teach something.
            let found = run["fine_tuned"][figure].as_f64().unwrap();
            assert!((0.2..=1.0).contains(&found), "{run}");
        }
        let masked = run["masks"]["cells"].as_array().map_or(0, Vec::len);
        assert!(masked == if run["method"].as_str().unwrap().starts_with("no-") { 0 } else { 64 }, "{run}");
    }
    let picture = fs::read_to_string(folder.path().join("first/gains.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("learned masks, REINFORCE"), "{picture}");

    let mut command = Command::new(binary("noise-mask").unwrap());
    command.args(["--train-per-class", "144"]).current_dir(folder.path());
    let refused = command.output().unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && error.contains("--train-per-class takes 1 to 143"), "{error}");
}
