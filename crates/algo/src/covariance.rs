//! Which tokens take the most entropy away, and so are held back (Cui et al. 2025, arXiv 2505.22617).
//!
//! Under a policy gradient the entropy changes by minus the covariance of a token's log-prob and its
//! advantage (Theorem 1): few tokens that are likely and good, or unlikely and bad, take nearly all of it.
//!
//! The authors take the covariance over a micro-batch, under the policy as it is there. Here it is over all
//! tokens of the batch that train, under the policy that drew them: so it depends neither on minibatches nor
//! on ranks. On the first minibatch the log-probs are the same.

use rand::SeedableRng;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, require, require_non_negative};
use crate::moments::Moments;
use crate::responses::Responses;

/// What is done with tokens whose log-prob and advantage vary together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CovarianceControl {
    /// Nothing.
    #[default]
    Off,
    /// Clip-Cov (section 4.2): some tokens, drawn of those whose covariance is between two bounds, do not
    /// train the policy.
    ClipCov {
        /// The share of all tokens that is drawn, at least one where there is one; 2e-4 in the paper.
        share: f64,
        /// The covariance above which a token may be drawn; 1 in the authors' code.
        low: f64,
        /// The covariance below which it may; 5 in the authors' code.
        high: f64,
    },
    /// KL-Cov (section 4.3): the tokens of the largest covariance have `coefficient · |log π_θ − log π_old|`
    /// in their loss. The authors leave the clip out beside it: `clip_ratio_low = 1`, a `clip_ratio_high`
    /// that nothing reaches.
    KlCov {
        /// Their share of all tokens, at least one token; 2e-4 to 2e-3 in the paper.
        share: f64,
        /// β; 1 in the paper.
        coefficient: f64,
    },
}

impl CovarianceControl {
    /// Checks that the numbers are ones that it can take.
    ///
    /// # Errors
    /// Names the number outside its range.
    pub fn validate(self) -> Result<(), Error> {
        let share = match self {
            Self::Off => return Ok(()),
            Self::ClipCov { share, low, high } => {
                require(low < high, "low", low, "below high")?;
                share
            }
            Self::KlCov { share, coefficient } => {
                require_non_negative("coefficient", coefficient)?;
                share
            }
        };
        require((0.0..=1.0).contains(&share), "share", share, "from 0 to 1")
    }

    /// The tokens that are held back, `[tokens]`: 1 for those, 0 for all others. `logprobs` are those of the
    /// policy that drew the tokens and `advantages` what they train with, both `[tokens]`; the draws of
    /// Clip-Cov follow from the seed.
    ///
    /// # Errors
    /// A parameter outside its range, a wrong length or a counted number that is not finite.
    pub fn held_back(
        self,
        responses: Responses<'_>,
        logprobs: &[f32],
        advantages: &[f32],
        seed: u64,
    ) -> Result<Vec<f32>, Error> {
        self.validate()?;
        let mut held_back = vec![0.0; responses.tokens()];
        if self == Self::Off {
            return Ok(held_back);
        }
        let mut covariances = covariances(responses, logprobs, advantages)?;
        let tokens = covariances.len();
        match self {
            Self::Off => {}
            Self::ClipCov { share, low, high } => {
                covariances.retain(|(_, covariance)| low < *covariance && *covariance < high);
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                let (drawn, _) = covariances.partial_shuffle(&mut random, most(tokens, share));
                drawn.iter().for_each(|(token, _)| held_back[*token] = 1.0);
            }
            Self::KlCov { share, .. } => {
                // Of equal ones the first in the batch.
                covariances.sort_by(|left, right| right.1.total_cmp(&left.1));
                covariances.iter().take(most(tokens, share)).for_each(|(token, _)| held_back[*token] = 1.0);
            }
        }
        Ok(held_back)
    }
}

/// `(log π − mean) (A − mean)` of each counted token, with its place (arXiv 2505.22617, Eq. 10).
fn covariances(
    responses: Responses<'_>,
    logprobs: &[f32],
    advantages: &[f32],
) -> Result<Vec<(usize, f64)>, Error> {
    responses.require_tokens("logprobs", logprobs)?;
    responses.require_tokens("advantages", advantages)?;
    let (logprob_mean, advantage_mean) = (mean(responses, logprobs), mean(responses, advantages));
    let tokens = responses.counted_tokens().map(|token| {
        let logprob = f64::from(logprobs[token]) - logprob_mean;
        (token, logprob * (f64::from(advantages[token]) - advantage_mean))
    });
    Ok(tokens.collect())
}

/// How many tokens a share of them is, at least one.
fn most(tokens: usize, share: f64) -> usize {
    ((tokens as f64 * share) as usize).max(1)
}

/// Over the tokens that count.
fn mean(responses: Responses<'_>, values: &[f32]) -> f64 {
    responses.counted_tokens().map(|token| f64::from(values[token])).collect::<Moments>().mean()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Covariances 0.8, 0, -0.15, 0.4, 1.95.
    const LOGPROBS: [f32; 5] = [0.0, -1.0, -1.5, -0.5, -2.0];
    const ADVANTAGES: [f32; 5] = [1.5, 0.75, 1.0, 1.5, -1.25];

    fn held_back(control: CovarianceControl, seed: u64) -> Vec<f32> {
        let advantages = ADVANTAGES.map(|advantage| advantage + 3.0);
        control.held_back(Responses::new(&[2, 3]).unwrap(), &LOGPROBS, &advantages, seed).unwrap()
    }

    #[test]
    fn covariances_are_about_the_means_of_the_tokens_that_count() {
        let mask = [true, true, true, true, true, false];
        let responses = Responses::new(&[6]).unwrap().with_mask(&mask).unwrap();
        let (mut logprobs, mut advantages) = (LOGPROBS.to_vec(), ADVANTAGES.to_vec());
        logprobs.push(f32::NAN);
        advantages.push(f32::NAN);
        let found = covariances(responses, &logprobs, &advantages).unwrap();
        for (token, expected) in [0.8, 0.0, -0.15, 0.4, 1.95].into_iter().enumerate() {
            assert!(found[token].0 == token && (found[token].1 - expected).abs() < 1e-6, "{found:?}");
        }
    }

    #[test]
    fn kl_cov_takes_the_largest_and_at_least_one() {
        let of = |share| held_back(CovarianceControl::KlCov { share, coefficient: 1.0 }, 0);
        assert_eq!(of(0.0), [0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(of(0.4), [1.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(of(1.0), [1.0; 5]);
    }

    #[test]
    fn clip_cov_draws_between_its_bounds() {
        let of = |share, low, high, seed| held_back(CovarianceControl::ClipCov { share, low, high }, seed);
        assert_eq!(of(1.0, 0.3, 1.0, 0), [1.0, 0.0, 0.0, 1.0, 0.0]);
        assert_eq!(of(1.0, 9.0, 10.0, 0), [0.0; 5]);
        let draws: Vec<Vec<f32>> = (0..64).map(|seed| of(0.2, 0.3, 1.0, seed)).collect();
        assert!(draws.iter().all(|drawn| drawn.iter().sum::<f32>() == 1.0), "one of five");
        let first = draws.iter().filter(|drawn| drawn[0] == 1.0).count();
        assert!((16..=48).contains(&first), "each of the two at times: {first} of 64");
        assert_eq!(of(0.2, 0.3, 1.0, 7), of(0.2, 0.3, 1.0, 7));
    }

    #[test]
    fn numbers_outside_their_range_are_named() {
        for (control, named) in [
            (CovarianceControl::KlCov { share: 1.5, coefficient: 1.0 }, "share is 1.5"),
            (CovarianceControl::KlCov { share: 0.1, coefficient: -1.0 }, "coefficient is -1"),
            (CovarianceControl::ClipCov { share: 0.1, low: 5.0, high: 1.0 }, "low is 5"),
            (CovarianceControl::ClipCov { share: f64::NAN, low: 1.0, high: 5.0 }, "share is NaN"),
        ] {
            let error = control.validate().unwrap_err().to_string();
            assert!(error.starts_with(named), "{error}");
        }
    }
}
