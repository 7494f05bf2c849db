//! Terms and fencing (docs/decisions.md, D13) with real processes: whoever wakes when another has taken its
//! place is refused and changes nothing.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::{RoleProcess, Roles, TinyRing, checkpoint};

const BATCHES: u64 = 40;
/// On the stream that it had, or on the next one if the coordinator had lost it before.
const SUPERSEDED: [&str; 2] =
    ["another process has joined under this name", "has joined with a newer process"];

fn signal(process: &RoleProcess, signal: Signal) {
    kill(Pid::from_raw(process.id()), signal).unwrap();
}

/// It is told why it may not take part, and in whose place, says so, and ends with the code of what nobody
/// starts again.
fn assert_refused(mut process: RoleProcess, why: [&str; 2], other: &RoleProcess) {
    let (ours, theirs) = (process.id(), other.id());
    let status = process.end().unwrap();
    let log = process.log();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(why.iter().any(|why| log.contains(why)), "not said: {why:?}\n{log}");
    for id in [ours, theirs] {
        assert!(log.contains(&format!("process {id} on ")), "process {id} is not named:\n{log}");
    }
}

#[test]
fn who_wakes_when_another_process_has_its_name_is_refused_and_changes_nothing() {
    let (peace, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let undisturbed = TinyRing::new(peace.path()).unwrap().with(&format!("coordinator.batches={BATCHES}"));
    undisturbed.run().unwrap();

    let ring = Roles::of(&undisturbed, folder.path(), BATCHES);
    let (mut coordinator, address) = ring.coordinator("journal", "127.0.0.1:0").unwrap();
    let server = ring.member("reward-server-0", "server", &address).unwrap();
    let learner = ring.member("learner", "learner", &address).unwrap();
    let actor = ring.member("actor-0", "actor", &address).unwrap();
    ring.wait_for_batches(4).unwrap();

    // A learner under another name: there is one already.
    let other = ring.member_with("learner", "other", &address, &["member=other"]).unwrap();
    assert_refused(other, ["a run has one learner, and learner is connected"; 2], &learner);

    // A learner under the same name: the newer one trains, and the older one is believed by nobody, though it
    // has a batch in its hands and checkpoints to write.
    signal(&learner, Signal::SIGSTOP);
    let mut newer_learner = ring.member("learner", "newer-learner", &address).unwrap();
    ring.wait_for_batches(12).unwrap();
    signal(&learner, Signal::SIGCONT);
    assert_refused(learner, SUPERSEDED, &newer_learner);

    // An actor with leases in its hands, and a reward server with scores.
    signal(&actor, Signal::SIGSTOP);
    let mut newer_actor = ring.member("actor-0", "newer-actor", &address).unwrap();
    ring.wait_for_batches(20).unwrap();
    signal(&actor, Signal::SIGCONT);
    assert_refused(actor, SUPERSEDED, &newer_actor);
    signal(&server, Signal::SIGSTOP);
    let mut newer_server = ring.member("reward-server-0", "newer-server", &address).unwrap();
    ring.wait_for_batches(28).unwrap();
    signal(&server, Signal::SIGCONT);
    assert_refused(server, SUPERSEDED, &newer_server);

    for process in [&mut coordinator, &mut newer_learner, &mut newer_actor, &mut newer_server] {
        assert!(process.end().unwrap().success(), "{}", process.log());
    }
    assert_eq!(ring.steps(), (1..=BATCHES).collect::<Vec<_>>(), "every batch once");
    let in_peace = checkpoint(&undisturbed.output().join("ring/checkpoints"), BATCHES).unwrap();
    let disturbed = ring.last_checkpoint().unwrap();
    assert!(disturbed.policy == in_peace.policy, "another policy came out");
    assert_eq!(disturbed.places, in_peace.places, "other responses were trained on");
    assert_eq!(disturbed.places.len() as u64, BATCHES, "the checkpoint names what each batch trained on");
}

/// A reward server's configuration in the ring of `like` that reads letters as others, and nothing else.
fn other_tokenizer(like: &TinyRing, folder: &Path) {
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let mut tokenizer: Value =
        serde_json::from_str(&read(&like.output().join("sft/tokenizer.json"))).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (vocabulary["a"].clone(), vocabulary["b"].clone());
    vocabulary.insert("a".to_owned(), b);
    vocabulary.insert("b".to_owned(), a);
    let other = folder.join("tokenizer");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let configs = like.output().join("ring/config");
    let mut config: toml::Table = read(&configs.join("reward-server-0.toml")).parse().unwrap();
    config.remove("reference").unwrap();
    config.insert("tokenizer".to_owned(), other.to_str().unwrap().into());
    fs::write(configs.join("reward-server-9.toml"), config.to_string()).unwrap();
}

#[test]
fn a_reward_server_that_reads_other_tokens_is_refused_whoever_started_it() {
    let (peace, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let like = TinyRing::new(peace.path()).unwrap().with("coordinator.batches=2");
    like.run().unwrap();
    other_tokenizer(&like, folder.path());

    let batches = 6;
    let ring = Roles::of(&like, folder.path(), batches);
    let (mut coordinator, address) = ring.coordinator("journal", "127.0.0.1:0").unwrap();
    // One that is there before anybody knows what the policy reads, and one that comes when the run is on.
    let mut early = ring.member_with("reward-server-9", "early", &address, &["member=early"]).unwrap();
    while !coordinator.log().contains("early") {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let mut members = ["reward-server-0", "learner", "actor-0"]
        .map(|member| ring.member(member, member, &address).unwrap());
    ring.wait_for_batches(1).unwrap();
    let mut late = ring.member_with("reward-server-9", "late", &address, &["member=late"]).unwrap();
    for (name, process) in [("early", &mut early), ("late", &mut late)] {
        let status = process.end().unwrap();
        let log = process.log();
        assert_eq!(status.code(), Some(2), "{log}");
        for part in [
            format!("reward-server {name} at 127.0.0.1:"),
            "has another tokenizer than the policy, which is that of learner learner at ".to_owned(),
            "name the policy's folder in its key `tokenizer`".to_owned(),
        ] {
            assert!(log.contains(&part), "not said: {part}\n{log}");
        }
    }
    for process in std::iter::once(&mut coordinator).chain(&mut members) {
        assert!(process.end().unwrap().success(), "{}", process.log());
    }
    assert!(!coordinator.log().contains("does not say which tokenizer"), "{}", coordinator.log());
    assert_eq!(ring.steps(), (1..=batches).collect::<Vec<_>>());
}

#[test]
fn a_coordinator_of_the_past_is_believed_by_nobody() {
    let (peace, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let like = TinyRing::new(peace.path()).unwrap().with("coordinator.batches=2");
    like.run().unwrap();

    let ring = Roles::of(&like, folder.path(), BATCHES);
    let (first, address) = ring.coordinator("journal", "127.0.0.1:0").unwrap();
    let mut members = ["reward-server-0", "learner", "actor-0"]
        .map(|member| ring.member(member, member, &address).unwrap());
    ring.wait_for_batches(4).unwrap();
    drop(first);
    let (second, _) = ring.coordinator("journal", &address).unwrap();
    ring.wait_for_batches(8).unwrap();
    drop(second);

    // It knows nothing of what happened since it began, and would lease the first prompts again.
    let (past, _) = ring.coordinator("old-journal", &address).unwrap();
    let refuses = || past.log().matches("has taken its place: stop this one").count() >= 3;
    for _ in 0..600 {
        if refuses() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(refuses(), "{}", past.log());
    let log = past.log();
    let (_, since) = log.rsplit_once("coordinator ready").unwrap();
    assert!(!since.contains("joined"), "it served somebody: {since}");
    drop(past);

    let (mut third, _) = ring.coordinator("journal", &address).unwrap();
    for process in std::iter::once(&mut third).chain(&mut members) {
        assert!(process.end().unwrap().success(), "{}", process.log());
    }
    assert_eq!(ring.steps(), (1..=BATCHES).collect::<Vec<_>>(), "every batch once");
}
