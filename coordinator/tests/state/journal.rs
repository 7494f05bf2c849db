//! The journal: what was committed is there after a restart, and what cannot be used is refused by name.

use std::num::NonZeroU32;
use std::path::Path;

use coordinator::journal::{Entries, Error, Journal};
use coordinator::state::{Applied, Durable, Fact, Phase, RunPlan, StepRecord, StoreChanges};
use types::link::learner::StepMetrics;
use types::{
    BatchId, FinishReason, PolicyVersion, Rollout, RolloutId, RolloutParts, ScoredRollout, Scores, Span,
    Timestamp, WeightHash,
};

use crate::small_run::plan;
use crate::world::World;

fn scored(fact: &Fact) -> Option<ScoredRollout> {
    let Fact::Scored(summary) = fact else {
        return None;
    };
    let tokens = NonZeroU32::new(summary.tokens).unwrap();
    let rollout = Rollout::new(RolloutParts {
        id: summary.id,
        prompt_tokens: vec![1, 2, 3].into(),
        response_tokens: vec![4; summary.tokens as usize],
        observations: Vec::new(),
        reward: None,
        rollout_logprobs: vec![-0.5; summary.tokens as usize],
        surviving_mass: None,
        spans: vec![Span { version: summary.oldest, tokens }],
        finish_reason: FinishReason::Stop,
        fields: "".into(),
    });
    let scores =
        Scores { score: summary.score, ref_logprobs: Vec::new(), outcome: summary.outcome, turn_weight: 0.0 };
    Some(ScoredRollout::new(rollout.unwrap(), scores).unwrap())
}

/// Commits facts one by one, as the server loop would, and returns the ids whose tokens must be there.
pub(crate) fn record(
    journal: &mut Journal,
    run: &mut Durable,
    facts: &[(Timestamp, Fact)],
) -> Vec<RolloutId> {
    let mut kept = Vec::new();
    for (at, fact) in facts {
        let Applied { store: StoreChanges { keep, forget }, .. } = run.replay(*at, fact.clone());
        let mut entries = Entries { facts: vec![(*at, fact.clone())], ..Entries::default() };
        if !keep.is_empty() && !forget.contains(&keep[0]) {
            entries.keep.extend(scored(fact));
        }
        kept.extend(keep);
        kept.retain(|id| !forget.contains(id));
        entries.forget.extend(forget);
        journal.commit(&entries).unwrap();
    }
    kept
}

/// The first facts of a run; all of them where it has fewer.
pub(crate) fn facts(most: usize) -> Vec<(Timestamp, Fact)> {
    let mut world = World::new(plan(), 21);
    while world.journal.len() < most && world.state.phase() != Phase::Finished {
        world.step();
    }
    world.journal
}

#[test]
fn a_restart_finds_every_fact_and_every_token() {
    let folder = tempfile::tempdir().unwrap();
    let facts = facts(60);
    let (mut journal, mut state) = Journal::open(folder.path(), &plan()).unwrap();
    let kept = record(&mut journal, &mut state, &facts);
    assert!(!kept.is_empty());
    drop(journal);
    let (journal, replayed) = Journal::open(folder.path(), &plan()).unwrap();
    assert_eq!(replayed, state);
    assert_eq!(journal.last_fact(), facts.last().unwrap().0);
    assert_eq!(journal.stored_rollouts().unwrap(), kept.len(), "no more and no fewer tokens than are needed");
    for id in kept {
        assert_eq!(journal.scored(id).unwrap().rollout().id(), id);
    }
}

#[test]
fn a_snapshot_replaces_the_facts() {
    let folder = tempfile::tempdir().unwrap();
    let mut facts = facts(9_000);
    // A long run.
    facts.extend(std::iter::repeat_n(facts[facts.len() - 1].clone(), 4_100));
    let (mut journal, mut state) = Journal::open(folder.path(), &plan()).unwrap();
    record(&mut journal, &mut state, &facts);
    drop(journal);
    let (_, replayed) = Journal::open(folder.path(), &plan()).unwrap();
    assert_eq!(replayed, state);
}

#[test]
fn another_plan_is_refused_and_harmless_changes_are_not() {
    let folder = tempfile::tempdir().unwrap();
    drop(Journal::open(folder.path(), &plan()).unwrap());
    let error = Journal::open(folder.path(), &RunPlan { seed: 99, ..plan() }).unwrap_err();
    assert!(error.to_string().contains("seed was 17 when the run began and is 99 now"), "{error}");
    let error = Journal::open(folder.path(), &RunPlan { shuffle: false, ..plan() }).unwrap_err();
    assert!(error.to_string().contains("shuffle was true when the run began and is false now"), "{error}");
    Journal::open(folder.path(), &RunPlan { batches: 50, ..plan() }).unwrap();
}

#[test]
fn two_coordinators_cannot_share_a_journal() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Journal::open(folder.path(), &plan()).unwrap();
    let error = Journal::open(folder.path(), &plan()).unwrap_err();
    assert!(error.to_string().contains("another coordinator is using it"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().join("journal");
    let error = Journal::open(&path, &plan()).unwrap_err();
    assert!(matches!(&error, Error::Open { path: named, .. } if named == &path), "{error}");
    assert!(Journal::open(Path::new("/proc/journal"), &plan()).is_err());
}

/// A copy of a journal's folder, without the length that its store reserves.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, target) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::write(&target, used(&path)).unwrap();
            let length = std::fs::metadata(&path).unwrap().len();
            std::fs::OpenOptions::new().write(true).open(&target).unwrap().set_len(length).unwrap();
        }
    }
}

/// A file's bytes up to the last one that is not zero.
pub(crate) fn used(path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(end);
    bytes
}

#[test]
fn no_flipped_bit_loses_what_was_durable_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, mut run) = Journal::open(folder.path(), &plan()).unwrap();
    record(&mut journal, &mut run, &facts(6));
    drop(journal);
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "jnl") || path.ends_with("durable-facts") {
            logs.push((path.file_name().unwrap().to_owned(), used(&path)));
        }
    }
    assert!(logs.len() >= 2, "{logs:?}");
    let (mut refused, mut whole) = (0, 0);
    for (name, bytes) in &logs {
        // A bit of every 97th byte.
        for (place, byte) in bytes.iter().enumerate().step_by(97) {
            let damaged = tempfile::tempdir().unwrap();
            copy(folder.path(), damaged.path());
            let file = std::fs::OpenOptions::new().write(true).open(damaged.path().join(name)).unwrap();
            let flipped = byte ^ (1 << (place % 8));
            std::os::unix::fs::FileExt::write_all_at(&file, &[flipped], place as u64).unwrap();
            match Journal::open(damaged.path(), &plan()) {
                Err(_) => refused += 1,
                Ok((_, read)) => {
                    assert_eq!(read, run, "bit {} of byte {place} of {name:?}", place % 8);
                    whole += 1;
                }
            }
        }
    }
    assert!(refused > whole, "{refused} refused, {whole} without effect");
}

#[test]
fn a_fact_that_would_not_be_read_back_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(folder.path(), &plan()).unwrap();
    let metrics = StepMetrics { kl_coefficient: f64::NAN, ..StepMetrics::default() };
    let weights = (PolicyVersion(1), WeightHash([1; 32]));
    let fact = Fact::Trained { batch: BatchId(1), weights, metrics: Box::new(metrics) };
    let entries = Entries { facts: vec![(Timestamp(5), fact)], ..Entries::default() };
    let error = journal.commit(&entries).unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }), "{error}");
    drop(journal);
    Journal::open(folder.path(), &plan()).unwrap();
}

/// Commits facts in one write; what follows a snapshot that is due is then decided by one.
pub(crate) fn commit_at_once(journal: &mut Journal, run: &mut Durable, facts: Vec<(Timestamp, Fact)>) {
    for (at, fact) in &facts {
        let _ = run.replay(*at, fact.clone());
    }
    journal.commit(&Entries { facts, ..Entries::default() }).unwrap();
}

/// So many facts that change nothing.
pub(crate) fn idle(at: Timestamp, facts: usize) -> Vec<(Timestamp, Fact)> {
    vec![(at, Fact::Checkpointed(BatchId(0))); facts]
}

#[test]
fn numbers_of_scorers_of_any_size_leave_a_run_that_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut facts = facts(9_000);
    for (_, fact) in &mut facts {
        if let Fact::Scored(summary) = fact {
            let number = if summary.id.sibling % 2 == 0 { 1e300 } else { -f64::MAX };
            summary.numbers = [("python".to_owned(), number), ("length".to_owned(), 1.0)].into();
            summary.contributions = [("python".to_owned(), number), ("length".to_owned(), 1.0)].into();
        }
    }
    facts.extend(idle(facts[facts.len() - 1].0, 4_100));
    let (mut journal, mut state) = Journal::open(folder.path(), &plan()).unwrap();
    commit_at_once(&mut journal, &mut state, facts);
    drop(journal);
    let (_, replayed) = Journal::open(folder.path(), &plan()).unwrap();
    assert_eq!(replayed, state);
    // What people are shown of it can be read by who shows it.
    let shown: Vec<&StepRecord> = state.history().steps().collect();
    assert!(shown.iter().any(|step| step.scorers.contains_key("python")));
    let read: Vec<StepRecord> = serde_json::from_str(&serde_json::to_string(&shown).unwrap()).unwrap();
    assert!(shown.iter().copied().eq(&read));
}

/// A journal as an older release has left it: a snapshot, then facts behind their checksums.
fn journal_of(lines: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let database = fjall::Database::builder(folder.path()).worker_threads(1).open().unwrap();
    let [head, facts] =
        ["head", "facts"].map(|name| database.keyspace(name, fjall::KeyspaceCreateOptions::default).unwrap());
    let (snapshot, lines) = lines.split_once('\n').unwrap();
    head.insert("snapshot", snapshot).unwrap();
    let end: serde_json::Value = serde_json::from_str(snapshot).unwrap();
    for (sequence, line) in (end["end"].as_u64().unwrap()..).zip(lines.lines()) {
        let (chain, fact) = line.split_at(32);
        let chain = (0..16).map(|at| u8::from_str_radix(&chain[2 * at..2 * at + 2], 16).unwrap());
        let entry: Vec<u8> = chain.chain(fact.bytes()).collect();
        facts.insert(sequence.to_be_bytes(), entry).unwrap();
    }
    folder
}

/// What the release of 2026-11-30 has written, in the middle of a run and at its end. Another release adds
/// its own beside them.
const OF_FORMAT_5: [(&str, u64); 2] =
    [(include_str!("../data/journal-5-facts.txt"), 4), (include_str!("../data/journal-5-snapshot.txt"), 6)];

#[test]
fn a_journal_of_the_release_before_is_read_and_goes_on() {
    for (lines, trained) in OF_FORMAT_5 {
        let folder = journal_of(lines);
        let (mut journal, mut run) = Journal::open(folder.path(), &plan()).unwrap();
        assert_eq!(run.batches().trained(), BatchId(trained));
        assert!(run.history().steps().map(|step| step.batch.0).eq(1..=trained));
        let at = Timestamp(journal.last_fact().0 + 60_000);
        commit_at_once(&mut journal, &mut run, vec![(at, Fact::Started(Box::new(plan())))]);
        commit_at_once(&mut journal, &mut run, idle(at, 4_100));
        drop(journal);
        let (_, replayed) = Journal::open(folder.path(), &plan()).unwrap();
        assert_eq!(replayed, run);
    }
}

#[test]
fn a_journal_of_another_format_is_refused_by_name() {
    let older = OF_FORMAT_5[0].0.replacen("\"format\":5", "\"format\":4", 1);
    let error = Journal::open(journal_of(&older).path(), &plan()).unwrap_err();
    assert!(matches!(error, Error::OtherFormat { format: 4, .. }), "{error}");
    assert!(error.to_string().contains("has format 4, this release reads formats 5 and 6"), "{error}");
}

#[test]
fn fewer_batches_than_are_trained_are_refused() {
    let folder = journal_of(OF_FORMAT_5[0].0);
    let error = Journal::open(folder.path(), &RunPlan { batches: 1, ..plan() }).unwrap_err();
    assert!(error.to_string().contains("batches is 1 now, but 4 are trained already"), "{error}");
}
