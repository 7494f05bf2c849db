//! What the command says about input that cannot be used: exit code 2, the place, and what to do.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tests::{TinyRing, binary};

/// Runs `sluice` and returns its exit code and what it said on stderr.
fn sluice(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(binary("sluice").unwrap()).args(arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn expect_bad_input(arguments: &[&str], expected: &[&str]) {
    let (code, said) = sluice(arguments);
    assert_eq!(code, 2, "{said}");
    for text in expected {
        assert!(said.contains(text), "{said:?} should say {text:?}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    fs::write(&recipe, "name = 'x'\n[coordinator]\nbatch = 3\n").unwrap();
    expect_bad_input(
        &["run", path(&recipe)],
        &["recipe.toml:3: unknown key coordinator.batch; did you mean"],
    );
    fs::write(&recipe, "name = 'x'\n[[stages]]\nname = 's'\n[stages.sft]\nepoch = 3\n").unwrap();
    expect_bad_input(&["check-config", path(&recipe)], &["recipe.toml:", "epoch"]);
    // A key that is right elsewhere, and unlike anything here.
    fs::write(&recipe, "name = 'x'\n[learner]\nlora = {rank = 4}\n").unwrap();
    expect_bad_input(
        &["check-config", path(&recipe)],
        &["recipe.toml:3: unknown key learner.lora; did you mean", "learner.ppo.lora"],
    );
}

#[test]
fn going_on_and_doing_again_are_not_asked_for_at_once() {
    let both = ["run", "recipe.toml", "--resume", "--redo-from", "ring"];
    expect_bad_input(&both, &["--resume", "cannot be used with", "--redo-from"]);
}

#[test]
fn a_file_that_says_what_to_train_can_be_checked_before_it_trains() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    let config = ["--config", path(&file)];
    for (command, twice) in
        [("sft", "model and init: give exactly one"), ("train-rm", ""), ("dpo", "beta is -1")]
    {
        let beta = if command == "dpo" { "beta = -1.0\n" } else { "" };
        let init = if command == "sft" { "[init]\ntokenizer = 'no/tokenizer'\n" } else { "" };
        let text = format!(
            "model = 'no/model'\ndata = 'no/data.jsonl'\noutput = 'out'\n{beta}{init}[training]\nbatch_size = 0\n\
             [optimizer]\nlr = -2.0\n"
        );
        fs::write(&file, text).unwrap();
        let everything = [
            "mine.toml:1: model is \"no/model\": there is no such folder",
            "mine.toml:2: data is \"no/data.jsonl\": there is no such file",
            "training.batch_size is 0",
            "optimizer.lr is -2",
            twice,
        ];
        // Without --check it is not trained either.
        expect_bad_input(&[&[command, "--check"], &config[..]].concat(), &everything);
        expect_bad_input(&[&[command], &config[..]].concat(), &everything);
    }
    // The same in a stage, with its place.
    let recipe = folder.path().join("recipe.toml");
    let stage = "[[stages]]\nname = 's'\n[stages.sft]\nmodel = 'no/model'\ndata = 'no/data.jsonl'\noutput = 'out'\n\
                 [stages.sft.training]\nbatch_size = 0\n";
    fs::write(&recipe, stage).unwrap();
    expect_bad_input(
        &["check-config", path(&recipe)],
        &["recipe.toml:4: stages[0].sft.model", "recipe.toml:8: stages[0].sft.training.batch_size is 0"],
    );
    // What is right is shown as it would be used, and nothing is made.
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    fs::write(folder.path().join("data.jsonl"), "").unwrap();
    let text = format!("model = {model:?}\ndata = {:?}\noutput = 'out'\n", folder.path().join("data.jsonl"));
    fs::write(&file, text).unwrap();
    for command in ["sft", "train-rm", "dpo"] {
        let mut right = Command::new(binary("sluice").unwrap());
        right.args([command, "--check", "--set", "training.epochs=7"]).args(config);
        let output = right.current_dir(folder.path()).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let line =
            shown.lines().find(|line| line.starts_with("epochs = 7 ")).unwrap_or_else(|| panic!("{shown}"));
        assert!(line.contains("--set training.epochs=7"), "{line}");
        assert!(!folder.path().join("out").exists());
    }
}

#[test]
fn everything_that_would_fail_later_is_said_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    let text = "name = 'x'\noutput = 'OUT'\n[coordinator]\ngroup_size = 8\ndata.path = '/nowhere/prompts.jsonl'\n\
        [learner]\npolicy = '/nowhere/policy'\n[learner.ppo]\ngae_lambda = 2.0\n\
        [actor.engine]\nmax_sequences = 4\n[[reward_server.scorers]]\nkind = 'length-penalty'\n\
        free_tokens = 5\nmax_tokens = 5\n";
    let output = folder.path().join("out");
    fs::write(&recipe, text.replace("OUT", path(&output))).unwrap();
    for command in ["run", "check-config"] {
        expect_bad_input(
            &[command, path(&recipe)],
            &[
                "recipe.toml:5: coordinator.data.path is \"/nowhere/prompts.jsonl\": there is no such file",
                "recipe.toml:7: learner.policy is \"/nowhere/policy\": there is no such folder",
                "recipe.toml:9: learner.ppo.gae_lambda is 2",
                "recipe.toml:11: actor.engine.max_sequences is 4, below coordinator.group_size = 8",
                "recipe.toml:14: reward_server.scorers[0].free_tokens is 5, must be below max_tokens",
                "a KL needs a reference",
            ],
        );
    }
    assert!(!output.exists(), "a run that cannot start leaves nothing behind");
    let two_rings =
        "[[stages]]\nname = 'a'\nring.output = 'p'\n[[stages]]\nname = 'b'\nring.output = 'p/q'\n";
    fs::write(&recipe, two_rings).unwrap();
    expect_bad_input(&["check-config", path(&recipe)], &["b writes into p, which a makes"]);
}

#[test]
fn check_config_explains_keys() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    let text = "seed = 7\n[learner.ppo]\nalgorithm = 'grpo'\nppo_epochs = 2\n";
    fs::write(&recipe, text).unwrap();
    let explain = |key: &str| {
        let arguments = ["check-config", path(&recipe), "--explain", key];
        let output = Command::new(binary("sluice").unwrap()).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(explain("coordinator.seed").contains("here: 7 (from seed)"));
    assert!(explain("learner.ppo.kl_coefficient").contains("here: 0.04 (from learner.ppo.algorithm)"));
    let algorithm = explain("learner.ppo.algorithm");
    assert!(algorithm.contains("recipe.toml:3"), "{algorithm}");
    assert!(
        algorithm.contains("loss, advantages and KL: arXiv 2402.03300 (k3 in the loss, β 0.04)"),
        "{algorithm}"
    );
    assert!(algorithm.contains("rates: arXiv 2402.03300, section 4.2: a single update, 1e-6"), "{algorithm}");
    assert!(explain("coordinator.filtration.strategy").contains("\"none\" (from learner.ppo.algorithm)"));
    // What somebody set against the algorithm says what the algorithm would have.
    let epochs = explain("learner.ppo.ppo_epochs");
    assert!(epochs.contains("here: 2 (") && epochs.contains("recipe.toml:4 (grpo: 1)"), "{epochs}");
    expect_bad_input(
        &["check-config", "--explain", "learner.ppo.epochs"],
        &["there is", "learner.ppo.ppo_epochs"],
    );
}

#[test]
fn a_missing_model_folder_and_a_truncated_one_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.jsonl");
    fs::write(&input, "{\"id\": 1, \"tokens\": [1, 2]}\n").unwrap();
    let output = folder.path().join("out.jsonl");
    let files = ["--input", path(&input), "--output", path(&output)];
    let nowhere = [&["logprobs", "--model", "/nowhere/model"][..], &files].concat();
    expect_bad_input(&nowhere, &["/nowhere/model"]);

    let ring = TinyRing::new(folder.path()).unwrap().with("coordinator.batches=1");
    ring.run().unwrap();
    let weights = ring.output().join("policy/model.safetensors");
    // The policy is linked to the checkpoint's: it is replaced, not written.
    let bytes = fs::read(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    let model = ring.output().join("policy");
    for command in ["logprobs", "generate"] {
        let truncated = [&[command, "--model", path(&model)][..], &files].concat();
        expect_bad_input(&truncated, &["model.safetensors"]);
    }
}

#[test]
fn a_broken_line_is_named_by_file_and_number() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap();
    let data = folder.path().join("data.jsonl");
    let broken =
        fs::read_to_string(&data).unwrap().replacen("{\"prompt\": \"3 plus", "{\"prompt: \"3 plus", 1);
    fs::write(&data, broken).unwrap();
    let error = ring.run().unwrap_err().to_string();
    assert!(error.contains("data.jsonl:4"), "{error}");
}

#[test]
fn a_port_in_use_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.jsonl");
    fs::write(&data, "{\"prompt\": \"x\"}\n").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = Command::new(binary("sluice-coordinator").unwrap())
        .args(["--set", &format!("data.path={}", data.display())])
        .args(["--set", &format!("journal={}", folder.path().join("journal").display())])
        .args(["--set", &format!("listen={address}")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&address.to_string()) && said.contains("another process listens there"), "{said}");
}

/// Every key that makes a role listen, at an address that other machines reach.
const DOORS: [(&str, &str, &[&str]); 14] = [
    ("sluice-coordinator", "listen", &["listen=0.0.0.0:0"]),
    ("sluice-coordinator", "service.listen_metrics", &["service.listen_metrics=10.0.0.1:9464"]),
    ("sluice-reward-server", "listen", &["listen=10.0.0.1:0", "coordinator=127.0.0.1:1"]),
    ("sluice-reward-server", "endpoint.listen", &["endpoint.enabled=true", "endpoint.listen=[::]:0"]),
    ("sluice-reward-server", "service.listen_metrics", &["service.listen_metrics=0.0.0.0:0"]),
    ("sluice-actor", "listen_weights", &["listen_weights=10.0.0.1:0"]),
    ("sluice-actor", "serve.listen", &["serve.enabled=true", "serve.listen=0.0.0.0:8000"]),
    ("sluice-actor", "service.listen_metrics", &["service.listen_metrics=0.0.0.0:0"]),
    ("sluice-learner", "listen", &["listen=10.0.0.1:0"]),
    ("sluice-learner", "advertise", &["advertise=learner.cluster"]),
    ("sluice-learner", "rendezvous", &["world_size=2", "rendezvous=10.0.0.1:29500"]),
    ("sluice-learner", "rendezvous", &["world_size=2", "rendezvous=learner-0:29500"]),
    ("sluice-learner", "service.listen_metrics", &["service.listen_metrics=0.0.0.0:0"]),
    // Another rank has no port but that of its metrics.
    (
        "sluice-learner",
        "service.listen_metrics",
        &["rank=1", "world_size=2", "service.listen_metrics=10.0.0.1:0"],
    ),
];

#[test]
fn no_role_opens_a_door_to_strangers_unless_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    // Of a role that was not refused the end would not come.
    let said = |role: &str, settings: &[&str]| {
        let mut command = Command::new("timeout");
        command.arg("60").arg(binary(role).unwrap()).current_dir(folder.path());
        for setting in settings {
            command.args(["--set", setting]);
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (role, key, settings) in DOORS {
        let (code, refused) = said(role, settings);
        assert_eq!(code, Some(2), "{role} {settings:?}: {refused}");
        let line = refused.lines().find(|line| line.contains("which other machines reach"));
        let line = line.unwrap_or_else(|| panic!("{role} {settings:?}: {refused}"));
        assert!(line.contains(&format!("{key} is ")), "{role} {settings:?}: {line}");
        assert!(line.contains("token_file") && line.contains("insecure = true"), "{line}");
        // With any of the three it is another thing that it lacks.
        for admitted in [
            "service.security.token_file=/nowhere/token",
            "service.security.certificates=/nowhere",
            "service.security.insecure=true",
        ] {
            let (_, said) = said(role, &[settings, &[admitted]].concat());
            assert!(!said.contains("which other machines reach"), "{role} {settings:?} {admitted}: {said}");
        }
    }
    // c10d asks nobody, whatever the run asks: it is bound to one address.
    let every = ["world_size=2", "rendezvous=0.0.0.0:29500", "service.security.insecure=true"];
    let (code, refused) = said("sluice-learner", &every);
    assert!(
        code == Some(2) && refused.contains("rendezvous is 0.0.0.0:29500, which is every address"),
        "{refused}"
    );
    let (code, refused) = said("sluice-learner", &["listen=0.0.0.0:0", "service.security.insecure=true"]);
    assert!(code == Some(2) && refused.contains("set advertise"), "{refused}");
}

/// Runs a ring that cannot succeed; what it said beside its exit code.
fn end_of(ring: &TinyRing) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = ring.command().unwrap().stdin(Stdio::null()).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn a_reward_that_always_fails_is_said_with_its_first_detail_and_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let reward = folder.path().join("reward.py");
    let scorers = format!("reward_server.scorers=[{{kind='python', file='{}'}}]", path(&reward));
    let ring = TinyRing::new(folder.path()).unwrap().with(&scorers).with("coordinator.hopeless_timeout=1s");
    // One that fails whatever the response is not begun with.
    fs::write(&reward, "def reward(prompt, response):\n    raise KeyError('gold')\n").unwrap();
    let (code, said) = end_of(&ring);
    assert_eq!(code, Some(2), "{said}");
    let expected = "could not score a response to the first prompt: python: KeyError: 'gold' (reward.py:2)";
    assert!(said.contains("scorers[0].file is") && said.contains(expected), "{said}");
    assert!(!ring.output().exists());

    fs::write(&reward, "def reward(prompt, response):\n    if response:\n        raise KeyError('gold')\n")
        .unwrap();
    let (code, said) = end_of(&ring);
    assert_eq!(code, Some(3), "{said}");
    for expected in
        ["failed at the reward-server (reward_error); the first: ", "'gold'", "0 of 8 batches trained"]
    {
        assert!(said.contains(expected), "{said} should say {expected:?}");
    }
    let log = fs::read_to_string(ring.output().join("ring/logs/reward-server-0.log")).unwrap();
    assert_eq!(log.matches("others of its kind are counted").count(), 1, "{log}");
}

#[test]
fn scores_that_are_all_equal_are_said_and_end_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let reward = folder.path().join("reward.py");
    fs::write(&reward, "def reward(prompt, response):\n    return 0.5\n").unwrap();
    let scorers = format!("reward_server.scorers=[{{kind='python', file='{}'}}]", path(&reward));
    let ring = TinyRing::new(folder.path())
        .unwrap()
        .with(&scorers)
        .with("coordinator.hopeless_groups=16")
        .with("coordinator.hopeless_timeout=1s");
    let (code, said) = end_of(&ring);
    assert_eq!(code, Some(3), "{said}");
    for expected in ["groups can be trained; in ", "all scores carry no signal", "0 of 8 batches trained"] {
        assert!(said.contains(expected), "{said} should say {expected:?}");
    }
    assert!(!said.contains("restart(s)"), "{said}");
}

#[test]
fn training_that_has_diverged_ends_the_run_at_once_with_the_learners_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap().with("learner.ppo.policy_lr=1e30");
    let (code, said) = end_of(&ring);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("learner gave up") && said.contains("the policy has diverged"), "{said}");
    assert!(!said.contains("restart(s)"), "{said}");
    assert!(said.contains("the run was given up: ") && !said.contains("thread is gone"), "{said}");
}

#[test]
fn a_strategy_that_goes_by_outcomes_needs_somebody_who_knows_them() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    let text = "name = 'x'\n[coordinator.filtration]\nstrategy = 'auto'\n[[reward_server.scorers]]\n\
        kind = 'regex'\npattern = 'x'\n";
    let nobody = "strategy is \"auto\", but nothing would say which responses are right";
    fs::write(&recipe, text).unwrap();
    expect_bad_input(&["check-config", path(&recipe)], &[nobody, "yardstick = true"]);
    fs::write(&recipe, format!("{text}yardstick = true\n")).unwrap();
    let (_, said) = sluice(&["check-config", path(&recipe)]);
    assert!(!said.contains(nobody), "the scorer says it: {said}");
}

/// Each role knows its own folders only; the recipe knows both.
#[test]
fn another_tokenizer_than_the_policys_is_named_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let model = |name: &str, second: &str| {
        let model = folder.path().join(name);
        fs::create_dir(&model).unwrap();
        fs::write(model.join("config.json"), "{}").unwrap();
        let tokenizer =
            format!("{{\"model\": {{\"vocab\": {{\"a\": 0, \"{second}\": 1}}}}, \"added_tokens\": []}}");
        fs::write(model.join("tokenizer.json"), tokenizer).unwrap();
        model
    };
    let (policy, same, other) = (model("policy", "b"), model("same", "b"), model("other", "c"));
    let recipe = folder.path().join("recipe.toml");
    let data = folder.path().join("data.jsonl");
    fs::write(&data, "{\"prompt\": \"x\"}\n").unwrap();
    let told = |tokenizer: &Path| {
        let text = format!(
            "name = 'x'\noutput = {:?}\n[coordinator]\ndata.path = {data:?}\n[learner]\npolicy = {policy:?}\n\
             [reward_server]\ntokenizer = {tokenizer:?}\n[[reward_server.scorers]]\nkind = 'regex'\npattern = 'x'\n",
            folder.path().join("out")
        );
        fs::write(&recipe, text).unwrap();
    };
    let named = "has another vocabulary than the policy";
    let k8s = [
        "render",
        "k8s",
        path(&recipe),
        "--image",
        "sluice:x",
        "--volume-claim",
        "v",
        "--output",
        "manifests",
    ];
    let commands: [&[&str]; 3] = [&["check-config", path(&recipe)], &["run", path(&recipe)], &k8s];
    for command in commands {
        told(&other);
        expect_bad_input(command, &[named, "token 1 is \"c\" there and \"b\" here"]);
    }
    told(&same);
    let (_, said) = sluice(&["check-config", path(&recipe)]);
    assert!(!said.contains(named), "the same tokenizer in another folder: {said}");
}
