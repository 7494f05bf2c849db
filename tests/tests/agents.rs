//! Agents with loops of their own in a real ring: programs in Python that nobody of ours has written a line
//! for, of which one is killed.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::disallowed_types, reason = "real processes take real time")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{DocumentedMetrics, TinyRing, root};

/// Longer than anything here takes.
const STEP_TIMEOUT: Duration = Duration::from_secs(240);

/// The example's agent, which talks about something else at the end of each episode: calls that go on from
/// none before.
const WANDERING: &str = r#"
import sys
import agent

def play(episode):
    reward = agent.play(episode)
    messages = [{"role": "user", "content": "1 plus 1 is?"}]
    agent.post(episode["base_url"] + "/chat/completions", {"messages": messages, "max_tokens": 8})
    return reward

agent.run(sys.argv[1], play)
"#;

/// An agent that is ended with the test.
struct Agent(Child);

impl Agent {
    fn start(program: &Path, server: &str) -> Self {
        let mut command = Command::new("python3");
        command.arg(program).arg(server).env("PYTHONPATH", root().join("examples/agent"));
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its own end; the number of episodes that it has played.
    fn end(mut self) -> u64 {
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.0.stdout.take().unwrap(), &mut said).unwrap();
        assert!(self.0.wait().unwrap().success(), "{said}");
        said.split(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // One that has ended is gone.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn address(ring: &TinyRing, role: &str, port: &str) -> Option<String> {
    let file = ring.output().join(format!("ring/{role}.address.json"));
    let addresses: Value = serde_json::from_str(&fs::read_to_string(file).ok()?).ok()?;
    Some(format!("http://{}", addresses[port].as_str()?))
}

fn page(ring: &TinyRing, role: &str) -> String {
    let page = format!("{}/metrics", address(ring, role, "metrics").unwrap());
    ureq::get(&page).call().unwrap().body_mut().read_to_string().unwrap()
}

/// The sum of a metric over the series whose labels hold all these parts.
fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    let of_name = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    let chosen = of_name.filter(|line| labels.iter().all(|label| line.contains(label)));
    chosen.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Waits until something is found.
fn until<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(since.elapsed() < STEP_TIMEOUT, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn agents_train_a_policy_and_one_that_is_killed_costs_an_attempt_and_no_reward() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::of_agents(folder.path()).unwrap();
    let ring = ring.with("coordinator.batches=6").with("actor.agents.heartbeat_timeout=2s");
    let wandering = folder.path().join("wandering.py");
    fs::write(&wandering, WANDERING).unwrap();
    let mut running = ring.start().unwrap();
    let server = until("an actor for agents", || address(&ring, "actor-0", "openai"));

    // It is killed until it is killed with an episode: between two it has none.
    let example = root().join("examples/agent/agent.py");
    let lost = || metric(&page(&ring, "actor-0"), "rlhf_actor_rollouts_failed_total", &["reason=\"agent\""]);
    let mut kills = 0;
    while lost() == 0.0 {
        let mut agent = Agent::start(&example, &server);
        let so_far = metric(&page(&ring, "actor-0"), "rlhf_actor_agent_calls_total", &[]);
        until("calls", || {
            (metric(&page(&ring, "actor-0"), "rlhf_actor_agent_calls_total", &[]) > so_far).then_some(())
        });
        agent.kill();
        kills += 1;
        let since = Instant::now();
        while lost() == 0.0 && since.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let agents = [Agent::start(&example, &server), Agent::start(&wandering, &server)];
    running.wait_for_batches(4).unwrap();
    let (actor, coordinator) = (page(&ring, "actor-0"), page(&ring, "coordinator"));
    let failed = ["outcome=\"failed\""];
    let ended = |labels: &[&str]| metric(&coordinator, "rlhf_coordinator_responses_ended_total", labels);
    assert_eq!(ended(&failed), 1.0, "one attempt failed, after {kills} kills:\n{coordinator}");
    assert_eq!(ended(&["outcome=\"failed\"", "reason=\"agent\""]), 1.0, "{coordinator}");
    let issued = metric(&coordinator, "rlhf_coordinator_responses_issued_total", &[]);
    let in_flight = metric(&coordinator, "rlhf_coordinator_responses_in_flight", &[]);
    assert_eq!(issued, ended(&[]) + in_flight, "{coordinator}");
    assert_eq!(metric(&coordinator, "rlhf_samples_unaccounted", &[]), 0.0);
    let finished = metric(&actor, "rlhf_actor_rollouts_finished_total", &[]);
    assert_eq!(metric(&actor, "rlhf_actor_episodes_ended_total", &[]), finished);
    let calls = metric(&actor, "rlhf_actor_agent_calls_total", &[]);
    assert!(calls > 1.2 * finished, "{calls} calls in {finished} episodes: the policy does not ask");
    let further = metric(&actor, "rlhf_actor_agent_further_sequences_total", &[]);
    assert!(further > 0.0 && further < finished, "{further} further sequences in {finished} episodes");
    let documented = DocumentedMetrics::read().unwrap();
    for page in [&actor, &coordinator] {
        assert_eq!(documented.undocumented(page), Vec::<String>::new());
    }

    let (status, said) = running.end().unwrap();
    assert!(status.success(), "{said}");
    // Learner and sampler agree on every token of every sequence.
    ring.check_complete(6).unwrap();
    // So does the reference, which is the policy that the first batch was drawn with.
    let kl = ring.steps().unwrap()[&1]["metrics"]["kl_to_ref"].as_f64().unwrap();
    assert!(kl.abs() < 1e-4, "the reference is {kl} away from the policy that it is");
    let played = agents.map(Agent::end);
    assert!(played.iter().all(|played| *played > 0), "{played:?}");
    let rewards = fs::read_to_string(ring.output().join("ring/samples.jsonl")).unwrap();
    for sample in rewards.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let score = sample["score"].as_f64().unwrap();
        assert!(score == 0.0 || score == 1.0, "what the agent said is the score: {sample}");
    }
}
