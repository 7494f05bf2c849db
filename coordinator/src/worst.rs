//! The responses that scored highest although tests of theirs failed: where a reward is gamed, they show how.
//!
//! A few in memory, without a trace in the journal: after a restart the list begins anew.

use std::collections::BTreeMap;

use serde::Serialize;
use types::{BatchId, PromptContent};

use crate::state::ScoreSummary;

/// Examples that are kept.
const EXAMPLES_LIMIT: usize = 20;
/// Batches for which an example is kept, so that the list is about the policy as it is now.
const EXAMPLE_BATCHES: u64 = 50;
/// Characters of a prompt that are shown.
const PROMPT_CHARS: usize = 2000;

/// A response with failed tests.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    #[serde(skip)]
    digest: Option<u64>,
}

/// The examples, the highest score first.
#[derive(Debug, Default)]
pub(crate) struct Worst(Vec<Example>);

impl Worst {
    /// The examples, the highest score first.
    pub(crate) fn examples(&self) -> &[Example] {
        &self.0
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
        self.0.retain(|example| example.trained.0 + EXAMPLE_BATCHES > trained.0);
        let place = self.0.partition_point(|example| example.score >= summary.score);
        // What many siblings say is shown once.
        let known = self.0.iter().any(|example| summary.digest.is_some() && example.digest == summary.digest);
        if place >= EXAMPLES_LIMIT || known {
            return false;
        }
        let ScoreSummary { id, score, tokens, truncated, digest, .. } = *summary;
        let contributions = summary.contributions.clone();
        let (id, prompt) = (id.to_string(), prompt().and_then(shown));
        let example =
            Example { id, trained, score, outcome, tokens, truncated, contributions, prompt, text, digest };
        self.0.insert(place, example);
        self.0.truncate(EXAMPLES_LIMIT);
        true
    }
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
}
