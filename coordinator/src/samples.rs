//! Responses that people can read: some of each batch, with all that is known about them.
//!
//! Which prompts are followed is decided when they are leased, so that neither short responses nor good ones
//! are preferred. What is seen of a followed prompt's responses is kept until its group is complete; then
//! they are written, of a large group those from the worst to the best in equal steps. Nothing of it is part
//! of the run: what a coordinator followed when it died is forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use types::{MemberId, PromptId, RolloutId, ScoredRollout, Texts, Timestamp};

use crate::samples_file::SamplesFile;
use crate::state::{EndedResponse, Grant, GroupEnd};

/// Time after which more is written although no batch was trained.
const REFILL_DELAY: Duration = Duration::from_secs(60);
/// Prompts that are followed at a time, for each line of a batch: groups may take longer than batches.
const FOLLOWED_PER_LINE: usize = 4;
/// Log-probs of a response that are written, from its first token on.
const LOGPROBS_PER_LINE: usize = 4096;

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
    /// Of each sibling the newest attempt.
    responses: BTreeMap<RolloutId, Seen>,
}

/// What was seen of a response before its group was complete.
#[derive(Debug, Default)]
struct Seen {
    /// When its prompt was leased, and to whom.
    leased: Option<(Timestamp, MemberId)>,
    /// When its score came, and from whom.
    scored: Option<(Timestamp, MemberId)>,
    texts: Option<Texts>,
    /// Of the tokens that the policy drew, as it drew them.
    logprobs: Vec<f32>,
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
    /// The actor, and when the prompt was leased to it, in milliseconds since 1970.
    actor: Option<&'a str>,
    leased_unix_ms: Option<u64>,
    /// The reward server, and when its score came.
    reward_server: Option<&'a str>,
    scored_unix_ms: Option<u64>,
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
    /// Turns of the policy.
    turns: u32,
    /// Log-probs of the tokens that the policy drew, as it drew them: their mean, the lowest, and each of the
    /// first.
    logprob_mean: Option<f32>,
    logprob_min: Option<f32>,
    logprobs: Vec<f32>,
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

    /// Prompts are leased to an actor: some may be followed.
    pub(crate) fn leased(&mut self, now: Timestamp, actor: &MemberId, grant: &Grant) {
        if now.since(self.refilled_at) >= REFILL_DELAY {
            self.refill(now);
        }
        for group in grant.groups.iter().filter(|group| group.prompt.held_out_place().is_none()) {
            let room = self.followed.len() < FOLLOWED_PER_LINE * self.per_batch;
            let lines = group.wanted.len().min(self.left);
            if lines > 0 && room && !self.followed.contains_key(&group.prompt) {
                self.left -= lines;
                self.followed.insert(group.prompt, Followed { lines, responses: BTreeMap::new() });
            }
            if let Some(followed) = self.followed.get_mut(&group.prompt) {
                for id in &group.wanted {
                    followed.responses.retain(|other, _| other.sibling != id.sibling);
                    let seen = Seen { leased: Some((now, actor.clone())), ..Seen::default() };
                    followed.responses.insert(*id, seen);
                }
            }
        }
    }

    /// A response counts, with the score that a reward server says.
    pub(crate) fn scored(&mut self, now: Timestamp, server: &MemberId, scored: &ScoredRollout) {
        let id = scored.rollout().id();
        if let Some(followed) = self.followed.get_mut(&id.prompt) {
            let seen = followed.responses.entry(id).or_default();
            seen.scored = Some((now, server.clone()));
            seen.texts.clone_from(&scored.remarks().texts);
            seen.logprobs = scored.rollout().rollout_logprobs().to_vec();
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
        let Some(Followed { lines, responses }) = self.followed.remove(&group.prompt) else {
            return Ok(());
        };
        for response in spread(&group.responses, lines) {
            let line = Line::of(now, group, response, responses.get(&response.summary.id));
            self.file.append(serde_json::to_vec(&line)?)?;
        }
        Ok(())
    }
}

impl<'a> Line<'a> {
    fn of(now: Timestamp, group: &GroupEnd, response: &'a EndedResponse, seen: Option<&'a Seen>) -> Self {
        let EndedResponse { summary, weight, ending } = response;
        let fate = ending.map_or_else(|| "trains".to_owned(), |ending| ending.to_string());
        let texts = seen.and_then(|seen| seen.texts.as_ref());
        let leased = seen.and_then(|seen| seen.leased.as_ref());
        let scored = seen.and_then(|seen| seen.scored.as_ref());
        let logprobs = seen.map_or(&[][..], |seen| &seen.logprobs);
        let mean = logprobs.iter().sum::<f32>() / logprobs.len() as f32;
        let lowest = logprobs.iter().copied().reduce(f32::min);
        Self {
            time_unix_ms: now.0,
            batch: group.batch.0,
            prompt_id: group.prompt.to_string(),
            id: summary.id.to_string(),
            actor: leased.map(|(_, actor)| actor.as_str()),
            leased_unix_ms: leased.map(|(at, _)| at.0),
            reward_server: scored.map(|(_, server)| server.as_str()),
            scored_unix_ms: scored.map(|(at, _)| at.0),
            version: summary.oldest.0,
            prompt: texts.map(Texts::prompt),
            response: texts.map(Texts::response),
            score: summary.score,
            scorers: &summary.numbers,
            outcome: summary.outcome,
            response_tokens: summary.tokens,
            turns: summary.turns,
            logprob_mean: lowest.map(|_| in_ten_thousandths(mean)),
            logprob_min: lowest.map(in_ten_thousandths),
            logprobs: logprobs.iter().take(LOGPROBS_PER_LINE).copied().map(in_ten_thousandths).collect(),
            finish_reason: if summary.truncated { "length" } else { "stop" },
            fate,
            weight: *weight,
        }
    }
}

fn in_ten_thousandths(logprob: f32) -> f32 {
    (logprob * 1e4).round() / 1e4
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
    use std::num::NonZeroU32;
    use std::path::Path;

    use serde_json::Value;
    use types::{
        BatchId, Ending, FilterReason, FinishReason, LeaseId, PolicyVersion, Remarks, Rollout, RolloutParts,
        Scores, Span,
    };

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
                turns: 2,
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

    fn actor() -> MemberId {
        "actor-7".parse().unwrap()
    }

    fn scored(id: RolloutId, logprobs: &[f32], texts: Texts) -> ScoredRollout {
        let tokens = NonZeroU32::new(u32::try_from(logprobs.len()).unwrap()).unwrap();
        let rollout = Rollout::new(RolloutParts {
            id,
            prompt_tokens: vec![1].into(),
            response_tokens: vec![5; logprobs.len()],
            observations: Vec::new(),
            reward: None,
            rollout_logprobs: logprobs.to_vec(),
            surviving_mass: None,
            spans: vec![Span { version: PolicyVersion(2), tokens }],
            finish_reason: FinishReason::Stop,
            fields: "".into(),
        });
        let remarks = Remarks { texts: Some(texts), ..Remarks::default() };
        let scores = Scores { score: 1.0, ref_logprobs: Vec::new(), outcome: None, turn_weight: 0.0 };
        ScoredRollout::new(rollout.unwrap(), scores).unwrap().with_remarks(remarks).unwrap()
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
        samples.leased(Timestamp(5), &actor(), &grant(0..1, 2));
        let scored = scored(id(0, 0), &[-0.25, -1.000_04], Texts::new("2 + 2 =", "4"));
        samples.scored(Timestamp(7), &"rewards".parse().unwrap(), &scored);
        samples.ended(Timestamp(9), &ended(0, &[1.0, -0.5])).unwrap();
        let lines = lines(folder.path());
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["prompt"], &lines[0]["response"]), (&"2 + 2 =".into(), &"4".into()));
        assert_eq!((&lines[0]["prompt_id"], &lines[1]["id"]), (&"e0-p0".into(), &"e0-p0-s1-a0".into()));
        assert_eq!((&lines[0]["fate"], &lines[0]["finish_reason"]), (&"trains".into(), &"stop".into()));
        assert_eq!((&lines[1]["fate"], &lines[1]["turns"]), (&"filtered{strategy}".into(), &2.into()));
        assert_eq!((&lines[1]["finish_reason"], &lines[1]["response"]), (&"length".into(), &Value::Null));
        assert_eq!((&lines[1]["scorers"]["regex"], &lines[1]["batch"]), (&(-0.5).into(), &3.into()));
        assert_eq!((&lines[0]["actor"], &lines[0]["leased_unix_ms"]), (&"actor-7".into(), &5.into()));
        assert_eq!((&lines[0]["reward_server"], &lines[0]["scored_unix_ms"]), (&"rewards".into(), &7.into()));
        assert_eq!((&lines[1]["actor"], &lines[1]["scored_unix_ms"]), (&"actor-7".into(), &Value::Null));
        let number = |name: &str| lines[0][name].as_f64().unwrap();
        assert!((number("logprob_mean") + 0.625).abs() < 1e-6 && (number("logprob_min") + 1.0).abs() < 1e-6);
        assert_eq!(lines[0]["logprobs"].to_string(), "[-0.25,-1.0]");
        assert_eq!(
            (&lines[1]["logprob_mean"], &lines[1]["logprobs"]),
            (&Value::Null, &serde_json::json!([]))
        );
    }

    #[test]
    fn of_a_response_that_was_issued_again_the_last_attempt_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let mut samples = samples(folder.path(), 1);
        samples.leased(Timestamp(5), &actor(), &grant(0..1, 1));
        let again = RolloutId { attempt: 1, ..id(0, 0) };
        let groups = vec![LeasedGroup { prompt: again.prompt, wanted: vec![again] }];
        let grant = Grant { id: LeaseId(2), groups, timeout: REFILL_DELAY };
        samples.leased(Timestamp(8), &"actor-9".parse().unwrap(), &grant);
        let responses = &samples.followed[&again.prompt].responses;
        assert_eq!(responses.keys().collect::<Vec<_>>(), [&again]);
        assert_eq!(responses[&again].leased, Some((Timestamp(8), "actor-9".parse().unwrap())));
    }

    #[test]
    fn prompts_are_chosen_when_leased_so_many_lines_a_batch_and_a_minute() {
        let folder = tempfile::tempdir().unwrap();
        let mut samples = samples(folder.path(), 4);
        samples.leased(Timestamp(0), &actor(), &grant(0..10, 3));
        // The last one first: what is not followed is not written.
        for ordinal in (0..10).rev() {
            samples.ended(Timestamp(1), &ended(ordinal, &[0.0, 0.5, 1.0])).unwrap();
        }
        assert_eq!(lines(folder.path()).len(), 4);
        samples.leased(Timestamp(2), &actor(), &grant(10..20, 3));
        assert!(samples.followed.is_empty(), "nothing is left until a batch is trained");
        samples.trained(Timestamp(3));
        samples.leased(Timestamp(4), &actor(), &grant(20..30, 3));
        assert_eq!(samples.followed.len(), 2);
        for minute in 1..100 {
            let at = Timestamp(3) + REFILL_DELAY * minute;
            samples.leased(at, &actor(), &grant(u64::from(minute) * 100..u64::from(minute) * 100 + 10, 3));
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
