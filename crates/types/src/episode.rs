//! Several turns in one rollout (`docs/decisions.md`, D24): between tokens that the policy drew stand tokens
//! that it was given. A response of one turn has none of these.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// Tokens that the policy was given between two of its turns: what a tool returned or a user said, with what
/// the chat template writes around it. They are context: nothing is learnt from them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// How many response tokens stand in front of it: at least one, and not all.
    pub after: u32,
    /// Its token ids, at least one.
    pub tokens: Vec<u32>,
    /// A further sequence begins with it: the policy saw nothing of what stands in front. So do calls of an
    /// agent that do not go on from others.
    #[serde(default)]
    pub begins_sequence: bool,
    /// What the environment gave for the turn in front of it; finite, and part of
    /// [`RolloutParts::reward`](crate::RolloutParts::reward).
    #[serde(default)]
    pub reward: f32,
}

impl Observation {
    /// Tokens that are given behind so many response tokens.
    pub fn new(after: u32, tokens: Vec<u32>) -> Self {
        Self { after, tokens, begins_sequence: false, reward: 0.0 }
    }
}

/// A stretch of the tokens behind a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Segment<'a> {
    /// Drawn by the policy.
    Drawn(&'a [u32]),
    /// Given to it.
    Given(&'a [u32]),
}

/// The response tokens and the observations of a list of tokens of which a mask says which were drawn, as
/// verl's `response_mask`, TRL's `env_mask` and others have it. What was given behind the last drawn token is
/// left out: nothing was drawn from it. `begins` are the places of the tokens with which further sequences
/// begin.
///
/// # Errors
/// A mask of another length, or that begins with a token that was given (which belongs to the prompt); a
/// sequence that begins in the middle of what was drawn or given.
pub fn split_by_mask(
    tokens: &[u32],
    drawn: &[bool],
    begins: &[usize],
) -> Result<(Vec<u32>, Vec<Observation>), Invalid> {
    let wrong = |problem: String| Err(Invalid::new("response_mask", problem));
    if drawn.len() != tokens.len() {
        return wrong(format!("has {} numbers for {} response tokens", drawn.len(), tokens.len()));
    }
    if drawn.first() == Some(&false) {
        return wrong("begins with a token that was given, which belongs to the prompt".to_owned());
    }
    let mut response = Vec::with_capacity(tokens.len());
    let mut observations: Vec<Observation> = Vec::new();
    for (place, (token, is_drawn)) in tokens.iter().zip(drawn).enumerate() {
        if *is_drawn {
            response.push(*token);
            continue;
        }
        let after = u32::try_from(response.len()).unwrap_or(u32::MAX);
        match observations.last_mut() {
            Some(last) if last.after == after => last.tokens.push(*token),
            _ => {
                let begins_sequence = begins.contains(&place);
                observations.push(Observation { begins_sequence, ..Observation::new(after, vec![*token]) });
            }
        }
    }
    let begun = observations.iter().filter(|observation| observation.begins_sequence).count();
    if begun != begins.len() {
        let problem =
            format!("{begins:?} must be places of tokens that were given behind one that was drawn");
        return Err(Invalid::new("sequence_begins", problem));
    }
    observations.retain(|observation| (observation.after as usize) < response.len());
    Ok((response, observations))
}

/// What keeps observations from standing in a response of so many tokens. All of them together have at most
/// `most` tokens.
pub(crate) fn observations_problem(
    observations: &[Observation],
    response_tokens: usize,
    most: usize,
) -> Option<String> {
    let mut given = 0;
    let mut before = 0;
    for Observation { after, tokens, reward, .. } in observations {
        let place = *after as usize;
        if !reward.is_finite() {
            return Some(format!(
                "the reward of the turn behind {before} response tokens is {reward}, must be finite"
            ));
        }
        if tokens.is_empty() {
            return Some(format!("an observation behind {place} response tokens has no token"));
        }
        if place <= before || place >= response_tokens {
            return Some(format!(
                "an observation stands behind {place} of {response_tokens} response tokens and one behind {before}: each \
                 must stand behind a token more than the one before, and in front of a token"
            ));
        }
        before = place;
        given += tokens.len();
    }
    (given > most).then(|| format!("has {given} tokens in observations, must have at most {most}"))
}

/// The turns of a response: its tokens, cut where it has observations; one more than there are observations.
pub(crate) fn turns(
    observations: &[Observation],
    response_tokens: usize,
) -> impl Iterator<Item = Range<usize>> {
    let places = |observation: &Observation| observation.after as usize;
    let begins = std::iter::once(0).chain(observations.iter().map(places));
    let ends = observations.iter().map(places).chain(std::iter::once(response_tokens));
    begins.zip(ends).map(|(begin, end)| begin..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_split_into_what_was_drawn_and_given() {
        let split = |mask: &[u8]| {
            let tokens: Vec<u32> = (0..mask.len() as u32).collect();
            split_by_mask(&tokens, &mask.iter().map(|bit| *bit == 1).collect::<Vec<_>>(), &[]).unwrap()
        };
        let given = |after, tokens: &[u32]| Observation::new(after, tokens.to_vec());
        assert_eq!(split(&[1, 1]), (vec![0, 1], vec![]));
        assert_eq!(split(&[1, 0, 0, 1, 0, 1]), (vec![0, 3, 5], vec![given(1, &[1, 2]), given(2, &[4])]));
        assert_eq!(split(&[1, 0, 1, 0, 0]), (vec![0, 2], vec![given(1, &[1])]));
        assert_eq!(split(&[]), (vec![], vec![]));
        assert!(split_by_mask(&[1, 2], &[true], &[]).is_err() && split_by_mask(&[1], &[false], &[]).is_err());
        let drawn = [true, false, false, true, false, true];
        let (_, observations) = split_by_mask(&[0; 6], &drawn, &[4]).unwrap();
        let begins: Vec<bool> = observations.iter().map(|given| given.begins_sequence).collect();
        assert_eq!(begins, [false, true]);
        for wrong in [&[2][..], &[3], &[4, 4], &[9]] {
            assert!(split_by_mask(&[0; 6], &drawn, wrong).is_err(), "{wrong:?}");
        }
    }
}
