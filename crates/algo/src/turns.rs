//! Responses of several turns: where the rewards of turns stand, and turns as the steps of an episode.
//!
//! To an agent a turn is one action: what it writes before the environment answers. Advantages of turns are
//! those of a decision process whose steps are turns (turn-level credit assignment: Zeng et al., arXiv
//! 2505.11821; turns as the steps of GAE: Turn-PPO, arXiv 2512.17008), given to each of their tokens.

use crate::advantages::broadcast;
use crate::error::{Error, require};
use crate::gae::{Advantages, Discount, Gae, gae, returns_to_go};
use crate::responses::Responses;
use crate::rewards::response_returns;

/// How responses divide into turns.
#[derive(Debug, Clone, Copy)]
pub struct Turns<'a> {
    tokens: Responses<'a>,
    responses: Responses<'a>,
}

impl<'a> Turns<'a> {
    /// Turns of these lengths (tokens each, at least one), those of each response one after the other;
    /// `counts` are the turns of each response, at least one.
    ///
    /// # Errors
    /// A turn without a token, a response without a turn, or counts that do not add up.
    pub fn new(lengths: &'a [usize], counts: &'a [usize]) -> Result<Self, Error> {
        let (tokens, responses) = (Responses::new(lengths)?, Responses::new(counts)?);
        let shortest = lengths.iter().chain(counts).copied().min().unwrap_or(1);
        require(shortest > 0, "turns", shortest as f64, "a token in each turn, and a turn in each response")?;
        responses.require_len("turns", lengths.len())?;
        Ok(Self { tokens, responses })
    }

    /// Each turn as a stretch of tokens: what [`broadcast`] and [`response_returns`] take.
    pub fn of_tokens(&self) -> Responses<'a> {
        self.tokens
    }

    /// Each response as a stretch of turns.
    pub fn of_responses(&self) -> Responses<'a> {
        self.responses
    }

    /// `[tokens]` whether a turn ends with a token.
    pub fn ends(&self) -> Vec<bool> {
        let mut ends = vec![false; self.tokens.tokens()];
        for turn in self.tokens.spans() {
            ends[turn.end - 1] = true;
        }
        ends
    }

    /// Moves what turns brought from the end of each response to the ends of these turns. `rewards` are
    /// `[tokens]`, with the whole score at the last token; `scores` are `[turns]`, of which the last of each
    /// response is not read: it keeps the rest.
    ///
    /// # Errors
    /// A wrong length, or a number that is not finite.
    pub fn move_scores(&self, rewards: &mut [f32], scores: &[f32]) -> Result<(), Error> {
        self.tokens.require_tokens("rewards", rewards)?;
        self.responses.require_tokens("turn_scores", scores)?;
        let turns: Vec<_> = self.tokens.spans().collect();
        for of_response in self.responses.spans() {
            let (last, before) = (of_response.end - 1, of_response.start..of_response.end - 1);
            let mut moved = 0.0;
            for turn in before {
                rewards[turns[turn].end - 1] += scores[turn];
                moved += f64::from(scores[turn]);
            }
            let last = &mut rewards[turns[last].end - 1];
            *last = (f64::from(*last) - moved) as f32;
        }
        Ok(())
    }
}

/// [`gae()`] over turns: the reward of a turn is the sum of its tokens', its value what the critic says at
/// its first token, and `turn_gamma` is γ. `rewards` and `values` are `[tokens]`; so is the result, equal
/// over each turn.
///
/// # Errors
/// Those of [`gae()`].
pub fn gae_by_turn(by: Gae, turns: Turns<'_>, rewards: &[f32], values: &[f32]) -> Result<Advantages, Error> {
    turns.tokens.require_tokens("values", values)?;
    let of_turns = response_returns(turns.tokens, rewards)?;
    let first: Vec<f32> = turns.tokens.spans().map(|turn| values[turn.start]).collect();
    let by = Gae { discount: Discount::per_token(by.discount.turn_gamma), ..by };
    let found = gae(by, turns.responses, &of_turns, &first)?;
    Ok(Advantages {
        advantages: broadcast(turns.tokens, &found.advantages)?,
        returns: broadcast(turns.tokens, &found.returns)?,
    })
}

/// [`returns_to_go()`] over turns, `[turns]`: the reward of a turn is the sum of its tokens', and
/// `turn_gamma` is γ. `rewards` are `[tokens]`.
///
/// # Errors
/// Those of [`returns_to_go()`].
pub fn returns_to_go_by_turn(
    discount: Discount,
    turns: Turns<'_>,
    rewards: &[f32],
) -> Result<Vec<f32>, Error> {
    let of_turns = response_returns(turns.tokens, rewards)?;
    returns_to_go(Discount::per_token(discount.turn_gamma), turns.responses, &of_turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two responses: turns of 2, 1 and 3 tokens, and one of 2.
    const LENGTHS: [usize; 4] = [2, 1, 3, 2];
    const COUNTS: [usize; 2] = [3, 1];

    fn turns() -> Turns<'static> {
        Turns::new(&LENGTHS, &COUNTS).unwrap()
    }

    #[test]
    fn scores_of_turns_stand_behind_them_and_the_rest_at_the_end() {
        let mut rewards = [0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 7.0];
        turns().move_scores(&mut rewards, &[0.5, -1.0, 99.0, 99.0]).unwrap();
        assert_eq!(rewards, [0.0, 0.5, -1.0, 0.0, 0.0, 2.5, 0.0, 7.0]);
        assert_eq!(turns().ends(), [false, true, true, false, false, true, false, true]);
        assert!(turns().move_scores(&mut rewards[..7], &[0.0; 4]).is_err());
        assert!(turns().move_scores(&mut rewards, &[0.0, f32::NAN, 0.0, 0.0]).is_err());
    }

    /// By hand: rewards of turns 1, 0, 4 with γ = 0.5 across turns and none within.
    #[test]
    fn the_discount_across_turns_is_none_within_them() {
        let (mut ends, mut rewards) = (turns().ends(), [0.0, 1.0, 0.0, 0.0, 0.0, 4.0, 0.0, 3.0]);
        let lengths = [6, 2];
        let responses = Responses::new(&lengths).unwrap().with_turn_ends(&ends).unwrap();
        let discount = Discount { gamma: 1.0, turn_gamma: 0.5 };
        let expected = [2.0, 2.0, 2.0, 4.0, 4.0, 4.0, 3.0, 3.0];
        assert_eq!(returns_to_go(discount, responses, &rewards).unwrap(), expected);
        assert_eq!(returns_to_go_by_turn(discount, turns(), &rewards).unwrap(), [2.0, 2.0, 4.0, 3.0]);
        // λ = 1 and a critic that says 0: the same from GAE, by token and by turn.
        let by = Gae { discount, gae_lambda: 1.0 };
        assert_eq!(gae(by, responses, &rewards, &[0.0; 8]).unwrap().advantages, expected);
        assert_eq!(gae_by_turn(by, turns(), &rewards, &[0.0; 8]).unwrap().advantages, expected);
        rewards[5] = f32::INFINITY;
        assert!(returns_to_go(discount, responses, &rewards).is_err());
        ends.pop();
        assert!(Responses::new(&lengths).unwrap().with_turn_ends(&ends).is_err());
    }

    /// Turns of one token are tokens.
    #[test]
    fn turns_of_one_token_are_steps_of_gae() {
        let (lengths, counts) = ([1; 5], [3, 2]);
        let turns = Turns::new(&lengths, &counts).unwrap();
        let (rewards, values) = ([0.1, -0.2, 1.0, 0.0, 0.5], [0.3, 0.2, 0.4, -0.1, 0.9]);
        let by = Gae { discount: Discount::per_token(0.9), gae_lambda: 0.8 };
        let expected = gae(by, Responses::new(&counts).unwrap(), &rewards, &values).unwrap();
        assert_eq!(gae_by_turn(by, turns, &rewards, &values).unwrap(), expected);
    }

    /// By hand: δ_2 = 4 − 1 = 3, δ_1 = 0 + 0.5·1 − 2 = −1.5, A_1 = −1.5 + 0.5·0.5·3 = −0.75,
    /// δ_0 = 1 + 0.5·2 − 3 = −1, A_0 = −1 + 0.25·(−0.75) = −1.1875.
    #[test]
    fn a_turns_value_is_that_of_its_first_token() {
        let (rewards, values) =
            ([0.5, 0.5, 0.0, 0.0, 1.0, 3.0, 0.0, 0.0], [3.0, 9.0, 2.0, 1.0, 9.0, 9.0, 0.0, 9.0]);
        let by = Gae { discount: Discount { gamma: 0.1, turn_gamma: 0.5 }, gae_lambda: 0.5 };
        let found = gae_by_turn(by, turns(), &rewards, &values).unwrap();
        assert_eq!(found.advantages, [-1.1875, -1.1875, -0.75, 3.0, 3.0, 3.0, 0.0, 0.0]);
        assert_eq!(found.returns, [1.8125, 1.8125, 1.25, 4.0, 4.0, 4.0, 0.0, 0.0]);
    }

    #[test]
    fn turns_that_do_not_fit_are_errors() {
        for (lengths, counts) in [([1, 0].as_slice(), [2].as_slice()), (&[1, 1], &[2, 0]), (&[1, 1], &[1])] {
            assert!(Turns::new(lengths, counts).is_err(), "{lengths:?} {counts:?}");
        }
    }
}
