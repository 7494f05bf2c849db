//! Rollouts: a prompt, one response, its log-probs and the policy versions that drew it.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::episode::{self, Observation, Segment, observations_problem};
use crate::prompt::fields_problem;
use crate::{FailReason, Invalid, PolicyVersion, RolloutId};

/// Longest prompt or response, in tokens; a bound against nonsense on the wire, not a model limit.
pub const MAX_SEQUENCE_TOKENS: usize = 1 << 20;

/// Why a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-sequence token, a stop token or a stop text.
    Stop,
    /// `max_new_tokens` or the model's context: the response is truncated.
    Length,
}

/// Consecutive response tokens drawn by one policy version (`docs/decisions.md`, D5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The version that drew them.
    pub version: PolicyVersion,
    /// How many tokens, at least one.
    pub tokens: NonZeroU32,
}

/// What a [`Rollout`] is made of, not yet checked.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutParts {
    /// Which response this is.
    pub id: RolloutId,
    /// Token ids given to the policy, 1 to [`MAX_SEQUENCE_TOKENS`].
    pub prompt_tokens: Arc<[u32]>,
    /// Token ids drawn, 1 to [`MAX_SEQUENCE_TOKENS`], those of all turns one after the other; the
    /// end-of-sequence token is included when it was drawn.
    pub response_tokens: Vec<u32>,
    /// What the policy was given between its turns, in order; empty for one turn.
    pub observations: Vec<Observation>,
    /// What the environment of an episode says that it is worth, where it says so; finite. Scorers decide
    /// what enters the score.
    pub reward: Option<f32>,
    /// `[response]` log-probs of the drawn tokens under the untruncated distribution at the sampling
    /// temperature: finite, and not above 0 beyond rounding.
    pub rollout_logprobs: Vec<f32>,
    /// `[response]` probability mass that survived top-p/top-k/min-p, in (0, 1]; absent when nothing was
    /// truncated.
    pub surviving_mass: Option<Vec<f32>>,
    /// The versions that drew the tokens, in order; they cover the response exactly, and go back only where a
    /// further sequence begins.
    pub spans: Vec<Span>,
    /// Why the response ended.
    pub finish_reason: FinishReason,
    /// The prompt's fields, for the scorers (see [`crate::Prompt::fields`]); at most
    /// [`crate::MAX_FIELDS_BYTES`]. Empty everywhere but where it is scored.
    pub fields: Arc<str>,
}

/// A prompt, one response, and what the sampler knew.
///
/// Everything that the documentation of [`RolloutParts`] states holds for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout(RolloutParts);

impl Rollout {
    /// A rollout of these parts.
    ///
    /// # Errors
    /// The first part that is out of its bounds or does not fit the others, with the rollout's id.
    pub fn new(parts: RolloutParts) -> Result<Self, Invalid> {
        match problem(&parts) {
            Some(problem) => Err(Invalid::new(format!("rollout {}", parts.id), problem)),
            None => Ok(Self(parts)),
        }
    }

    /// Its parts, to take them or to make another rollout of them.
    pub fn into_parts(self) -> RolloutParts {
        self.0
    }

    /// Which response this is.
    pub fn id(&self) -> RolloutId {
        self.0.id
    }

    /// `[prompt]` token ids given to the policy, at least one.
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.0.prompt_tokens
    }

    /// `[response]` token ids drawn, at least one: those of all turns, without what was given between them.
    pub fn response_tokens(&self) -> &[u32] {
        &self.0.response_tokens
    }

    /// What the policy was given between its turns; empty for one turn.
    pub fn observations(&self) -> &[Observation] {
        &self.0.observations
    }

    /// What the environment of an episode says that it is worth.
    pub fn reward(&self) -> Option<f32> {
        self.0.reward
    }

    /// What stands behind the prompt, in order: a turn, and for each further one an observation and a turn.
    fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        let RolloutParts { response_tokens, observations, .. } = &self.0;
        let given = observations.iter().map(|observation| Some(Segment::Given(&observation.tokens)));
        let turns = episode::turns(observations, response_tokens.len());
        let drawn = turns.map(|turn| Segment::Drawn(&response_tokens[turn]));
        drawn.zip(given.chain([None])).flat_map(|(turn, given)| [Some(turn), given]).flatten()
    }

    /// Prompt, turns and observations in order: what the policy saw, and drew last.
    pub fn sequence(&self) -> Vec<u32> {
        let mut sequence = self.0.prompt_tokens.to_vec();
        for segment in self.segments() {
            let (Segment::Drawn(tokens) | Segment::Given(tokens)) = segment;
            sequence.extend_from_slice(tokens);
        }
        sequence
    }

    /// The places of the turns in the [`sequence`](Self::sequence), in order; the last ends it.
    pub fn turns(&self) -> Vec<Range<usize>> {
        let mut place = self.prompt_tokens().len();
        let mut turns = Vec::with_capacity(1 + self.observations().len());
        for segment in self.segments() {
            let (Segment::Drawn(tokens) | Segment::Given(tokens)) = segment;
            if let Segment::Drawn(_) = segment {
                turns.push(place..place + tokens.len());
            }
            place += tokens.len();
        }
        turns
    }

    /// The places in the [`sequence`](Self::sequence) at which a further sequence begins, of which the policy
    /// saw nothing that stands in front; none where it is one sequence.
    pub fn beginnings(&self) -> Vec<usize> {
        let places = self.turns().into_iter().map(|turn| turn.end);
        let behind = places.zip(self.observations());
        behind.filter(|(_, given)| given.begins_sequence).map(|(place, _)| place).collect()
    }

    /// `[turns]` how many response tokens each turn has.
    pub fn turn_lengths(&self) -> impl Iterator<Item = usize> {
        episode::turns(self.observations(), self.response_tokens().len()).map(|turn| turn.len())
    }

    /// Tokens that the policy was given between its turns.
    pub fn given_tokens(&self) -> usize {
        self.observations().iter().map(|observation| observation.tokens.len()).sum()
    }

    /// `[response]` log-probs of the drawn tokens when they were drawn.
    pub fn rollout_logprobs(&self) -> &[f32] {
        &self.0.rollout_logprobs
    }

    /// `[response]` probability mass that survived truncation; absent when nothing was truncated.
    pub fn surviving_mass(&self) -> Option<&[f32]> {
        self.0.surviving_mass.as_deref()
    }

    /// The versions that drew the response, of each sequence the oldest first; at least one.
    pub fn spans(&self) -> &[Span] {
        &self.0.spans
    }

    /// Why the response ended.
    pub fn finish_reason(&self) -> FinishReason {
        self.0.finish_reason
    }

    /// The prompt's fields, for the scorers.
    pub fn fields(&self) -> &str {
        &self.0.fields
    }

    /// The same with its prompt's fields, which have come from the coordinator.
    ///
    /// # Errors
    /// When they exceed [`crate::MAX_FIELDS_BYTES`].
    pub fn with_fields(self, fields: Arc<str>) -> Result<Self, Invalid> {
        Self::new(RolloutParts { fields, ..self.0 })
    }

    /// The same without the fields: what remains when the scorers have read them.
    #[must_use]
    pub fn without_fields(self) -> Self {
        Self(RolloutParts { fields: "".into(), ..self.0 })
    }

    /// The oldest version that drew a token of the response.
    pub fn oldest_version(&self) -> PolicyVersion {
        self.spans().iter().map(|span| span.version).min().unwrap_or(PolicyVersion(0))
    }
}

fn problem(parts: &RolloutParts) -> Option<String> {
    let tokens = parts.response_tokens.len();
    for (name, len) in [("prompt_tokens", parts.prompt_tokens.len()), ("response_tokens", tokens)] {
        if len == 0 || len > MAX_SEQUENCE_TOKENS {
            return Some(format!("has {len} {name}, must have 1 to {MAX_SEQUENCE_TOKENS}"));
        }
    }
    if let Some(problem) = observations_problem(&parts.observations, tokens, MAX_SEQUENCE_TOKENS) {
        return Some(problem);
    }
    if parts.reward.is_some_and(|reward| !reward.is_finite()) {
        return Some(format!("its environment's reward is {:?}, must be finite", parts.reward));
    }
    if let Some(problem) = logprobs_problem("rollout_logprobs", &parts.rollout_logprobs, tokens) {
        return Some(problem);
    }
    if let Some(mass) = &parts.surviving_mass
        && (mass.len() != tokens || !mass.iter().all(is_mass))
    {
        return Some(format!("surviving_mass must hold {tokens} numbers in (0, 1]"));
    }
    let covered: u64 = parts.spans.iter().map(|span| u64::from(span.tokens.get())).sum();
    if covered != tokens as u64 {
        return Some(format!("its spans cover {covered} of {tokens} response tokens"));
    }
    if goes_back(parts) {
        return Some("its spans go back to an older policy version".to_owned());
    }
    fields_problem(&parts.fields)
}

/// Whether an older version draws on where a newer one has drawn, within one sequence.
fn goes_back(parts: &RolloutParts) -> bool {
    let begins: Vec<u32> =
        parts.observations.iter().filter(|given| given.begins_sequence).map(|given| given.after).collect();
    let mut drawn = 0;
    parts.spans.windows(2).any(|pair| {
        drawn += pair[0].tokens.get();
        pair[1].version < pair[0].version && !begins.contains(&drawn)
    })
}

/// Whether a number is a probability above 0. A little above 1 is the rounding of a sum over the vocabulary.
fn is_mass(number: &f32) -> bool {
    *number > 0.0 && *number <= 1.0 + 1e-3
}

/// Log-probs: one per token, finite, not above zero beyond rounding.
pub(crate) fn logprobs_problem(name: &str, logprobs: &[f32], tokens: usize) -> Option<String> {
    if logprobs.len() != tokens {
        return Some(format!("has {} {name} for {tokens} response tokens", logprobs.len()));
    }
    let at = logprobs.iter().position(|l| !l.is_finite() || *l > 1e-3)?;
    Some(format!("{name}[{at}] is {}, must be finite and at most 0", logprobs[at]))
}

/// An attempt that brought no scored response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutFailure {
    /// The attempt that failed.
    pub id: RolloutId,
    /// The reason as a metric counts it.
    pub reason: FailReason,
    /// What happened, for a person; the receiver of a message cuts it at a few hundred characters.
    pub detail: String,
    /// Response tokens generated before it failed, so that a bias against long responses is visible.
    pub response_tokens: u32,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::PromptId;

    pub(crate) fn span(version: u64, tokens: u32) -> Span {
        Span { version: PolicyVersion(version), tokens: NonZeroU32::new(tokens).unwrap() }
    }

    pub(crate) fn parts(tokens: usize) -> RolloutParts {
        RolloutParts {
            id: RolloutId { prompt: PromptId { epoch: 0, ordinal: 1 }, sibling: 2, attempt: 0 },
            prompt_tokens: vec![1, 2].into(),
            response_tokens: vec![3; tokens],
            observations: Vec::new(),
            reward: None,
            rollout_logprobs: vec![-0.5; tokens],
            surviving_mass: None,
            spans: vec![span(4, u32::try_from(tokens).unwrap())],
            finish_reason: FinishReason::Stop,
            fields: "{}".into(),
        }
    }

    #[test]
    fn a_sound_rollout_passes() {
        let sound = Rollout::new(parts(3)).unwrap();
        assert_eq!(sound.oldest_version(), PolicyVersion(4));
        assert_eq!(sound.clone().into_parts(), parts(3));
        let without = sound.without_fields();
        assert_eq!(without.fields(), "");
        assert_eq!(without.with_fields("{}".into()).unwrap().into_parts(), parts(3));
    }

    fn given(after: u32, tokens: usize) -> Observation {
        Observation::new(after, vec![9; tokens])
    }

    #[test]
    fn a_further_sequence_begins_anew() {
        let begins = |after, tokens| Observation { begins_sequence: true, ..given(after, tokens) };
        let spans = vec![span(5, 2), span(4, 1)];
        let several = RolloutParts { observations: vec![given(1, 2), begins(2, 3)], spans, ..parts(3) };
        let rollout = Rollout::new(several.clone()).unwrap();
        // Prompt of 2, a token, 2 given, a token; then 3 given and a token.
        assert_eq!((rollout.beginnings(), rollout.turns()), (vec![6], vec![2..3, 5..6, 9..10]));
        assert_eq!(rollout.oldest_version(), PolicyVersion(4));
        let one = RolloutParts { observations: vec![given(1, 2), given(2, 3)], ..several };
        let error = Rollout::new(one).unwrap_err();
        assert!(error.problem.contains("older policy version"), "{error}");
        assert_eq!(Rollout::new(parts(3)).unwrap().beginnings(), Vec::<usize>::new());
    }

    #[test]
    fn turns_and_observations_alternate() {
        let one = Rollout::new(parts(3)).unwrap();
        assert_eq!(one.segments().collect::<Vec<_>>(), [Segment::Drawn(&[3, 3, 3])]);
        assert_eq!((one.sequence(), one.given_tokens()), (vec![1, 2, 3, 3, 3], 0));
        assert!(one.turns().into_iter().eq(std::iter::once(2..5)));
        let several = RolloutParts { observations: vec![given(1, 2), given(2, 1)], ..parts(3) };
        let several = Rollout::new(several).unwrap();
        let (drawn, two, single) = (Segment::Drawn(&[3]), Segment::Given(&[9, 9]), Segment::Given(&[9]));
        assert_eq!(several.segments().collect::<Vec<_>>(), [drawn, two, drawn, single, drawn]);
        assert_eq!(several.sequence(), [1, 2, 3, 9, 9, 3, 9, 3]);
        assert_eq!((several.turns(), several.given_tokens()), (vec![2..3, 5..6, 7..8], 3));
        assert!(several.turn_lengths().eq([1, 1, 1]) && one.turn_lengths().eq([3]));
        assert_eq!(several.response_tokens(), one.response_tokens());
    }

    #[test]
    fn each_broken_invariant_is_named() {
        type Break = fn(&mut RolloutParts);
        let cases: [(Break, &str); 16] = [
            (|r| r.reward = Some(f32::NAN), "environment's reward"),
            (|r| r.prompt_tokens = Vec::new().into(), "prompt_tokens"),
            (|r| r.response_tokens.clear(), "response_tokens"),
            (|r| r.rollout_logprobs[1] = f32::NAN, "rollout_logprobs[1]"),
            (|r| r.rollout_logprobs[0] = 0.5, "rollout_logprobs[0]"),
            (|r| r.surviving_mass = Some(vec![0.5, 0.0, 1.0]), "surviving_mass"),
            (|r| r.spans = vec![span(4, 2)], "cover 2 of 3"),
            (|r| r.spans.clear(), "cover 0 of 3"),
            (|r| r.spans = vec![span(4, 2), span(3, 1)], "older policy version"),
            (|r| r.fields = " ".repeat(crate::MAX_FIELDS_BYTES + 1).into(), "fields"),
            (|r| r.observations = vec![given(0, 1)], "behind 0 of 3"),
            (|r| r.observations = vec![given(3, 1)], "behind 3 of 3"),
            (|r| r.observations = vec![given(1, 2), given(1, 2)], "behind 1 of 3"),
            (|r| r.observations = vec![given(2, 0)], "has no token"),
            (
                |r| r.observations = vec![Observation { reward: f32::NAN, ..given(1, 1) }],
                "the reward of the turn",
            ),
            (|r| r.observations = vec![given(1, MAX_SEQUENCE_TOKENS), given(2, 1)], "in observations"),
        ];
        for (break_it, expected) in cases {
            let mut broken = parts(3);
            break_it(&mut broken);
            let error = Rollout::new(broken).unwrap_err();
            assert!(error.problem.contains(expected), "{error} should mention {expected}");
        }
    }

    #[test]
    fn a_span_of_no_tokens_cannot_be_read() {
        let read = serde_json::from_str::<Span>;
        assert_eq!(read(r#"{"version":4,"tokens":2}"#).unwrap(), span(4, 2));
        assert!(read(r#"{"version":4,"tokens":0}"#).is_err());
    }
}
