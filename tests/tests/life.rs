//! A run's life under hostile circumstances: two at once, killed, its folders removed, nobody listening.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::TinyRing;
use tokio::time::Instant;

fn output_of(ring: &TinyRing) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = ring.command().unwrap().stdin(Stdio::null()).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

/// Long enough to be disturbed.
fn long_ring(folder: &Path) -> TinyRing {
    TinyRing::new(folder).unwrap().with("coordinator.batches=12")
}

#[test]
fn a_second_run_is_refused_and_the_first_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let ring = long_ring(folder.path());
    let first = ring.start().unwrap();
    let before = fs::read(ring.output().join("lock")).unwrap();
    for _ in 0..2 {
        let (code, said) = output_of(&ring);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("belongs to a run that is under way"), "{said}");
    }
    let again = ring.command().unwrap();
    // `command` resumes, which excludes doing again: the recipe alone is what matters here.
    let arguments: Vec<_> =
        again.get_args().filter(|argument| *argument != "--resume").map(ToOwned::to_owned).collect();
    let redone = std::process::Command::new(again.get_program())
        .args(arguments)
        .args(["--redo-from", "ring"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(redone.status.code(), Some(2), "{}", String::from_utf8_lossy(&redone.stderr));
    assert_eq!(fs::read(ring.output().join("lock")).unwrap(), before);
    let (status, said) = first.end().unwrap();
    assert!(status.success(), "{said}");
    assert_eq!(ring.steps().unwrap().len(), 12);
}

#[test]
fn a_run_that_is_killed_goes_on_at_once_when_it_is_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let ring = long_ring(folder.path());
    let mut first = ring.start().unwrap();
    first.wait_for(|line| line.starts_with("first prompts leased")).unwrap();
    kill(Pid::from_raw(first.id()), Signal::SIGKILL).unwrap();
    // Not a moment is waited: what it has started is still leaving.
    let (code, said) = output_of(&ring);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ring.steps().unwrap().keys().copied().collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    drop(first);
}

#[test]
fn a_run_goes_on_when_nobody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap().with("coordinator.batches=2");
    let mut command = ring.command().unwrap();
    let mut child =
        command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // As `head -1` does.
    let mut said = BufReader::new(child.stderr.take().unwrap());
    said.read_line(&mut String::new()).unwrap();
    drop(said);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(ring.steps().unwrap().len(), 2);
}

#[test]
fn a_start_that_comes_to_nothing_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap().with("coordinator.batches=1");
    // Known only when the reward server starts: a file that can be loaded once, by the check before.
    let reward = folder.path().join("reward.py");
    let loaded = folder.path().join("loaded");
    let import = format!(
        "import os\nif os.path.exists({loaded:?}):\n    import nothing_of_that_name\nopen({loaded:?}, 'w')\n\
         def reward(prompt, response):\n    return 0.0\n"
    );
    fs::write(&reward, import).unwrap();
    let broken =
        ring.clone().with(&format!("reward_server.scorers=[{{kind='python', file='{}'}}]", reward.display()));
    let (code, said) = output_of(&broken);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("nothing_of_that_name"), "{said}");
    ring.run().unwrap();

    // The same without a stage before it: nothing is left at all.
    fs::remove_file(&loaded).unwrap();
    let recipe = folder.path().join("alone.toml");
    let text = fs::read_to_string(folder.path().join("recipe.toml")).unwrap();
    let (_, ring_alone) = text.split_once("[coordinator]\n").unwrap();
    let sft = ring.output().join("sft");
    let ring_alone = ring_alone.replace("{output}/sft", &sft.display().to_string());
    let python = format!("[[reward_server.scorers]]\nkind = 'python'\nfile = '{}'\n", reward.display());
    let output = folder.path().join("runs/alone");
    fs::write(
        &recipe,
        format!("name = 'alone'\noutput = '{}'\n[coordinator]\n{ring_alone}\n{python}", output.display()),
    )
    .unwrap();
    let alone = std::process::Command::new(tests::binary("sluice").unwrap())
        .arg("run")
        .arg(&recipe)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(alone.status.code(), Some(2), "{}", String::from_utf8_lossy(&alone.stderr));
    assert!(!folder.path().join("runs").exists(), "the folders above it are gone too");
}

#[test]
fn a_run_does_the_stages_that_it_is_told_to_and_another_does_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap().with("coordinator.batches=1");
    let run = |until: &str| {
        let mut command = ring.command().unwrap();
        let Output { status, stderr, .. } =
            command.args(["--until", until]).stdin(Stdio::null()).output().unwrap();
        (status.code(), String::from_utf8_lossy(&stderr).into_owned())
    };
    let (code, said) = run("stf");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("there is no stage \"stf\"; the recipe has tokenizer, sft, ring"), "{said}");
    let (code, said) = run("sft");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("[2/3] sft") && !said.contains("is complete"), "{said}");
    assert!(ring.output().join("sft").exists() && !ring.output().join("policy").exists());
    let (code, said) = output_of(&ring);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("[2/3] sft: done before") && said.contains("is complete"), "{said}");
}

#[test]
fn a_drain_before_the_first_checkpoint_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let ring = long_ring(folder.path());
    let first = ring.start().unwrap();
    first.stop().unwrap();
    let (status, said) = first.end().unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("stopped "), "{said}");
    ring.run().unwrap();
    assert_eq!(ring.steps().unwrap().len(), 12);
}

#[test]
fn checkpoints_that_are_removed_under_a_run_end_it_at_once_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let ring = long_ring(folder.path());
    let mut first = ring.start().unwrap();
    first.wait_for(|line| line.starts_with("batch ")).unwrap();
    // All at once, as one that is being written while it is removed would stay.
    fs::rename(ring.output().join("ring/checkpoints"), folder.path().join("removed")).unwrap();
    let (status, said) = first.end().unwrap();
    // Where the last of them is written behind the removal nothing was lost, and the run goes to its end.
    if !status.success() {
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains("restore that checkpoint, or start a new run"), "{said}");
        let (code, again) = output_of(&ring);
        assert!(code == Some(2) && again.contains("restore that checkpoint"), "{again}");
    }
}

#[test]
fn a_finished_run_is_extended_and_what_is_done_again_is_kept_aside() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap();
    let of = |batches: usize| ring.clone().with(&format!("coordinator.batches={batches}"));
    of(2).run().unwrap();
    let times = || -> Vec<u64> {
        ring.steps().unwrap().values().map(|step| step["time"].as_u64().unwrap()).collect()
    };
    let first = times();
    of(3).run().unwrap();
    assert_eq!(times()[..2], first, "what was trained is not trained again");
    assert_eq!(times().len(), 3);

    let recipe = folder.path().join("recipe.toml");
    let redone = std::process::Command::new(tests::binary("sluice").unwrap())
        .arg("run")
        .arg(&recipe)
        .args(["--redo-from", "ring", "--set", "coordinator.batches=1"])
        .args(["--set", &format!("output={}", ring.output().display())])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(redone.status.success(), "{}", String::from_utf8_lossy(&redone.stderr));
    assert_eq!(times().len(), 1);
    let names = fs::read_dir(ring.output()).unwrap().map(|entry| entry.unwrap().file_name());
    let kept: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("ring.until-"))
        .collect();
    let old = ring.output().join(&kept[0]).join("steps.jsonl");
    assert_eq!((kept.len(), fs::read_to_string(old).unwrap().lines().count()), (1, 3));
}

#[test]
fn a_run_that_is_moved_is_known_and_goes_on_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap();
    let of = |batches: usize| ring.clone().with(&format!("coordinator.batches={batches}"));
    of(2).run().unwrap();
    let moved = folder.path().join("moved");
    fs::rename(ring.output(), &moved).unwrap();
    let (code, said) = run_elsewhere(&of(2), &moved);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("done before").count(), 3, "{said}");
    let (code, said) = run_elsewhere(&of(3), &moved);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("changed: learner") && !said.contains("changed: reward"), "{said}");
    let steps = fs::read_to_string(moved.join("ring/steps.jsonl")).unwrap();
    let batches: Vec<u64> = steps
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["batch"].as_u64())
        .collect();
    assert_eq!(batches, [1, 2, 3], "what was trained is not trained again");
    assert!(!ring.output().exists(), "nothing is made at the old place");
}

/// Changes the recipe's text.
fn rewrite(ring: &TinyRing, from: &str, to: &str) {
    let recipe = ring.folder.join("recipe.toml");
    let text = fs::read_to_string(&recipe).unwrap();
    assert!(text.contains(from));
    fs::write(&recipe, text.replace(from, to)).unwrap();
}

#[test]
fn training_that_is_stopped_in_a_stage_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap().with("coordinator.batches=1");
    // Long enough to be stopped in its middle: no checkpoint is due before its end.
    rewrite(&ring, "epochs = 20", "epochs = 100\nsave_every = 0");
    let mut command = ring.command().unwrap();
    let first = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let steps = ring.output().join("sft.training/steps.jsonl");
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(&steps).unwrap_or_default().lines().count() < 3 {
        assert!(Instant::now() < deadline, "no step");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(i32::try_from(first.id()).unwrap()), Signal::SIGTERM).unwrap();
    let ended = first.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(said.contains("keeps: the same command goes on from there"), "{said}");
    let kept = fs::read_to_string(&steps).unwrap();
    let (code, said) = output_of(&ring);
    assert_eq!(code, Some(0), "{said}");
    let now = fs::read_to_string(ring.output().join("sft/steps.jsonl")).unwrap();
    assert!(now.starts_with(&kept), "what was trained is not trained again");
    let numbers: Vec<u64> = now
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64())
        .collect();
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn training_that_diverges_in_a_stage_is_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap();
    rewrite(&ring, "lr = 3e-3", "lr = 1e30\nmax_skipped = 1");
    let (code, said) = output_of(&ring);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("sft"), "{said}");
}

#[test]
fn what_a_resumed_run_is_told_otherwise_is_said_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap();
    ring.clone().with("coordinator.batches=2").run().unwrap();
    let longer = |batches: usize| ring.clone().with(&format!("coordinator.batches={batches}"));
    let (code, said) = output_of(&longer(3).with("learner.ppo.policy_lr=0.00125"));
    assert_eq!(code, Some(0), "{said}");
    let change = "is 0.00125 now: from the next batch on";
    assert!(said.contains("changed: learner.ppo.policy_lr was ") && said.contains(change), "{said}");
    let steps = ring.steps().unwrap();
    assert!(steps[&3]["changes"].to_string().contains(change), "{}", steps[&3]["changes"]);
    assert!(steps[&1].get("changes").is_none() && steps[&2].get("changes").is_none());
    let report = std::process::Command::new(tests::binary("sluice").unwrap())
        .arg("report")
        .arg(ring.output())
        .args(["--output", "-"])
        .output()
        .unwrap();
    let page = String::from_utf8_lossy(&report.stdout);
    assert!(page.contains("after batch 2") && page.contains(change), "{page}");
    // The weights come from the checkpoint: another folder would have no effect.
    let elsewhere = format!("learner.policy={}", ring.output().join("policy").display());
    let (code, said) = output_of(&longer(4).with("learner.ppo.policy_lr=0.00125").with(&elsewhere));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("learner.policy was "), "{said}");
    assert_eq!(ring.steps().unwrap().len(), 3);
}

#[test]
fn weights_that_do_not_change_make_versions_all_the_same_and_are_not_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    for (staleness, deterministic) in [(0, true), (1, false)] {
        let of_its_own = folder.path().join(staleness.to_string());
        fs::create_dir(&of_its_own).unwrap();
        let ring = TinyRing::new(&of_its_own)
            .unwrap()
            .with("learner.ppo.policy_lr=0")
            .with("learner.ppo.critic_lr=0")
            .with(&format!("coordinator.max_staleness={staleness}"))
            .with(&format!("coordinator.deterministic={deterministic}"))
            .with("coordinator.batches=4");
        let (code, said) = output_of(&ring);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(ring.steps().unwrap().len(), 4);
        let log = ring.log("actor-0").unwrap();
        assert!(log.contains("the weights in use are this version's version=v"), "{log}");
        assert_eq!(
            log.matches(" weights in use version=").count(),
            1,
            "only the first came over the wire: {log}"
        );
    }
}

#[test]
fn a_run_some_of_whose_samples_fail_ends_well_and_says_how_many_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let reward = folder.path().join("reward.py");
    let body = "def reward(prompt, response):\n    return float('nan') if sum(map(ord, response)) % 3 == 0 else len(response)\n";
    fs::write(&reward, body).unwrap();
    let scorers = format!("reward_server.scorers=[{{kind='python', file='{}'}}]", reward.display());
    let ring = TinyRing::new(folder.path()).unwrap().with("coordinator.batches=2").with(&scorers);
    let (code, said) = output_of(&ring);
    assert_eq!(code, Some(0), "{said}");
    let (_, end) = said.split_once("2 of 2 batches trained").unwrap_or_else(|| panic!("{said}"));
    assert!(end.lines().next().unwrap().contains("failed"), "{said}");
    assert!(
        end.contains("failed at the reward-server (reward_error); the first: ") && end.contains("finite"),
        "{said}"
    );
}

/// The tiny ring's policy, taught in the first run; then its ring alone.
fn taught(folder: &Path) -> (TinyRing, TinyRing) {
    let ring = TinyRing::new(folder).unwrap().with("coordinator.batches=1");
    ring.run().unwrap();
    let sft = ring.output().join("sft");
    let alone = ring
        .clone()
        .with("stages=[{name='ring', ring={output='{output}/policy'}}]")
        .with(&format!("learner.policy={}", sft.display()))
        .with(&format!("reward_server.reference.model={}", sft.display()))
        .with("coordinator.hopeless_timeout=1s");
    (ring, alone)
}

fn run_elsewhere(ring: &TinyRing, output: &Path) -> (Option<i32>, String) {
    let mut command = ring.command().unwrap();
    command.args(["--set", &format!("output={}", output.display())]).stdin(Stdio::null());
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

fn scorer_at(address: &str) -> String {
    format!(
        "reward_server.scorers=[{{kind='http', url='http://{address}/x', retries=0, breaker_failures=64, \
         breaker_delay='100ms'}}]"
    )
}

#[test]
fn what_can_never_succeed_ends_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (_, alone) = taught(folder.path());
    // Somebody listens there and never answers rightly: failures are slow, and each of them counts.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let unheard = alone.clone().with(&scorer_at(&address));
    let (code, said) = run_elsewhere(&unheard, &folder.path().join("unheard"));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("none was scored") && said.contains(&address), "{said}");
    // Where nobody listens nothing starts.
    let nobody = alone.clone().with(&scorer_at("127.0.0.1:9"));
    let (code, said) = run_elsewhere(&nobody, &folder.path().join("nobody"));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("nobody answers at 127.0.0.1:9"), "{said}");

    // Known before anything starts: no prompt leaves room for a response.
    let long = folder.path().join("long.jsonl");
    let line = format!("{{\"prompt\": \"{}\"}}\n", "1 plus 2 is ".repeat(60));
    fs::write(&long, line.repeat(8)).unwrap();
    let too_long = alone.with(&format!("coordinator.data.path={}", long.display()));
    let (code, said) = run_elsewhere(&too_long, &folder.path().join("long"));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("actor.engine.context_tokens = 64 leaves no room for a response"), "{said}");
    assert!(!folder.path().join("long").exists());
}

/// The longest time in which a run that nobody watches on a terminal says nothing, and what it says.
fn longest_silence(ring: &TinyRing, output: &Path) -> (Duration, String) {
    let mut command = ring.command().unwrap();
    command.args(["--set", &format!("output={}", output.display())]);
    let mut run = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut last, mut longest, mut said) = (Instant::now(), Duration::ZERO, String::new());
    for line in BufReader::new(run.stderr.take().unwrap()).lines() {
        longest = longest.max(last.elapsed());
        last = Instant::now();
        said += &line.unwrap();
        said.push('\n');
    }
    run.wait().unwrap();
    (longest.max(last.elapsed()), said)
}

#[test]
fn a_line_comes_every_half_minute_whatever_a_run_waits_for() {
    /// Longer than half a minute, and less than a whole one.
    const WAIT: &str = "40s";
    let folder = tempfile::tempdir().unwrap();
    let (_, alone) = taught(folder.path());
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let scorer = format!(
        "reward_server.scorers=[{{kind='http', url='http://{}/x', retries=0, timeout='{WAIT}'}}]",
        mute.local_addr().unwrap()
    );
    // Connections are taken and held.
    std::thread::spawn(move || mute.incoming().collect::<Vec<_>>());
    let waits_for_scores = alone.clone().with(&scorer);
    let waits_for_a_program = alone.clone().with(&format!(
        "stages=[{{name='data', command={{run=['sleep', '{WAIT}'], output='{{output}}/data'}}}}]"
    ));
    let reward = folder.path().join("reward.py");
    let slow =
        format!("import time\ntime.sleep({})\ndef reward(prompt, response):\n    return 0.0\n", &WAIT[..2]);
    fs::write(&reward, slow).unwrap();
    let scorer = format!("reward_server.scorers=[{{kind='python', file='{}'}}]", reward.display());
    let waits_for_an_import = alone.with(&scorer);
    let runs = [
        (waits_for_scores, "waits for"),
        (waits_for_a_program, "at work for 30."),
        (waits_for_an_import, "at work for 30."),
    ];
    std::thread::scope(|scope| {
        for (number, (ring, expected)) in runs.into_iter().enumerate() {
            let output = folder.path().join(format!("run-{number}"));
            scope.spawn(move || {
                let (silence, said) = longest_silence(&ring, &output);
                assert!(silence < Duration::from_secs(35), "{silence:?}: {said}");
                assert!(said.contains(expected), "{said}");
            });
        }
    });
}
