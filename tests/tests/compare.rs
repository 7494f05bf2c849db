//! Runs side by side: a sweep and what it ran compared, and several rings in one recipe.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::io::{BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::{TinyRing, binary, read_until};

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
    // A second seed gives what one cannot: an interval.
    let seeds = json(&sweep(&["--seeds", "2", "--json"]));
    for row in seeds.as_array().unwrap() {
        assert_eq!(row["seeds"], 2, "{row}");
        assert!(row["score"]["half_width"].as_f64().is_some_and(|width| width > 0.0), "{row}");
    }
    let table = sweep(&["--seeds", "2", "--table"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains('±'), "{table:?}");

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
    run_a_task(&script, "1", "ring: done before");
    let wrong = sluice(&["sweep", path(&recipe), "--set", "coordinator.filtration.strategy=none,nonsense"]);
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(wrong.status.code() == Some(2) && said.contains("with strategy=nonsense"), "{said}");
}

/// Runs one task of an array as Slurm would; it must end well and say something.
fn run_a_task(script: &str, task: &str, expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sweep.sbatch");
    fs::write(&file, script).unwrap();
    let mut command = Command::new("bash");
    command.arg(&file).env("SLURM_ARRAY_TASK_ID", task).env("SLURM_JOB_ID", "77");
    command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive");
    let output = command.current_dir(folder.path()).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(expected), "{}: {said}", output.status);
}

/// Real runs by a real script; only `sbatch` and `scontrol`, which no machine has that is no cluster, note
/// what they are told.
#[test]
fn an_array_task_runs_its_cell_is_stopped_queued_again_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    TinyRing::new(folder.path()).unwrap();
    let (recipe, output) = (folder.path().join("recipe.toml"), folder.path().join("sweep"));
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for name in ["sbatch", "scontrol"] {
        let file = bin.join(name);
        let text = format!("#!/bin/bash\necho \"{name} $*\" >>'{}/record'\n", path(folder.path()));
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let search = format!("{}:{}", path(&bin), std::env::var_os("PATH").unwrap().to_string_lossy());
    let mut submit = Command::new(binary("sluice").unwrap());
    submit.args(["sweep", path(&recipe), "--set", "coordinator.batches=60", "--seeds", "2"]);
    submit.args(["--output", path(&output), "--slurm", "--submit", "--sbatch=--partition=gpu"]);
    let submitted = submit.env("PATH", &search).current_dir(folder.path()).output().unwrap();
    assert!(submitted.status.success(), "{}", String::from_utf8_lossy(&submitted.stderr));
    let record = || fs::read_to_string(folder.path().join("record")).unwrap();
    let script = output.join("sweep.sbatch");
    assert_eq!(record(), format!("sbatch {}\n", path(&script)));
    let text = fs::read_to_string(&script).unwrap();
    assert!(text.contains("#SBATCH --array=0-1\n") && text.contains("#SBATCH --partition=gpu\n"), "{text}");

    let task = || {
        let mut command = Command::new("bash");
        command.arg(&script).env("SLURM_ARRAY_TASK_ID", "1").env("SLURM_JOB_ID", "77").env("PATH", &search);
        command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive");
        command.current_dir("/").stdin(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut first = task();
    let mut said = BufReader::new(first.stderr.take().unwrap());
    read_until(&mut said, |line| line.starts_with("batch ")).unwrap();
    kill(Pid::from_raw(i32::try_from(first.id()).unwrap()), Signal::SIGTERM).unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(130), "{rest}");
    assert!(record().ends_with("scontrol requeue 77\n"), "{}\n{rest}", record());
    let again = task().wait_with_output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let runs: Vec<_> = fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().path()).collect();
    let run = runs.iter().find(|run| run.is_dir()).unwrap();
    assert!(run.join("seed-6/policy/config.json").is_file() && !run.join("seed-5").exists(), "{runs:?}");
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

/// One mechanism: the stage and the command say the same of the same responses.
#[test]
fn policies_are_compared_by_scorers_on_any_data() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap();
    let recipe = folder.path().join("recipe.toml");
    let text = fs::read_to_string(&recipe).unwrap();
    let (before, _) = text.split_once("[[stages]]\nname = \"ring\"").unwrap();
    let eval = "[[stages]]\nname = 'eval'\n[stages.eval]\nproblems = '{recipe}/sums.csv'\n\
                columns = {prompt = 'question'}\nscorers = [{kind = 'numeric-match', field = 'answer'}]\nn = 2\n\
                policies = [{name = 'a', model = '{output}/sft'}, {name = 'b', model = '{output}/sft'}]\n\
                output = '{output}/eval'\nsampling.max_new_tokens = 8\n";
    fs::write(&recipe, format!("{before}{eval}")).unwrap();
    let rows: String = (0..16).map(|n| format!("{} plus {} is,{}\n", n % 8, n / 8, n % 8 + n / 8)).collect();
    fs::write(folder.path().join("sums.csv"), format!("question,answer\n{rows}")).unwrap();
    let output = ring.command().unwrap().stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(
        table.contains("pass@1 greedy")
            && table.contains("b over a: greedy 0.0 points (0.0 standard errors)"),
        "{table}"
    );
    let report = fs::read_to_string(ring.output().join("eval/report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let greedy = report["rows"][0]["pass_at_1_greedy"]["mean"].as_f64().unwrap();
    assert!(greedy > 0.0 && report["rows"][0]["unjudged"] == 0, "{report}");
    let samples = fs::read_to_string(ring.output().join("eval/a-samples.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 32);
    let (sums, sft) = (folder.path().join("sums.csv"), ring.output().join("sft"));
    let command =
        ["eval", "--model", path(&sft), "--problems", path(&sums), "--column", "prompt=question", "--json"];
    let scorer = ["--scorer", "numeric-match", "--field", "answer", "--max-new-tokens", "8"];
    let by_command = json(&sluice(&[&command[..], &scorer].concat()));
    assert_eq!(by_command["pass"]["pass@1"].as_f64().unwrap(), greedy, "{by_command}");

    let wrong = eval.replace("field = 'answer'", "field = 'label'");
    fs::write(&recipe, format!("{before}{wrong}")).unwrap();
    let refused = sluice(&["check-config", path(&recipe)]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("stages[2].eval.scorers[0].field"), "{said}");
}
