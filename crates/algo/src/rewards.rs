//! From one score per response to one reward per token, and what is added to a score before that.

use crate::error::{Error, require, require_non_negative};
use crate::kl::KlEstimator;
use crate::moments::Moments;
use crate::responses::Responses;

/// How token rewards are made from scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RewardShaping {
    /// Estimator of the per-token penalty; k1 in PPO for RLHF.
    pub kl_estimator: KlEstimator,
    /// β. Set it to 0 where the KL is a term of the loss: counted in both places it is counted twice.
    pub kl_coefficient: f64,
    /// Scores are kept within ± this, where given (10 in the authors' PF-PPO code).
    pub score_clip: Option<f64>,
}

/// What token rewards are made of.
#[derive(Debug, Clone, Copy)]
pub struct ScoredTokens<'a> {
    /// Which tokens there are and count.
    pub responses: Responses<'a>,
    /// `log π_old`, `[tokens]`.
    pub old_logprobs: &'a [f32],
    /// `log π_ref`, `[tokens]`.
    pub ref_logprobs: &'a [f32],
    /// One score per response, `[responses]`.
    pub scores: &'a [f32],
}

/// Token rewards and what was measured on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenRewards {
    /// `[tokens]`; 0 on tokens that do not count.
    pub rewards: Vec<f32>,
    /// Moments over tokens of the KL estimate (without β).
    pub kl: Moments,
    /// Responses whose score found no place because none of their tokens counts. They train nothing.
    pub unplaced_scores: usize,
}

/// Rewards of PPO for RLHF: `r_t = −β k̂l_t + 1[t = last counted token] · clip(score)` (Ziegler et al. 2019,
/// arXiv 1909.08593, section 2; PF-PPO, arXiv 2409.06957, Eq. 4).
///
/// # Errors
/// A negative β or clip, a wrong length, or a number that counts and is not finite.
pub fn token_rewards(shaping: &RewardShaping, tokens: &ScoredTokens<'_>) -> Result<TokenRewards, Error> {
    let ScoredTokens { responses, old_logprobs, ref_logprobs, scores } = *tokens;
    require_non_negative("kl_coefficient", shaping.kl_coefficient)?;
    responses.require_tokens("old_logprobs", old_logprobs)?;
    responses.require_tokens("ref_logprobs", ref_logprobs)?;
    responses.require_responses("scores", scores)?;
    let mut result =
        TokenRewards { rewards: vec![0.0; responses.tokens()], kl: Moments::default(), unplaced_scores: 0 };
    for (span, &score) in responses.spans().zip(scores) {
        let score = clip_score(f64::from(score), shaping.score_clip)?;
        let last = responses.counted(span.clone()).next_back();
        for token in responses.counted(span) {
            let kl =
                shaping.kl_estimator.value(f64::from(old_logprobs[token]) - f64::from(ref_logprobs[token]));
            result.kl.push(kl);
            let placed = if Some(token) == last { score } else { 0.0 };
            result.rewards[token] = (placed - shaping.kl_coefficient * kl) as f32;
        }
        result.unplaced_scores += usize::from(last.is_none());
    }
    Ok(result)
}

/// A score kept within `±limit`; unchanged without a limit.
///
/// # Errors
/// A limit that is negative or not finite.
pub fn clip_score(score: f64, limit: Option<f64>) -> Result<f64, Error> {
    match limit {
        Some(limit) => {
            require_non_negative("score_clip", limit)?;
            Ok(score.clamp(-limit, limit))
        }
        None => Ok(score),
    }
}

/// The sum of each response's counted token rewards, `[responses]`: the return of the whole response, which
/// group baselines take where the KL is in the reward (RLOO: `R_i − β Σ_t k1_it`).
///
/// # Errors
/// A wrong length or a counted number that is not finite.
pub fn response_returns(responses: Responses<'_>, rewards: &[f32]) -> Result<Vec<f32>, Error> {
    responses.require_tokens("rewards", rewards)?;
    let mut returns = Vec::with_capacity(responses.len());
    for span in responses.spans() {
        let sum: f64 = responses.counted(span).map(|token| f64::from(rewards[token])).sum();
        returns.push(sum as f32);
    }
    Ok(returns)
}

/// DAPO's soft overlong punishment, to be added to the score of a response of `length` tokens (arXiv
/// 2503.14476, "overlong reward shaping"): 0 up to `max_length − cache`, `(max_length − cache − length) /
/// cache` up to `max_length`, −1 beyond.
///
/// # Errors
/// A cache of 0 or longer than `max_length`.
pub fn overlong_penalty(length: usize, max_length: usize, cache: usize) -> Result<f64, Error> {
    require(
        cache > 0 && cache <= max_length,
        "overlong_cache",
        cache as f64,
        "1 token or more, at most the maximum length",
    )?;
    let exceeded = length.saturating_sub(max_length - cache);
    Ok(-(exceeded as f64 / cache as f64).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPING: RewardShaping =
        RewardShaping { kl_estimator: KlEstimator::K1, kl_coefficient: 0.5, score_clip: Some(2.0) };

    #[test]
    fn the_score_lands_on_the_last_token_that_counts() {
        let mask = [true, true, false, false];
        let responses = Responses::new(&[3, 1]).unwrap().with_mask(&mask).unwrap();
        let tokens = ScoredTokens {
            responses,
            old_logprobs: &[-1.0, -1.0, f32::NAN, 0.0],
            ref_logprobs: &[-1.0, -2.0, f32::NAN, 0.0],
            scores: &[5.0, 1.0],
        };
        let result = token_rewards(&SHAPING, &tokens).unwrap();
        assert_eq!(result.rewards, [0.0, 1.5, 0.0, 0.0]);
        assert_eq!((result.kl.count, result.kl.sum, result.unplaced_scores), (2.0, 1.0, 1));
        assert_eq!(response_returns(responses, &result.rewards).unwrap(), [1.5, 0.0]);
    }

    #[test]
    fn bad_scores_and_parameters_are_errors() {
        let mut tokens = ScoredTokens {
            responses: Responses::new(&[1]).unwrap(),
            old_logprobs: &[0.0],
            ref_logprobs: &[0.0],
            scores: &[f32::NAN],
        };
        assert!(token_rewards(&SHAPING, &tokens).is_err());
        tokens.scores = &[0.0, 1.0];
        assert!(token_rewards(&SHAPING, &tokens).is_err());
        tokens.scores = &[0.0];
        assert!(token_rewards(&RewardShaping { kl_coefficient: -0.1, ..SHAPING }, &tokens).is_err());
        assert!(token_rewards(&RewardShaping { score_clip: Some(f64::NAN), ..SHAPING }, &tokens).is_err());
        assert!(overlong_penalty(1, 10, 0).is_err());
        assert!(overlong_penalty(1, 10, 11).is_err());
    }
}
