//! The responses that scored highest although tests of theirs failed: where a reward is gamed, they show how.
//!
//! A few, which stand in `worst.json` beside the steps file too: a restart goes on with them, and the page of
//! a run that is over shows them. They are for people: where they cannot be written, the run goes on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use types::{BatchId, PromptContent, RunId};

use crate::metrics;
use crate::state::ScoreSummary;

/// The file, beside the steps file.
const FILE: &str = "worst.json";
/// Examples that are kept.
const EXAMPLES_LIMIT: usize = 20;
/// Batches for which an example is kept, so that the list is about the policy as it is now.
const EXAMPLE_BATCHES: u64 = 50;
/// Characters of a prompt that are shown.
const PROMPT_CHARS: usize = 2000;
/// Most bytes of a file that is read back: what is longer was not written here.
const FILE_LIMIT_BYTES: u64 = 16 << 20;
/// Shortest time between two writes.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// A response with failed tests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Example {
    /// Its id.
    pub(crate) id: String,
    /// Batches that were trained when it was scored.
    pub(crate) trained: BatchId,
    pub(crate) score: f32,
    /// Its outcome, below 1.
    pub(crate) outcome: f32,
    /// Response tokens.
    pub(crate) tokens: u32,
    pub(crate) truncated: bool,
    /// What each scorer added to the score; empty where there is one.
    pub(crate) contributions: BTreeMap<String, f64>,
    /// The prompt, where it is text or a list of messages; cut where it is long.
    pub(crate) prompt: Option<String>,
    /// The response, without its middle where it is long; none where the reward server has no text.
    pub(crate) text: Option<String>,
    /// A hash of its tokens: what many siblings say is shown once.
    digest: Option<u64>,
}

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
struct Written<E> {
    run: RunId,
    examples: E,
}

/// The examples, the highest score first.
#[derive(Debug, Default)]
pub(crate) struct Worst {
    examples: Vec<Example>,
    file: Option<ExamplesFile>,
}

/// Where the examples are written.
#[derive(Debug)]
struct ExamplesFile {
    run: RunId,
    path: PathBuf,
    /// The list has changed since the last write.
    is_due: bool,
    written_at: Option<Instant>,
}

impl Worst {
    /// Those of this run that its last coordinator has left beside the steps file, if there is one. What is
    /// not trained any more, since the run began again from an earlier checkpoint, is not taken up.
    pub(crate) fn of_run(run: RunId, steps_file: Option<&Path>, trained: BatchId) -> Self {
        let Some(path) = steps_file.map(|steps| steps.with_file_name(FILE)) else { return Self::default() };
        let mut examples = match read(&path) {
            Ok(Some(written)) if written.run == run => written.examples,
            Ok(_) => Vec::new(),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the list of the worst responses begins anew");
                Vec::new()
            }
        };
        examples.retain(|example| example.trained <= trained && example.score.is_finite());
        examples.sort_by(|one, other| other.score.total_cmp(&one.score));
        examples.truncate(EXAMPLES_LIMIT);
        Self { examples, file: Some(ExamplesFile { run, path, is_due: false, written_at: None }) }
    }

    /// The examples, the highest score first.
    pub(crate) fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Takes a scored response in, if it is one of the worst; whether the list has changed. `prompt` is
    /// asked for only then.
    pub(crate) fn offer(
        &mut self,
        trained: BatchId,
        summary: &ScoreSummary,
        text: Option<String>,
        prompt: impl FnOnce() -> Option<PromptContent>,
    ) -> bool {
        let Some(outcome) = summary.outcome.filter(|outcome| *outcome < 1.0) else { return false };
        self.examples.retain(|example| example.trained.0 + EXAMPLE_BATCHES > trained.0);
        let place = self.examples.partition_point(|example| example.score >= summary.score);
        // What many siblings say is shown once.
        let mut examples = self.examples.iter();
        let known = examples.any(|example| summary.digest.is_some() && example.digest == summary.digest);
        if place >= EXAMPLES_LIMIT || known {
            return false;
        }
        let ScoreSummary { id, score, tokens, truncated, digest, .. } = *summary;
        let contributions = summary.contributions.clone();
        let (id, prompt) = (id.to_string(), prompt().and_then(shown));
        let example =
            Example { id, trained, score, outcome, tokens, truncated, contributions, prompt, text, digest };
        self.examples.insert(place, example);
        self.examples.truncate(EXAMPLES_LIMIT);
        if let Some(file) = &mut self.file {
            file.is_due = true;
        }
        true
    }

    /// Writes the file where the list has changed, and not again within the same second.
    pub(crate) fn write_now_and_then(&mut self, now: Instant) {
        let rests = |at: Option<Instant>| at.is_some_and(|at| now.duration_since(at) < WRITE_INTERVAL);
        if self.file.as_ref().is_some_and(|file| !rests(file.written_at)) {
            self.write(now);
        }
    }

    /// Writes the file where the list has changed.
    pub(crate) fn write(&mut self, now: Instant) {
        let Some(file) = self.file.as_mut().filter(|file| file.is_due) else { return };
        (file.written_at, file.is_due) = (Some(now), false);
        if let Err(error) = file.replace(&self.examples) {
            metrics::worst_not_written();
            let error = format!("{error:#}");
            tracing::warn!(error, "the worst responses are not written: tried again with the next one");
        }
    }
}

impl ExamplesFile {
    /// Puts the examples in the place of what the file holds, as a whole.
    fn replace(&self, examples: &[Example]) -> anyhow::Result<()> {
        let written = Written { run: self.run.clone(), examples };
        let beside = self.path.with_extension("json.partial");
        let doing = |what: &str, path: &Path| format!("{what} {}", path.display());
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).with_context(|| doing("create", folder))?;
        }
        let mut file = File::create(&beside).with_context(|| doing("create", &beside))?;
        file.write_all(&serde_json::to_vec(&written)?).with_context(|| doing("write", &beside))?;
        drop(file);
        std::fs::rename(&beside, &self.path).with_context(|| doing("replace", &self.path))
    }
}

/// What stands in the file, if it is there.
fn read(path: &Path) -> anyhow::Result<Option<Written<Vec<Example>>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let mut text = Vec::new();
    file.take(FILE_LIMIT_BYTES).read_to_end(&mut text).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).map(Some).with_context(|| format!("{} is no such list", path.display()))
}

fn shown(prompt: PromptContent) -> Option<String> {
    match prompt {
        PromptContent::Text(text) | PromptContent::Messages(text) => {
            Some(text.chars().take(PROMPT_CHARS).collect())
        }
        PromptContent::Tokens(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use types::{PolicyVersion, PromptId, RolloutId};

    use super::*;

    fn summary(ordinal: u64, score: f32, outcome: Option<f32>) -> ScoreSummary {
        ScoreSummary {
            id: RolloutId { prompt: PromptId { epoch: 0, ordinal }, sibling: 0, attempt: 0 },
            score,
            outcome,
            tokens: 3,
            oldest: PolicyVersion(0),
            truncated: false,
            turns: 1,
            digest: Some(ordinal),
            numbers: BTreeMap::new(),
            contributions: BTreeMap::new(),
        }
    }

    fn offer(worst: &mut Worst, trained: u64, summary: &ScoreSummary) -> bool {
        let prompt = || Some(PromptContent::Text("p".repeat(PROMPT_CHARS + 1)));
        worst.offer(BatchId(trained), summary, Some("text".to_owned()), prompt)
    }

    #[test]
    fn the_highest_scores_with_failed_tests_are_kept_and_no_more() {
        let mut worst = Worst::default();
        for ordinal in 0..1000 {
            offer(&mut worst, 1, &summary(ordinal, (ordinal % 100) as f32, Some(0.5)));
        }
        assert_eq!(worst.examples().len(), EXAMPLES_LIMIT);
        assert!(worst.examples().is_sorted_by(|one, other| one.score >= other.score));
        assert_eq!(worst.examples()[0].score, 99.0);
        assert_eq!(worst.examples()[0].prompt.as_ref().unwrap().len(), PROMPT_CHARS);
        assert!(!offer(&mut worst, 1, &summary(2000, 1.0, Some(0.0))), "lower than all that are kept");
    }

    #[test]
    fn what_passes_what_is_not_judged_and_what_is_said_twice_is_no_example() {
        let mut worst = Worst::default();
        assert!(!offer(&mut worst, 1, &summary(1, 9.0, Some(1.0))));
        assert!(!offer(&mut worst, 1, &summary(1, 9.0, None)));
        assert!(offer(&mut worst, 1, &summary(1, 9.0, Some(0.0))));
        assert!(!offer(&mut worst, 1, &summary(1, 9.0, Some(0.0))));
        assert!(offer(&mut worst, EXAMPLE_BATCHES + 1, &summary(2, 1.0, Some(0.0))));
        assert_eq!(worst.examples().len(), 1, "an old example has left");
    }

    fn run() -> RunId {
        "this".parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_goes_on_with_the_examples_of_its_run() {
        let folder = tempfile::tempdir().unwrap();
        let steps = folder.path().join("ring/steps.jsonl");
        let file = folder.path().join("ring/worst.json");
        let mut worst = Worst::of_run(run(), Some(&steps), BatchId(0));
        worst.write(Instant::now());
        assert!(!file.exists(), "nothing is written before there is an example");
        for ordinal in 0..30 {
            offer(&mut worst, 3, &summary(ordinal, ordinal as f32, Some(0.5)));
        }
        worst.write_now_and_then(Instant::now());
        let text = std::fs::read_to_string(&file).unwrap();
        offer(&mut worst, 4, &summary(99, 99.5, Some(0.5)));
        worst.write_now_and_then(Instant::now());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "not twice in a second");
        tokio::time::advance(WRITE_INTERVAL).await;
        worst.write_now_and_then(Instant::now());
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no partial file is left");

        let mut again = Worst::of_run(run(), Some(&steps), BatchId(4));
        assert_eq!(again.examples(), worst.examples());
        assert_eq!(again.examples()[0].score, 99.5);
        assert!(!offer(&mut again, 4, &summary(29, 29.0, Some(0.5))), "siblings that say the same are known");
        let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
        again.write(Instant::now());
        assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), modified, "nothing has changed");
        let earlier = Worst::of_run(run(), Some(&steps), BatchId(3));
        assert_eq!(earlier.examples()[0].score, 29.0, "the run began again before the other");
    }

    #[tokio::test]
    async fn what_is_another_runs_or_spoilt_is_not_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let steps = folder.path().join("steps.jsonl");
        let mut worst = Worst::of_run(run(), Some(&steps), BatchId(0));
        offer(&mut worst, 0, &summary(1, 1.0, Some(0.5)));
        worst.write(Instant::now());
        assert_eq!(Worst::of_run(run(), Some(&steps), BatchId(0)).examples().len(), 1);
        let other = Worst::of_run("other".parse().unwrap(), Some(&steps), BatchId(0));
        assert!(other.examples().is_empty());
        for spoilt in ["", "[]", "{\"run\": \"this\", \"examples\": [{}]}", "\u{0}"] {
            std::fs::write(folder.path().join("worst.json"), spoilt).unwrap();
            assert!(Worst::of_run(run(), Some(&steps), BatchId(0)).examples().is_empty(), "{spoilt:?}");
        }
        // Where it cannot be written, the list is kept all the same.
        std::fs::remove_file(folder.path().join("worst.json")).unwrap();
        std::fs::create_dir_all(folder.path().join("worst.json/x")).unwrap();
        let mut worst = Worst::of_run(run(), Some(&steps), BatchId(0));
        offer(&mut worst, 0, &summary(1, 1.0, Some(0.5)));
        worst.write(Instant::now());
        assert_eq!(worst.examples().len(), 1);
    }
}
