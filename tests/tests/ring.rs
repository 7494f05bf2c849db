//! The whole ring as processes: what a run promises, also when its roles are killed.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::{DocumentedMetrics, TinyRing};

/// Enough for a role to be killed long before the end.
const BATCHES: &str = "coordinator.batches=60";

fn ring(folder: &tempfile::TempDir) -> TinyRing {
    TinyRing::new(folder.path()).unwrap()
}

fn sigkill(process: i32) {
    kill(Pid::from_raw(process), Signal::SIGKILL).unwrap();
}

/// The value of a metric in Prometheus' text, summed over its labels.
fn metric(text: &str, name: &str) -> f64 {
    let of_name = |line: &&str| line.split(['{', ' ']).next() == Some(name);
    let values =
        text.lines().filter(of_name).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
    let values: Vec<f64> = values.collect();
    assert!(!values.is_empty(), "no metric {name} in:\n{text}");
    values.iter().sum()
}

fn metrics_of(ring: &TinyRing, role: &str) -> String {
    let page = format!("http://{}/metrics", address(ring, role, "metrics"));
    ureq::get(&page).call().unwrap().body_mut().read_to_string().unwrap()
}

fn address(ring: &TinyRing, role: &str, what: &str) -> String {
    let file = ring.output().join(format!("ring/{role}.address.json"));
    let addresses: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    addresses[what].as_str().unwrap().to_owned()
}

#[test]
fn a_run_repeats_itself_bit_for_bit_also_when_actor_and_learner_are_killed() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let of = |folder| ring(folder).with(BATCHES);
    let (undisturbed, disturbed) = (of(&first), of(&second));
    undisturbed.run().unwrap();
    undisturbed.check_complete(60).unwrap();

    let mut running = disturbed.start().unwrap();
    running.wait_for_batches(10).unwrap();
    sigkill(running.processes["actor-0"]);
    running.wait_for_batches(30).unwrap();
    sigkill(running.processes["learner"]);
    let (status, said) = running.end().unwrap();
    assert!(status.success(), "{said}");
    assert!(said.contains("2 restart(s)"), "{said}");
    disturbed.check_complete(60).unwrap();
    assert!(undisturbed.weights().unwrap() == disturbed.weights().unwrap(), "another policy came out");
}

/// What is trained of an adapted policy is small, and PEFT reads it as it lies there.
#[test]
fn the_adapter_of_a_ring_is_in_its_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let ring = ring(&folder).with("learner.ppo.lora.rank=4").with("coordinator.batches=2");
    ring.run().unwrap();
    ring.check_complete(2).unwrap();
    let adapter = ring.output().join("ring/checkpoints/step-00000002/adapter");
    let text = fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&config["peft_type"], &config["r"]), (&"LORA".into(), &4.into()), "{config}");
    let weights = fs::metadata(adapter.join("adapter_model.safetensors")).unwrap().len();
    let policy = fs::metadata(ring.output().join("policy/model.safetensors")).unwrap().len();
    assert!(weights > 0 && weights < policy / 2, "{weights} of {policy} bytes");
}

fn json_lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Held-out prompts are asked every two versions; the best version keeps its checkpoint whatever comes after,
/// and the run ends once two evaluations in a row were not better.
#[test]
fn evaluations_keep_the_best_checkpoint_and_end_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let ring = ring(&folder)
        .with(BATCHES)
        .with("coordinator.eval.every=2")
        .with("coordinator.eval.stop_after=2")
        .with("coordinator.eval.temperature=1.0")
        .with("coordinator.eval.samples=4")
        .with(&format!("coordinator.eval.data.path={}", folder.path().join("data.jsonl").display()))
        // Every response trains: the score rises for long.
        .with("learner.ppo.algorithm=grpo")
        .with("learner.ppo.policy_lr=1e-3");
    let (status, said) = ring.start().unwrap().end().unwrap();
    assert!(status.success(), "{said}");
    assert!(said.contains("its evaluations are not better any more"), "{said}");

    let evals = json_lines(&ring.output().join("ring/evals.jsonl"));
    println!(
        "{}",
        evals.iter().map(|eval| format!("{} {}\n", eval["version"], eval["score_mean"])).collect::<String>()
    );
    let version = |eval: &Value| eval["version"].as_u64().unwrap();
    let versions: Vec<u64> = evals.iter().map(version).collect();
    assert_eq!(versions, (0..evals.len() as u64).map(|number| 2 * number).collect::<Vec<_>>());
    let (last, before) = evals.split_last().unwrap();
    assert!(last["ends_run"] == true && before.iter().all(|eval| eval["ends_run"] == false));
    assert!(version(last) < 60, "it ended early");
    // The best one is two evaluations back: that is when it ended.
    let best = evals.iter().rfind(|eval| eval["is_best"] == true).unwrap();
    assert_eq!(version(best) + 4, version(last));
    let score = |eval: &Value| eval["score_mean"].as_f64().unwrap();
    assert!(evals.iter().all(|eval| score(eval) <= score(best)));
    let checkpoints = ring.output().join("ring/checkpoints");
    let kept: Value = serde_json::from_slice(&fs::read(checkpoints.join("best.json")).unwrap()).unwrap();
    assert_eq!(kept["batch"].as_u64(), Some(version(best)), "the first evaluation was not the best");
    let of_best = checkpoints.join(format!("step-{:08}", version(best)));
    assert!(of_best.join("policy/model.safetensors").is_file(), "{} is gone", of_best.display());
    let trained = u64::try_from(ring.steps().unwrap().len()).unwrap();
    assert!(
        (version(last)..60).contains(&trained),
        "{trained} batches, the last evaluation is of {}",
        version(last)
    );
    ring.check_complete(trained).unwrap();
    assert!(ring.weights().is_ok(), "the stage has its policy");
}

#[test]
fn four_processes_account_for_every_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let ring = ring(&folder).with(BATCHES).with("coordinator.deterministic=false");
    let mut running = ring.start().unwrap();
    let names: Vec<&str> = running.processes.keys().map(String::as_str).collect();
    assert_eq!(names, ["actor-0", "coordinator", "learner", "reward-server-0"]);
    let trains =
        "trains 2 of 4 responses of each prompt (best-worst, select); advantages are whitened over those";
    running.wait_for(|line| line.contains(trains)).unwrap();
    for process in running.processes.values() {
        assert!(Path::new(&format!("/proc/{process}")).exists());
    }
    running.wait_for_batches(4).unwrap();
    let text = metrics_of(&ring, "coordinator");
    let issued = metric(&text, "rlhf_coordinator_responses_issued_total");
    let ended = metric(&text, "rlhf_coordinator_responses_ended_total");
    let in_flight = metric(&text, "rlhf_coordinator_responses_in_flight");
    let failed = text.lines().find(|line| line.contains("outcome=\"failed\"") && !line.ends_with(" 0"));
    assert_eq!(failed, None, "an attempt failed in an undisturbed run:\n{text}");
    assert_eq!(issued, ended + in_flight, "{text}");
    assert_eq!(metric(&text, "rlhf_samples_unaccounted"), 0.0);
    let documented = DocumentedMetrics::read().unwrap();
    for role in ["coordinator", "reward-server-0", "learner", "actor-0"] {
        assert_eq!(documented.undocumented(&metrics_of(&ring, role)), Vec::<String>::new(), "{role}");
    }

    // The page reads what the coordinator writes.
    let page = format!("http://{}/api/runs/0/groups", address(&ring, "coordinator", "metrics"));
    let groups = ureq::get(&page).call().unwrap().body_mut().read_to_string().unwrap();
    let groups: Value = serde_json::from_str(&groups).unwrap();
    let kept: u64 =
        groups["ranks"].as_array().unwrap().iter().map(|rank| rank["kept"].as_u64().unwrap()).sum();
    assert!(groups["groups"].as_u64().unwrap() > 0 && kept > 0, "the filter at work is not shown: {groups}");

    // Ctrl-C drains: a checkpoint is written, and --resume goes on where it was.
    kill(Pid::from_raw(running.id()), Signal::SIGINT).unwrap();
    let (status, said) = running.end().unwrap();
    assert!(status.success() && said.contains("--resume goes on"), "{said}");
    ring.run().unwrap();
    ring.check_complete(60).unwrap();
}

#[test]
fn two_ranks_train_the_same_policy_as_one() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = ring(&first).with("coordinator.batches=1");
    let two = ring(&second).with("coordinator.batches=1").with("processes.learner_ranks=2");
    one.run().unwrap();
    two.run().unwrap();
    let (one, two) = (one.steps().unwrap(), two.steps().unwrap());
    for figure in
        ["policy_loss", "value_loss", "entropy", "approx_kl", "policy_grad_norm", "critic_grad_norm"]
    {
        let (one, two) =
            (one[&1]["metrics"][figure].as_f64().unwrap(), two[&1]["metrics"][figure].as_f64().unwrap());
        assert!((one - two).abs() <= 1e-5 * one.abs().max(1e-3), "{figure}: {one} on one rank, {two} on two");
    }
}

#[test]
fn a_killed_rank_is_named_and_all_ranks_go_on_together() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let of = |folder| ring(folder).with("coordinator.batches=30").with("processes.learner_ranks=2");
    let (undisturbed, disturbed) = (of(&first), of(&second));
    undisturbed.run().unwrap();

    let mut running = disturbed.start().unwrap();
    running.wait_for_batches(10).unwrap();
    for rank in ["learner-rank-0", "learner-rank-1"] {
        let page = format!("http://{}/ready", address(&disturbed, rank, "metrics"));
        assert!(ureq::get(&page).call().is_ok(), "{rank} trains but is not ready");
    }
    sigkill(running.processes["learner-rank-1"]);
    let (status, said) = running.end().unwrap();
    assert!(status.success() && said.contains("1 restart(s)"), "{said}");
    assert!(said.contains("learner-rank-1"), "who died is not said: {said}");
    disturbed.check_complete(30).unwrap();
    assert!(undisturbed.weights().unwrap() == disturbed.weights().unwrap(), "another policy came out");
}

#[test]
fn the_coordinator_comes_back_from_its_journal() {
    let folder = tempfile::tempdir().unwrap();
    let ring = ring(&folder).with(BATCHES);
    let mut running = ring.start().unwrap();
    running.wait_for_batches(10).unwrap();
    sigkill(running.processes["coordinator"]);
    let (status, said) = running.end().unwrap();
    assert!(status.success() && said.contains("1 restart(s)"), "{said}");
    ring.check_complete(60).unwrap();
    let weights = ring.weights().unwrap();

    // Killed after the last checkpoint and before the stage was recorded: nothing is left to do but to say
    // so.
    fs::remove_file(ring.output().join("stages/ring.toml")).unwrap();
    ring.run().unwrap();
    ring.check_complete(60).unwrap();
    assert!(weights == ring.weights().unwrap(), "another policy came out");
}

#[test]
fn a_coordinator_that_hangs_is_replaced_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let ring = ring(&folder).with(BATCHES);
    let mut running = ring.start().unwrap();
    running.wait_for_batches(10).unwrap();
    kill(Pid::from_raw(running.processes["coordinator"]), Signal::SIGSTOP).unwrap();
    let (status, said) = running.end().unwrap();
    assert!(status.success(), "{said}");
    // Nobody else is: they could not be heard of.
    assert!(said.contains("1 restart(s)") && said.contains("not heard of for 30s"), "{said}");
    ring.check_complete(60).unwrap();
}

/// How long each step took, in seconds, by what its line says of when it was trained.
fn gaps(ring: &TinyRing) -> Vec<f64> {
    let times: Vec<f64> =
        ring.steps().unwrap().values().map(|step| step["time"].as_f64().unwrap() / 1e3).collect();
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn a_stopped_actor_costs_the_others_no_more_than_it_takes_to_notice() {
    let timeout = 3.0;
    let folder = tempfile::tempdir().unwrap();
    let ring = ring(&folder)
        .with(BATCHES)
        .with("coordinator.deterministic=false")
        .with(&format!("coordinator.heartbeat_timeout={timeout}s"))
        .with("processes.actors=2");
    let mut running = ring.start().unwrap();
    running.wait_for_batches(10).unwrap();
    let stopped = Pid::from_raw(running.processes["actor-1"]);
    kill(stopped, Signal::SIGSTOP).unwrap();
    // What the learner has sent already is trained. Then it needs the other actor to have new weights.
    running.wait_for_batches(20).unwrap();
    kill(stopped, Signal::SIGCONT).unwrap();
    let (status, said) = running.end().unwrap();
    assert!(status.success(), "{said}");
    ring.check_complete(60).unwrap();
    // The longest gap between two steps is the one in which it was noticed.
    let mut gaps = gaps(&ring);
    gaps.sort_by(f64::total_cmp);
    let (median, longest) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    println!("the longest step took {longest:.2} s, the median {median:.2} s, heartbeat_timeout {timeout} s");
    assert!(longest <= timeout + 1.0 + median, "{gaps:?}");
    let text = ring.log("coordinator").unwrap();
    assert!(text.contains("actor-1"), "nobody said that actor-1 was lost:\n{text}");
}
