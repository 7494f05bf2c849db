//! A response that grows turn by turn (`docs/decisions.md`, D24).

use std::num::NonZeroU32;
use std::sync::Arc;

use crate::{FinishReason, Observation, RolloutId, RolloutParts, Span};

/// What the policy drew in one turn.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnTurn {
    /// `[turn]` token ids, at least one.
    pub tokens: Vec<u32>,
    /// `[turn]` their log-probs.
    pub logprobs: Vec<f32>,
    /// `[turn]` probability mass that survived truncation; absent when nothing was truncated.
    pub surviving_mass: Option<Vec<f32>>,
    /// The versions that drew it.
    pub spans: Vec<Span>,
}

/// The turns so far, and what the policy was given between them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Turns {
    response_tokens: Vec<u32>,
    observations: Vec<Observation>,
    /// What was given behind the last turn: part of the response once another turn follows.
    given: Vec<u32>,
    /// What the environment has given since the last observation.
    earned: f32,
    rollout_logprobs: Vec<f32>,
    surviving_mass: Option<Vec<f32>>,
    spans: Vec<Span>,
    /// A further sequence begins with what was given.
    begins: bool,
}

impl Turns {
    /// Tokens drawn so far.
    pub fn tokens(&self) -> usize {
        self.response_tokens.len()
    }

    /// Tokens that the policy was given between its turns.
    pub fn given_tokens(&self) -> usize {
        self.observations.iter().map(|observation| observation.tokens.len()).sum()
    }

    /// The policy is given these before its next turn.
    pub fn give(&mut self, tokens: &[u32]) {
        self.given.extend_from_slice(tokens);
    }

    /// The environment gives this reward for the last turn.
    pub fn earn(&mut self, reward: f32) {
        self.earned += reward;
    }

    /// A further sequence begins with this prompt: of what stands in front the policy sees nothing else.
    pub fn begin_sequence(&mut self, prompt: &[u32]) {
        self.given = prompt.to_vec();
        self.begins = true;
    }

    /// Sequences that have begun behind the first.
    pub fn further_sequences(&self) -> usize {
        self.observations.iter().filter(|observation| observation.begins_sequence).count()
    }

    /// The policy has drawn a turn.
    pub fn draw(&mut self, turn: DrawnTurn) {
        let begins = std::mem::take(&mut self.begins);
        self.observe(begins);
        self.draw_on(turn);
    }

    /// The turns of another sequence with this prompt, of which the policy saw nothing of these.
    pub fn append(&mut self, prompt: &[u32], further: Self) {
        self.given = prompt.to_vec();
        self.observe(true);
        let before = self.tokens();
        for observation in further.observations {
            let after = observation.after.saturating_add(saturated(before));
            self.observations.push(Observation { after, ..observation });
        }
        self.earned = further.earned;
        self.draw_on(DrawnTurn {
            tokens: further.response_tokens,
            logprobs: further.rollout_logprobs,
            surviving_mass: further.surviving_mass,
            spans: further.spans,
        });
    }

    /// What was given stands in front of the next turn, if anything was.
    fn observe(&mut self, begins_sequence: bool) {
        if !self.given.is_empty() {
            let after = saturated(self.tokens());
            let tokens = std::mem::take(&mut self.given);
            let reward = std::mem::take(&mut self.earned);
            self.observations.push(Observation { after, tokens, begins_sequence, reward });
        }
    }

    fn draw_on(&mut self, turn: DrawnTurn) {
        self.append_mass(turn.tokens.len(), turn.surviving_mass);
        self.response_tokens.extend(turn.tokens);
        self.rollout_logprobs.extend(turn.logprobs);
        for span in turn.spans {
            append_span(&mut self.spans, span);
        }
    }

    /// Keeps a mass for each token: 1 in turns of which nothing was truncated.
    fn append_mass(&mut self, drawn: usize, mass: Option<Vec<f32>>) {
        let before = self.response_tokens.len();
        match (&mut self.surviving_mass, mass) {
            (None, None) => {}
            (Some(so_far), mass) => so_far.extend(mass.unwrap_or_else(|| vec![1.0; drawn])),
            (place @ None, Some(mass)) => *place = Some([vec![1.0; before], mass].concat()),
        }
    }

    /// The rollout that they are.
    pub fn into_rollout(
        self,
        id: RolloutId,
        prompt_tokens: Arc<[u32]>,
        finish_reason: FinishReason,
        reward: Option<f32>,
    ) -> RolloutParts {
        RolloutParts {
            id,
            prompt_tokens,
            response_tokens: self.response_tokens,
            observations: self.observations,
            reward,
            rollout_logprobs: self.rollout_logprobs,
            surviving_mass: self.surviving_mass,
            spans: self.spans,
            finish_reason,
            // Its scorers ask the coordinator for them.
            fields: "".into(),
        }
    }
}

fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Adds a span behind others: a version that goes on drawing has one.
fn append_span(spans: &mut Vec<Span>, next: Span) {
    match spans.last_mut() {
        Some(last) if last.version == next.version => {
            last.tokens =
                NonZeroU32::new(last.tokens.get().saturating_add(next.tokens.get())).unwrap_or(last.tokens);
        }
        _ => spans.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::tests::{parts, span};
    use crate::{PromptId, Rollout};

    fn turn(tokens: &[u32], version: u64, mass: Option<f32>) -> DrawnTurn {
        DrawnTurn {
            tokens: tokens.to_vec(),
            logprobs: vec![-0.5; tokens.len()],
            surviving_mass: mass.map(|mass| vec![mass; tokens.len()]),
            spans: vec![span(version, u32::try_from(tokens.len()).unwrap())],
        }
    }

    #[test]
    fn sequences_of_turns_become_one_rollout() {
        let mut turns = Turns::default();
        turns.draw(turn(&[3, 4], 2, None));
        turns.earn(0.5);
        turns.give(&[7]);
        turns.draw(turn(&[5], 3, Some(0.5)));
        turns.earn(-1.0);
        // Nothing is drawn behind it.
        turns.give(&[8, 8]);
        let mut further = Turns::default();
        further.draw(turn(&[6], 2, None));
        further.earn(0.25);
        further.give(&[9]);
        further.draw(turn(&[4], 3, None));
        turns.append(&[1, 7], further);
        assert_eq!((turns.tokens(), turns.given_tokens()), (5, 4));
        let id = parts(1).id;
        assert_eq!(id.prompt, PromptId { epoch: 0, ordinal: 1 });
        let parts = turns.into_rollout(id, vec![1, 2].into(), FinishReason::Stop, Some(1.0));
        assert_eq!(parts.spans, [span(2, 2), span(3, 1), span(2, 1), span(3, 1)]);
        assert_eq!(parts.surviving_mass, Some(vec![1.0, 1.0, 0.5, 1.0, 1.0]));
        let rollout = Rollout::new(parts).unwrap();
        assert_eq!(rollout.sequence(), [1, 2, 3, 4, 7, 5, 1, 7, 6, 9, 4]);
        assert_eq!(rollout.beginnings(), [6]);
        let rewards: Vec<f32> = rollout.observations().iter().map(|given| given.reward).collect();
        assert_eq!(rewards, [0.5, -1.0, 0.25]);
        assert_eq!(rollout.turns(), [2..4, 5..6, 8..9, 10..11]);
    }
}
