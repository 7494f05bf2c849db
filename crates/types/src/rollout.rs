//! Rollouts: a prompt, one response, its log-probs and the policy versions that drew it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

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

/// Consecutive response tokens drawn by one policy version (design D5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The version that drew them.
    pub version: PolicyVersion,
    /// How many, at least 1.
    pub tokens: u32,
}

/// A prompt, one response, and what the sampler knew.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Which response this is.
    pub id: RolloutId,
    /// Token ids given to the policy, at least one.
    pub prompt_tokens: Arc<[u32]>,
    /// Token ids drawn, at least one; the end-of-sequence token is included when it was drawn.
    pub response_tokens: Vec<u32>,
    /// `[response]` log-probs of the drawn tokens under the untruncated distribution at the sampling temperature.
    pub rollout_logprobs: Vec<f32>,
    /// `[response]` probability mass that survived top-p/top-k/min-p, in (0, 1]; absent when nothing was truncated.
    pub surviving_mass: Option<Vec<f32>>,
    /// The versions that drew the tokens, in order; they cover the response exactly and never go back.
    pub spans: Vec<Span>,
    /// Why the response ended.
    pub finish_reason: FinishReason,
    /// The prompt's fields, for the scorers (see [`crate::Prompt::fields`]).
    pub fields: Arc<str>,
}

impl Rollout {
    /// Checks every invariant that the field documentation states.
    ///
    /// # Errors
    /// Names the rollout and the field.
    pub fn validated(self) -> Result<Self, Invalid> {
        match self.problem() {
            Some(problem) => Err(Invalid::new(format!("rollout {}", self.id), problem)),
            None => Ok(self),
        }
    }

    fn problem(&self) -> Option<String> {
        let tokens = self.response_tokens.len();
        for (name, len) in [("prompt_tokens", self.prompt_tokens.len()), ("response_tokens", tokens)] {
            if len == 0 || len > MAX_SEQUENCE_TOKENS {
                return Some(format!("has {len} {name}, must have 1 to {MAX_SEQUENCE_TOKENS}"));
            }
        }
        if let Some(problem) = logprobs_problem("rollout_logprobs", &self.rollout_logprobs, tokens) {
            return Some(problem);
        }
        if let Some(mass) = &self.surviving_mass {
            // A little above 1 is the rounding of a sum over the vocabulary.
            let legal = |m: &f32| *m > 0.0 && *m <= 1.0 + 1e-3;
            if mass.len() != tokens || !mass.iter().all(legal) {
                return Some(format!("surviving_mass must hold {tokens} numbers in (0, 1]"));
            }
        }
        let covered: u64 = self.spans.iter().map(|span| u64::from(span.tokens)).sum();
        if covered != tokens as u64 || self.spans.iter().any(|span| span.tokens == 0) {
            return Some(format!("its spans cover {covered} of {tokens} response tokens"));
        }
        if !self.spans.is_sorted_by_key(|span| span.version) {
            return Some("its spans go back to an older policy version".to_owned());
        }
        None
    }

    /// The oldest version that drew a token of the response.
    pub fn oldest_version(&self) -> PolicyVersion {
        self.spans.first().map_or(PolicyVersion(0), |span| span.version)
    }
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
    /// Which attempt.
    pub id: RolloutId,
    /// The closed reason.
    pub reason: FailReason,
    /// What happened, for a person; at most a few hundred bytes.
    pub detail: String,
    /// Response tokens generated before it failed, so that a bias against long responses is visible.
    pub response_tokens: u32,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::PromptId;

    pub(crate) fn rollout(tokens: usize) -> Rollout {
        Rollout {
            id: RolloutId { prompt: PromptId { epoch: 0, ordinal: 1 }, sibling: 2, attempt: 0 },
            prompt_tokens: vec![1, 2].into(),
            response_tokens: vec![3; tokens],
            rollout_logprobs: vec![-0.5; tokens],
            surviving_mass: None,
            spans: vec![Span { version: PolicyVersion(4), tokens: u32::try_from(tokens).unwrap() }],
            finish_reason: FinishReason::Stop,
            fields: "{}".into(),
        }
    }

    #[test]
    fn a_sound_rollout_passes() {
        let sound = rollout(3).validated().unwrap();
        assert_eq!(sound.oldest_version(), PolicyVersion(4));
    }

    #[test]
    fn each_broken_invariant_is_named() {
        type Break = fn(&mut Rollout);
        let cases: [(Break, &str); 8] = [
            (|r| r.prompt_tokens = Vec::new().into(), "prompt_tokens"),
            (|r| r.response_tokens.clear(), "response_tokens"),
            (|r| r.rollout_logprobs[1] = f32::NAN, "rollout_logprobs[1]"),
            (|r| r.rollout_logprobs[0] = 0.5, "rollout_logprobs[0]"),
            (|r| r.surviving_mass = Some(vec![0.5, 0.0, 1.0]), "surviving_mass"),
            (|r| r.spans[0].tokens = 2, "cover 2 of 3"),
            (|r| r.spans.push(Span { version: PolicyVersion(9), tokens: 0 }), "cover 3 of 3"),
            (
                |r| {
                    r.spans[0].tokens = 2;
                    r.spans.push(Span { version: PolicyVersion(3), tokens: 1 });
                },
                "older policy version",
            ),
        ];
        for (break_it, expected) in cases {
            let mut broken = rollout(3);
            break_it(&mut broken);
            let error = broken.validated().unwrap_err();
            assert!(error.problem.contains(expected), "{error} should mention {expected}");
        }
    }
}
