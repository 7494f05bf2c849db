//! Runs side by side: a sweep and what it ran compared, and several rings in one recipe.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tests::{TinyRing, binary};

fn sluice(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("sluice").unwrap());
    // One thread an operation, and none that spins: tests share the machine.
    command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive");
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_sweep_runs_every_combination_once_and_its_runs_can_be_compared() {
    let folder = tempfile::tempdir().unwrap();
    TinyRing::new(folder.path()).unwrap();
    let (recipe, output) = (folder.path().join("recipe.toml"), folder.path().join("sweep"));
    let strategies = "coordinator.filtration.strategy=none,best-worst";
    let settings = ["--set", "coordinator.batches=1", "--set", strategies, "--output", path(&output)];
    let sweep = |more: &[&str]| sluice(&[&["sweep", path(&recipe)][..], &settings, more].concat());

    let first = sweep(&["--json"]);
    let rows = json(&first);
    assert_eq!(rows.as_array().unwrap().len(), 2, "{rows}");
    for row in rows.as_array().unwrap() {
        assert_eq!((&row["seeds"], &row["score"]["half_width"]), (&1.into(), &Value::Null), "{row}");
        assert!(row["score"]["mean"].is_number() && row["kl"]["mean"].is_number(), "{row}");
    }
    let again = sweep(&["--json"]);
    assert_eq!(json(&again), rows);
    let said = String::from_utf8_lossy(&again.stderr);
    assert_eq!(said.matches("ring: done before").count(), 2, "{said}");
    assert_eq!(json(&sweep(&["--table", "--json"])), rows);

    let mut runs: Vec<_> =
        fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().path().join("seed-5")).collect();
    runs.sort();
    let compared = json(&sluice(&["compare", path(&runs[0]), path(&runs[1]), "--json"]));
    let strategy = |row: usize| &compared[row]["keys"]["coordinator.filtration.strategy"];
    assert_eq!((strategy(0), strategy(1)), (&"none".into(), &"best-worst".into()), "{compared}");
    assert_eq!(compared[0]["keys"].as_object().unwrap().len(), 1, "{compared}");
    assert_eq!(compared[0]["results"]["batches"], 1);

    let script = sweep(&["--slurm"]);
    let script = String::from_utf8(script.stdout).unwrap();
    assert!(script.contains("#SBATCH --array=0-1\n") && script.contains(strategies), "{script}");
    let wrong = sluice(&["sweep", path(&recipe), "--set", "coordinator.filtration.strategy=none,nonsense"]);
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(wrong.status.code() == Some(2) && said.contains("with strategy=nonsense"), "{said}");
}

#[test]
fn each_ring_of_a_recipe_trains_in_its_own_folder_and_a_new_run_begins_with_a_checkpoint_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap().with("coordinator.batches=2");
    let recipe = folder.path().join("recipe.toml");
    let one = fs::read_to_string(&recipe).unwrap();
    let second = "[[stages]]\nname = \"none\"\n[stages.ring]\noutput = \"{output}/policy-none\"\n\
                  [stages.ring.set]\ncoordinator.filtration.strategy = \"none\"\n\n[coordinator]\n";
    fs::write(&recipe, one.replace("[coordinator]\n", second)).unwrap();
    ring.run().unwrap();
    let samples = |folder: &str| {
        let text = fs::read_to_string(ring.output().join(folder).join("steps.jsonl")).unwrap();
        let steps = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        steps.map(|step| step["metrics"]["samples"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((samples("ring"), samples("ring-none")), (vec![16, 16], vec![32, 32]));
    let bytes = |policy: &str| fs::read(ring.output().join(policy).join("model.safetensors")).unwrap();
    assert_ne!(bytes("policy"), bytes("policy-none"));

    // A new run over the second one's weights and place among the prompts; the recipe is the first one's.
    let from =
        format!("from = \"{}/ring-none@2\"\nrestore = [\"weights\", \"cursor\"]\n", path(&ring.output()));
    fs::write(&recipe, one.replace("[stages.ring]\n", &format!("[stages.ring]\n{from}"))).unwrap();
    let output = folder.path().join("next");
    let settings = ["--set", "coordinator.batches=1", "--set", &format!("output='{}'", path(&output))];
    let run = sluice(&[&["run", path(&recipe)][..], &settings].concat());
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let told = |role: &str| fs::read_to_string(output.join(format!("ring/config/{role}.toml"))).unwrap();
    assert!(told("coordinator").contains("skip_prompts = 16"), "{}", told("coordinator"));
    assert!(told("learner").contains("ring-none/checkpoints/step-00000002/policy"), "{}", told("learner"));
}
