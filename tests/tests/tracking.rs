//! A run's curves in trackers, read back by the trackers' own packages where `python3` has them, and its
//! report.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tests::{TinyRing, binary, root};

/// `sluice` where `setup/install.sh trackers` puts packages.
fn sluice(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("sluice").unwrap());
    command.args(arguments).current_dir(root()).stdin(Stdio::null()).output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a program in Python prints as JSON; none, with a word, where it lacks a package.
fn python(package: &str, program: &str, arguments: &[&str]) -> Option<Value> {
    let python = || {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", root().join(".deps/trackers"));
        command
    };
    let has = python().args(["-c", &format!("import {package}")]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        eprintln!(
            "left out: python3 has no package {package}, which would read back what was written \
             (setup/install.sh trackers)"
        );
        return None;
    }
    let output = python().args(["-c", program]).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let printed = String::from_utf8_lossy(&output.stdout);
    Some(serde_json::from_str(printed.lines().next_back().unwrap()).unwrap())
}

/// A run's folder with so many steps, as `sluice run` leaves it.
fn run_folder(folder: &Path, steps: u64) -> std::path::PathBuf {
    let ring = folder.join("my-run/ring");
    fs::create_dir_all(ring.join("config")).unwrap();
    fs::write(ring.join("config/learner.toml"), "[ppo]\npolicy_lr = 1e-4\nalgorithm = 'grpo'\n").unwrap();
    let lines: String = (1..=steps).map(|batch| format!("{}\n", step(batch))).collect();
    fs::write(ring.join("steps.jsonl"), lines).unwrap();
    folder.join("my-run")
}

fn step(batch: u64) -> Value {
    json!({"batch": batch, "time": 1_000_000 + 1000 * batch, "score_mean": 0.5 * batch as f64, "outcome_mean": null,
           "metrics": {"kl_to_ref": 0.25}})
}

const READ_EVENTS: &str = "
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'tensors': 0})
events.Reload()
scalars = {tag: [[e.step, e.value, e.wall_time] for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}
texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()['tensors']}
print(json.dumps({'scalars': scalars, 'texts': texts}))
";

#[test]
fn tensorboard_reads_the_curves_and_a_step_that_was_trained_again_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_folder(folder.path(), 3);
    let track = || {
        let tracked = sluice(&["track", path(&run), "--to", "tensorboard"]);
        assert!(tracked.status.success(), "{}", String::from_utf8_lossy(&tracked.stderr));
    };
    track();
    // Batch 3 was lost in a crash and trained again.
    let mut again = step(3);
    (again["time"], again["score_mean"]) = (json!(1_009_000), json!(9.0));
    let steps = run.join("ring/steps.jsonl");
    let text = fs::read_to_string(&steps).unwrap();
    fs::write(&steps, format!("{text}{again}\n")).unwrap();
    track();
    let events = run.join("tracking/tensorboard/my-run");
    assert!(fs::read_dir(&events).unwrap().count() >= 1);
    let Some(read) = python("tensorboard", READ_EVENTS, &[path(&events)]) else { return };
    let of = |tag: &str, at: usize| -> Vec<f64> {
        read["scalars"][tag].as_array().unwrap().iter().map(|event| event[at].as_f64().unwrap()).collect()
    };
    assert_eq!(of("score_mean", 0), [1.0, 2.0, 3.0], "{read}");
    assert_eq!(of("score_mean", 1), [0.5, 1.0, 9.0], "{read}");
    assert_eq!(of("score_mean", 2), [1001.0, 1002.0, 1009.0], "{read}");
    assert_eq!(of("metrics/kl_to_ref", 1).len(), 3);
    assert!(read["scalars"].get("outcome_mean").is_none(), "what was not measured is no curve");
    assert!(read["texts"]["configuration"].as_str().unwrap().contains("| learner.ppo.policy_lr |"), "{read}");
}

const READ_TRACKERS: [(&str, &str); 3] = [
    (
        "mlflow",
        "
import json, sys, mlflow
mlflow.set_tracking_uri('sqlite:///' + sys.argv[1] + '/mlflow.db')
run = mlflow.search_runs(experiment_names=['sluice'], output_format='list')
assert len(run) == 1, run
points = mlflow.tracking.MlflowClient().get_metric_history(run[0].info.run_id, 'score_mean')
print(json.dumps({'points': sorted([p.step, p.value] for p in points), 'lr': run[0].data.params['learner.ppo.policy_lr']}))
",
    ),
    (
        "trackio",
        "
import json, os, sys
os.environ['TRACKIO_DIR'] = sys.argv[1]
import trackio
run = trackio.Api().runs('sluice')[0]
from trackio.sqlite_storage import SQLiteStorage
points = [[row['step'], row['score_mean']] for row in SQLiteStorage.get_logs('sluice', run.name)]
print(json.dumps({'points': points}))
",
    ),
    (
        "wandb",
        "
import glob, json, struct, sys
from wandb.proto import wandb_internal_pb2 as pb
points = []
for name in sorted(glob.glob(sys.argv[1] + '/wandb/offline-run-*/*.wandb')):
    data, at, part = open(name, 'rb').read(), 7, b''
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack('<HB', data[at + 4:at + 7])
        part += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record, part = pb.Record.FromString(part), b''
            row = {(i.key or '.'.join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            if 'score_mean' in row: points.append([row['batch'], float(row['score_mean'])])
print(json.dumps({'points': points}))
",
    ),
];

#[test]
fn trackers_that_are_packages_take_the_curves_offline_and_go_on_where_they_were() {
    for (tracker, read) in READ_TRACKERS {
        let folder = tempfile::tempdir().unwrap();
        let run = run_folder(folder.path(), 2);
        let Some(_) = python(tracker, "print(1)", &[]) else { continue };
        for steps in [2, 3] {
            run_folder(folder.path(), steps);
            let tracked = sluice(&["track", path(&run), "--to", tracker, "--offline"]);
            let log = fs::read_to_string(run.join(format!("ring/logs/tracking-{tracker}.log")));
            let said = String::from_utf8_lossy(&tracked.stderr).into_owned() + &log.unwrap_or_default();
            assert!(tracked.status.success(), "{tracker}: {said}");
        }
        let read = python(tracker, read, &[path(&run.join("tracking"))]).unwrap();
        assert_eq!(read["points"], json!([[1, 0.5], [2, 1.0], [3, 1.5]]), "{tracker}: {read}");
    }
}

#[test]
fn a_run_is_tracked_while_it_goes_on_and_has_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path())
        .unwrap()
        .with("coordinator.batches=2")
        .with("tracking.to=['tensorboard']");
    ring.run().unwrap();
    let places = fs::read_to_string(ring.output().join("ring/tracking.json")).unwrap();
    let places: Value = serde_json::from_str(&places).unwrap();
    assert_eq!(places["tensorboard"]["last"][0], 2, "the last step is handed on before the end: {places}");
    assert!(ring.output().join("tracking/tensorboard/tiny-ring").is_dir());

    let report = sluice(&["report", path(&ring.output())]);
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    let html = fs::read_to_string(ring.output().join("report.html")).unwrap();
    for part in [
        "2 of 2 batches trained",
        "Mean score, all responses",
        "learner.ppo.policy_lr",
        "mean score",
        "uPlot",
    ] {
        assert!(html.contains(part), "{part}");
    }
    lives_are_told(&ring.output());
    let nothing = sluice(&["report", path(folder.path())]);
    assert_eq!(nothing.status.code(), Some(2));
    let missing = ring.with("tracking.to=['wandb']").with("tracking.interpreter=/nowhere/python3");
    let refused = missing.command().unwrap().stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("tracking.to names wandb"), "{said}");
}

/// `sluice trace` of every sample of a run.
fn lives_are_told(run: &Path) {
    let samples = fs::read_to_string(run.join("ring/samples.jsonl")).unwrap();
    let samples: Vec<Value> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(samples.iter().any(|sample| sample["fate"] == "trains"), "{samples:?}");
    for sample in samples {
        let logprobs = sample["logprobs"].as_array().unwrap();
        assert_eq!(logprobs.len() as u64, sample["response_tokens"].as_u64().unwrap(), "{sample}");
        let times =
            ["leased_unix_ms", "scored_unix_ms", "time_unix_ms"].map(|time| sample[time].as_u64().unwrap());
        assert!(times.is_sorted(), "{sample}");
        let told = sluice(&["trace", path(run), sample["id"].as_str().unwrap()]);
        let said = String::from_utf8_lossy(&told.stdout);
        let actor = sample["actor"].as_str().unwrap();
        assert!(told.status.success() && said.contains(&format!("leased to {actor}")), "{said}");
        assert_eq!(said.contains("is trained: version"), sample["fate"] == "trains", "{said}");
    }
    let unknown = sluice(&["trace", path(run), "e9-p9"]);
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(unknown.status.code() == Some(2) && said.contains("samples_per_batch"), "{said}");
}
