//! Episodes of several turns in a real ring: a policy, an interpreter in the sandbox, and a learner that
//! trains on what the policy drew.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::{DocumentedMetrics, TinyRing};

fn ring(folder: &tempfile::TempDir) -> TinyRing {
    TinyRing::of_episodes(folder.path()).unwrap()
}

/// The sum of a metric over the series whose labels hold all these parts.
fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    let of_name = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    let chosen = of_name.filter(|line| labels.iter().all(|label| line.contains(label)));
    chosen.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

fn metrics_of(ring: &TinyRing, role: &str) -> Option<String> {
    let file = ring.output().join(format!("ring/{role}.address.json"));
    let addresses: Value = serde_json::from_str(&fs::read_to_string(file).ok()?).ok()?;
    let page = format!("http://{}/metrics", addresses["metrics"].as_str()?);
    ureq::get(&page).call().ok()?.body_mut().read_to_string().ok()
}

#[test]
fn a_run_of_episodes_repeats_itself_bit_for_bit_also_when_an_actor_is_killed() {
    const BATCHES: &str = "coordinator.batches=16";
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (undisturbed, disturbed) = (ring(&first).with(BATCHES), ring(&second).with(BATCHES));
    let mut running = undisturbed.start().unwrap();
    running.wait_for_batches(4).unwrap();
    let actor = metrics_of(&undisturbed, "actor-0").unwrap();
    let (episodes, turns) = (
        metric(&actor, "rlhf_actor_episodes_ended_total", &[]),
        metric(&actor, "rlhf_actor_episode_turns_total", &[]),
    );
    assert!(episodes >= 128.0, "{episodes} episodes in four batches of 32:\n{actor}");
    assert!(turns > 1.2 * episodes, "{turns} turns in {episodes} episodes: the policy does not ask");
    assert!(metric(&actor, "rlhf_actor_observation_tokens_total", &[]) > turns - episodes);
    let reused = metric(&actor, "rlhf_actor_reused_tokens_total", &[]);
    assert!(reused > 10.0 * (turns - episodes), "turns behind the first began with {reused} known tokens");
    let server = metrics_of(&undisturbed, "reward-server-0").unwrap();
    assert!(metric(&server, "rlhf_reward_tool_seconds_count", &["tool=\"python\""]) > 0.0, "{server}");
    let coordinator = metrics_of(&undisturbed, "coordinator").unwrap();
    let issued = metric(&coordinator, "rlhf_coordinator_responses_issued_total", &[]);
    let ended = metric(&coordinator, "rlhf_coordinator_responses_ended_total", &[]);
    let in_flight = metric(&coordinator, "rlhf_coordinator_responses_in_flight", &[]);
    assert_eq!(issued, ended + in_flight, "{coordinator}");
    assert_eq!(metric(&coordinator, "rlhf_samples_unaccounted", &[]), 0.0);
    let failed = metric(&coordinator, "rlhf_coordinator_responses_ended_total", &["outcome=\"failed\""]);
    assert_eq!(failed, 0.0, "an attempt failed in an undisturbed run");
    let documented = DocumentedMetrics::read().unwrap();
    for page in [&actor, &server, &coordinator] {
        assert_eq!(documented.undocumented(page), Vec::<String>::new());
    }
    let (status, said) = running.end().unwrap();
    assert!(status.success(), "{said}");
    assert!(said.contains("several turns "), "{said}");
    undisturbed.check_complete(16).unwrap();
    let steps = undisturbed.steps().unwrap();
    let figure = |step: &Value, name: &str| step[name].as_f64().unwrap();
    assert!(steps.values().any(|step| figure(step, "several_turns") > 0.2), "{steps:?}");
    for step in steps.values() {
        // With at most three turns each that has several has one or two more.
        let (mean, several) = (figure(step, "turns_mean") - 1.0, figure(step, "several_turns"));
        assert!(mean >= several - 1e-9 && mean <= 2.0 * several + 1e-9, "{step}");
    }
    // Of those that people read every turn is there, and what was said to it.
    let samples = fs::read_to_string(undisturbed.output().join("ring/samples.jsonl")).unwrap();
    let samples: Vec<Value> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (asked, at_once): (Vec<&Value>, Vec<&Value>) =
        samples.iter().partition(|sample| sample["turns"].as_u64() > Some(1));
    assert!(!asked.is_empty(), "no sample has several turns");
    for sample in asked {
        // A policy that knows little may write such a block itself.
        let observations = sample["response"].as_str().unwrap().matches("```output").count() as u64;
        assert!(observations + 1 >= sample["turns"].as_u64().unwrap(), "{sample}");
    }
    assert!(at_once.iter().all(|sample| sample["turns"] == 1), "a sample without turns");

    let mut running = disturbed.start().unwrap();
    running.wait_for_batches(5).unwrap();
    kill(Pid::from_raw(running.processes["actor-0"]), Signal::SIGKILL).unwrap();
    let (status, said) = running.end().unwrap();
    assert!(status.success() && said.contains("1 restart(s)"), "{said}");
    disturbed.check_complete(16).unwrap();
    assert!(undisturbed.weights().unwrap() == disturbed.weights().unwrap(), "another policy came out");
}

#[test]
fn a_killed_reward_server_takes_its_episodes_with_it_and_they_are_played_again() {
    const BATCHES: &str = "coordinator.batches=16";
    let folder = tempfile::tempdir().unwrap();
    let ring = ring(&folder).with(BATCHES).with("coordinator.deterministic=false");
    let mut running = ring.start().unwrap();
    running.wait_for_batches(4).unwrap();
    kill(Pid::from_raw(running.processes["reward-server-0"]), Signal::SIGKILL).unwrap();
    let (status, said) = running.end().unwrap();
    assert!(status.success() && said.contains("1 restart(s)"), "{said}");
    ring.check_complete(16).unwrap();
}

/// Begins no episode whose sum is above nine.
const CLASS: &str = r#"
class Sum:
    def reset(self, sum):
        if len(sum) > 1:
            raise RuntimeError("too large a sum")
        self.sum = sum

    def step(self, text):
        if self.sum in text:
            return None, 1.0, True, False, {}
        return "Try again:", -0.1, False, False, {}
"#;

#[test]
fn an_environment_that_cannot_begin_fails_its_attempts_and_its_rewards_train() {
    let folder = tempfile::tempdir().unwrap();
    let ring = ring(&folder).with("coordinator.batches=8");
    let recipe = fs::read_to_string(folder.path().join("recipe.toml")).unwrap();
    let (before, behind) = recipe.split_once("[reward_server.environment]").unwrap();
    let (_, behind) = behind.split_once("\n\n").unwrap();
    let class =
        "[reward_server.environment]\nkind = \"class\"\nfile = \"{recipe}/environment.py\"\nturns = 3\n\n";
    let behind = behind.replace("kind = \"numeric-match\"\nfield = \"sum\"\n", "kind = \"environment\"\n");
    fs::write(folder.path().join("recipe.toml"), [before, class, &behind].concat()).unwrap();
    fs::write(folder.path().join("environment.py"), CLASS).unwrap();

    let mut running = ring.start().unwrap();
    running.wait_for_batches(4).unwrap();
    let page = metrics_of(&ring, "coordinator").unwrap();
    let ended = |labels: &[&str]| metric(&page, "rlhf_coordinator_responses_ended_total", labels);
    assert!(ended(&["outcome=\"failed\"", "reason=\"environment\""]) > 0.0, "{page}");
    assert!(ended(&["outcome=\"trained\""]) > 0.0, "{page}");
    assert_eq!(metric(&page, "rlhf_samples_unaccounted", &[]), 0.0);
    let (status, said) = running.end().unwrap();
    assert!(status.success(), "{said}");
    ring.check_complete(8).unwrap();
    let log = ring.log("coordinator").unwrap();
    assert!(log.contains("too large a sum"), "nobody said why:\n{log}");
}

/// Asks three times, and rewards the last answer.
const ASKS_AGAIN: &str = r#"
class Again:
    def reset(self, sum):
        self.sum = sum
        self.turns = 0

    def step(self, text):
        self.turns += 1
        if self.turns < 3:
            return "Again:\n", 0.0, False, False, {}
        return None, float(self.sum in text), True, False, {}
"#;

/// Shows of earlier turns their last line alone.
const FORGETFUL: &str = r"{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content.split('\n')[-1] }}
{% else %}{{ m.content }}{% endif %}{% endfor %}";

/// A ring of chats whose template rewrites what the policy has written before.
fn forgetful_ring(folder: &tempfile::TempDir) -> TinyRing {
    let ring = ring(folder).with("coordinator.batches=8");
    let recipe = fs::read_to_string(folder.path().join("recipe.toml")).unwrap();
    let recipe = recipe.replacen(
        "vocab_size = 320\n",
        "vocab_size = 320\nchat_template = \"{recipe}/template.jinja\"\n",
        1,
    );
    let (before, behind) = recipe.split_once("[reward_server.environment]").unwrap();
    let (_, behind) = behind.split_once("\n\n").unwrap();
    let class = "[reward_server.environment]\nkind = \"class\"\nfile = \"{recipe}/environment.py\"\n\n";
    fs::write(folder.path().join("recipe.toml"), [before, class, behind].concat()).unwrap();
    fs::write(folder.path().join("template.jinja"), FORGETFUL).unwrap();
    fs::write(folder.path().join("environment.py"), ASKS_AGAIN).unwrap();
    let asked = fs::read_to_string(folder.path().join("data.jsonl")).unwrap();
    let chats: String = asked
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            let messages = [json!({"role": "user", "content": row["prompt"]})];
            format!("{}\n", json!({"messages": messages, "sum": row["sum"]}))
        })
        .collect();
    fs::write(folder.path().join("data.jsonl"), chats).unwrap();
    ring
}

#[test]
fn sequences_that_a_template_has_rewritten_train_and_repeat_themselves_bit_for_bit() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (undisturbed, disturbed) = (forgetful_ring(&first), forgetful_ring(&second));
    let mut running = undisturbed.start().unwrap();
    running.wait_for_batches(3).unwrap();
    let actor = metrics_of(&undisturbed, "actor-0").unwrap();
    let episodes = metric(&actor, "rlhf_actor_episodes_ended_total", &[]);
    let further = metric(&actor, "rlhf_actor_episode_further_sequences_total", &[]);
    assert!(episodes >= 64.0 && further > 0.5 * episodes, "{further} further ones of {episodes}:\n{actor}");
    assert_eq!(metric(&actor, "rlhf_actor_episodes_ended_total", &["end=\"template\""]), 0.0);
    let documented = DocumentedMetrics::read().unwrap();
    assert_eq!(documented.undocumented(&actor), Vec::<String>::new());
    let (status, said) = running.end().unwrap();
    assert!(status.success(), "{said}");
    // Actor and learner say the same of each sequence.
    undisturbed.check_complete(8).unwrap();

    let mut running = disturbed.start().unwrap();
    running.wait_for_batches(3).unwrap();
    kill(Pid::from_raw(running.processes["actor-0"]), Signal::SIGKILL).unwrap();
    let (status, said) = running.end().unwrap();
    assert!(status.success() && said.contains("1 restart(s)"), "{said}");
    disturbed.check_complete(8).unwrap();
    assert!(undisturbed.weights().unwrap() == disturbed.weights().unwrap(), "another policy came out");

    // Ended instead, an episode has no second sequence.
    let third = tempfile::tempdir().unwrap();
    let ended = forgetful_ring(&third).with("reward_server.environment.on_rewrite=end");
    let mut running = ended.start().unwrap();
    running.wait_for_batches(2).unwrap();
    let actor = metrics_of(&ended, "actor-0").unwrap();
    assert!(metric(&actor, "rlhf_actor_episodes_ended_total", &["end=\"template\""]) > 16.0, "{actor}");
    assert_eq!(metric(&actor, "rlhf_actor_episode_further_sequences_total", &[]), 0.0);
    running.stop().unwrap();
    running.end().unwrap();
}
