//! Responses that people can read: some of each batch, with all that is known about them.
//!
//! Which prompts are followed is decided when they are leased, so that neither short responses nor good ones
//! are preferred. A followed prompt's texts are kept until its group is complete; then its responses are
//! written, of a large group those from the worst to the best in equal steps. Nothing of it is part of the
//! run: what a coordinator followed when it died is forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use types::{PromptId, RolloutId, ScoredRollout, Texts, Timestamp};

use crate::samples_file::SamplesFile;
use crate::state::{EndedResponse, Grant, GroupEnd};

/// Time after which more is written although no batch was trained.
const REFILL_DELAY: Duration = Duration::from_secs(60);
/// Prompts that are followed at a time, for each line of a batch: groups may take longer than batches.
const FOLLOWED_PER_LINE: usize = 4;

/// Chooses, collects and writes.
#[derive(Debug)]
pub(crate) struct Samples {
    file: SamplesFile,
    /// Lines for each batch trained, and each minute without one.
    per_batch: usize,
    /// Lines that may be promised to prompts until then.
    left: usize,
    refilled_at: Timestamp,
    followed: BTreeMap<PromptId, Followed>,
}

/// A prompt whose group is awaited.
#[derive(Debug)]
struct Followed {
    lines: usize,
    texts: BTreeMap<RolloutId, Texts>,
}

/// A line of the file.
#[derive(Serialize)]
struct Line<'a> {
    /// When its group was complete, in milliseconds since 1970.
    time_unix_ms: u64,
    /// The batch that was being filled.
    batch: u64,
    /// The prompt, which siblings have in common: epoch and ordinal.
    prompt_id: String,
    /// The response: the prompt, sibling, attempt.
    id: String,
    /// The version that drew its first token.
    version: u64,
    /// The prompt as the scorers read it.
    prompt: Option<&'a str>,
    response: Option<&'a str>,
    score: f32,
    /// Each scorer's own number.
    scorers: &'a BTreeMap<String, f64>,
    outcome: Option<f32>,
    response_tokens: u32,
    /// `stop` or `length`.
    finish_reason: &'static str,
    /// `trains`, or why not.
    fate: String,
    /// Its weight in the policy loss.
    weight: f32,
}

impl Samples {
    /// Writes to this file, so many lines for each batch.
    pub(crate) fn new(file: SamplesFile, per_batch: usize) -> Self {
        let refilled_at = Timestamp(0);
        Self { file, per_batch, left: per_batch, refilled_at, followed: BTreeMap::new() }
    }

    /// Prompts are leased: some may be followed.
    pub(crate) fn leased(&mut self, now: Timestamp, grant: &Grant) {
        if now.since(self.refilled_at) >= REFILL_DELAY {
            self.refill(now);
        }
        for group in grant.groups.iter().filter(|group| group.prompt.held_out_place().is_none()) {
            let room = self.followed.len() < FOLLOWED_PER_LINE * self.per_batch;
            let lines = group.wanted.len().min(self.left);
            if lines > 0 && room && !self.followed.contains_key(&group.prompt) {
                self.left -= lines;
                self.followed.insert(group.prompt, Followed { lines, texts: BTreeMap::new() });
            }
        }
    }

    /// A response counts.
    pub(crate) fn scored(&mut self, scored: &ScoredRollout) {
        let id = scored.rollout().id();
        if let Some(followed) = self.followed.get_mut(&id.prompt)
            && let Some(texts) = &scored.remarks().texts
        {
            followed.texts.insert(id, texts.clone());
        }
    }

    /// A batch was trained.
    pub(crate) fn trained(&mut self, now: Timestamp) {
        self.refill(now);
    }

    fn refill(&mut self, now: Timestamp) {
        (self.left, self.refilled_at) = (self.per_batch, now);
    }

    /// A group is complete.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn ended(&mut self, now: Timestamp, group: &GroupEnd) -> anyhow::Result<()> {
        let Some(Followed { lines, texts }) = self.followed.remove(&group.prompt) else {
            return Ok(());
        };
        for response in spread(&group.responses, lines) {
            let line = Line::of(now, group, response, texts.get(&response.summary.id));
            self.file.append(serde_json::to_vec(&line)?)?;
        }
        Ok(())
    }
}

impl<'a> Line<'a> {
    fn of(now: Timestamp, group: &GroupEnd, response: &'a EndedResponse, texts: Option<&'a Texts>) -> Self {
        let EndedResponse { summary, weight, ending } = response;
        let fate = ending.map_or_else(|| "trains".to_owned(), |ending| ending.to_string());
        Self {
            time_unix_ms: now.0,
            batch: group.batch.0,
            prompt_id: group.prompt.to_string(),
            id: summary.id.to_string(),
            version: summary.oldest.0,
            prompt: texts.map(Texts::prompt),
            response: texts.map(Texts::response),
            score: summary.score,
            scorers: &summary.numbers,
            outcome: summary.outcome,
            response_tokens: summary.tokens,
            finish_reason: if summary.truncated { "length" } else { "stop" },
            fate,
            weight: *weight,
        }
    }
}

/// So many of some responses: all of few, else from the worst score to the best in equal steps.
fn spread(responses: &[EndedResponse], lines: usize) -> Vec<&EndedResponse> {
    let mut sorted: Vec<&EndedResponse> = responses.iter().collect();
    if lines >= sorted.len() {
        return sorted;
    }
    sorted.sort_by(|one, other| one.summary.score.total_cmp(&other.summary.score));
    let last = sorted.len() - 1;
    // One line alone is the best's.
    let steps = lines.saturating_sub(1).max(1);
    (0..lines).map(|line| sorted[last - line * last / steps]).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;
    use types::{BatchId, Ending, FilterReason, LeaseId, PolicyVersion};

    use super::*;
    use crate::state::{LeasedGroup, ScoreSummary};

    fn id(ordinal: u64, sibling: u16) -> RolloutId {
        RolloutId { prompt: PromptId { epoch: 0, ordinal }, sibling, attempt: 0 }
    }

    fn grant(ordinals: std::ops::Range<u64>, group_size: u16) -> Grant {
        let group = |ordinal| LeasedGroup {
            prompt: id(ordinal, 0).prompt,
            wanted: (0..group_size).map(|sibling| id(ordinal, sibling)).collect(),
        };
        Grant { id: LeaseId(1), groups: ordinals.map(group).collect(), timeout: REFILL_DELAY }
    }

    fn ended(ordinal: u64, scores: &[f32]) -> GroupEnd {
        let best = scores.iter().copied().fold(f32::MIN, f32::max);
        let response = |(sibling, score): (u16, &f32)| EndedResponse {
            summary: ScoreSummary {
                id: id(ordinal, sibling),
                score: *score,
                outcome: None,
                tokens: 7,
                oldest: PolicyVersion(2),
                truncated: *score < 0.0,
                numbers: [("regex".to_owned(), f64::from(*score))].into(),
                contributions: BTreeMap::new(),
                digest: None,
            },
            weight: f32::from(u8::from(*score == best)),
            ending: (*score != best).then_some(Ending::Filtered(FilterReason::Strategy)),
        };
        let responses = (0u16..).zip(scores).map(response).collect();
        GroupEnd { prompt: id(ordinal, 0).prompt, batch: BatchId(3), responses }
    }

    fn samples(folder: &Path, per_batch: usize) -> Samples {
        Samples::new(SamplesFile::open(&folder.join("samples.jsonl"), 1 << 20).unwrap(), per_batch)
    }

    fn lines(folder: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(folder.join("samples.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_says_what_became_of_a_response_and_why() {
        let folder = tempfile::tempdir().unwrap();
        let mut samples = samples(folder.path(), 2);
        samples.leased(Timestamp(5), &grant(0..1, 2));
        samples
            .followed
            .get_mut(&id(0, 0).prompt)
            .unwrap()
            .texts
            .insert(id(0, 0), Texts::new("2 + 2 =", "4"));
        samples.ended(Timestamp(9), &ended(0, &[1.0, -0.5])).unwrap();
        let lines = lines(folder.path());
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["prompt"], &lines[0]["response"]), (&"2 + 2 =".into(), &"4".into()));
        assert_eq!((&lines[0]["prompt_id"], &lines[1]["id"]), (&"e0-p0".into(), &"e0-p0-s1-a0".into()));
        assert_eq!((&lines[0]["fate"], &lines[0]["finish_reason"]), (&"trains".into(), &"stop".into()));
        assert_eq!(lines[1]["fate"], "filtered{strategy}");
        assert_eq!((&lines[1]["finish_reason"], &lines[1]["response"]), (&"length".into(), &Value::Null));
        assert_eq!((&lines[1]["scorers"]["regex"], &lines[1]["batch"]), (&(-0.5).into(), &3.into()));
    }

    #[test]
    fn prompts_are_chosen_when_leased_so_many_lines_a_batch_and_a_minute() {
        let folder = tempfile::tempdir().unwrap();
        let mut samples = samples(folder.path(), 4);
        samples.leased(Timestamp(0), &grant(0..10, 3));
        // The last one first: what is not followed is not written.
        for ordinal in (0..10).rev() {
            samples.ended(Timestamp(1), &ended(ordinal, &[0.0, 0.5, 1.0])).unwrap();
        }
        assert_eq!(lines(folder.path()).len(), 4);
        samples.leased(Timestamp(2), &grant(10..20, 3));
        assert!(samples.followed.is_empty(), "nothing is left until a batch is trained");
        samples.trained(Timestamp(3));
        samples.leased(Timestamp(4), &grant(20..30, 3));
        assert_eq!(samples.followed.len(), 2);
        for minute in 1..100 {
            let at = Timestamp(3) + REFILL_DELAY * minute;
            samples.leased(at, &grant(u64::from(minute) * 100..u64::from(minute) * 100 + 10, 3));
        }
        assert!(samples.followed.len() <= FOLLOWED_PER_LINE * 4, "{}", samples.followed.len());
    }

    #[test]
    fn of_a_large_group_the_best_and_the_worst_are_shown() {
        let group = ended(0, &[0.5, 0.1, 0.9, 0.3, 0.7]);
        let shown = |lines| -> Vec<f32> {
            spread(&group.responses, lines).iter().map(|response| response.summary.score).collect()
        };
        assert_eq!(shown(3), [0.9, 0.5, 0.1]);
        assert_eq!(shown(1), [0.9]);
        assert_eq!(shown(9), [0.5, 0.1, 0.9, 0.3, 0.7], "all, in the order of siblings");
        assert!(spread(&[], 3).is_empty());
    }
}
