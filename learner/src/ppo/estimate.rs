//! From what the models said before the update to what the losses are computed from: rewards, advantages,
//! returns, whitening and off-policy corrections. One function for each, the formulas of [`algo`] on all
//! samples of the batch.

use std::collections::HashMap;

use algo::{
    AdvantageEstimator, Correction, Gae, GroupBaseline, KlEstimator, KlPlacement, Moments, RewardShaping,
    ScoredTokens, broadcast, gae, group_advantages, response_returns, returns_to_go, token_rewards, whiten,
};

use super::experience::{Collected, CriticTargets, Evaluated, Experience};
use crate::config::{PpoConfig, SamplesOn, Settings, Whiten};
use crate::error::FormulaResult;

/// What decides how a batch is estimated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Estimation<'a> {
    pub(crate) config: &'a PpoConfig,
    pub(crate) settings: &'a Settings,
    /// β now.
    pub(crate) kl_coefficient: f64,
}

/// Advantages, not whitened, and the critic's targets where the estimator has a critic.
struct Estimates {
    /// `[tokens]`.
    advantages: Vec<f32>,
    critic: Option<CriticTargets>,
}

impl Evaluated {
    /// Estimates advantages and what else the losses need.
    ///
    /// # Errors
    /// Numbers that are not finite.
    pub(crate) fn estimate(self, by: Estimation<'_>) -> FormulaResult<Experience> {
        let Self { samples, old_logprobs, old_entropies, old_values } = self;
        let rewards = by.rewards(&samples, &old_logprobs)?;
        let Estimates { mut advantages, critic } = by.advantages(&samples, &rewards, old_values)?;
        by.whiten(&samples, &mut advantages);
        let correction = by.settings.correction;
        let weights = correction.weights(samples.responses()?, &old_logprobs, &samples.rollout_logprobs)?;
        let corrections = (correction != Correction::None).then_some(weights.weights);
        Ok(Experience {
            samples,
            old_logprobs,
            old_entropies,
            advantages,
            critic,
            corrections,
            correction_sums: weights.sums,
        })
    }
}

impl Estimation<'_> {
    /// Token rewards, `[tokens]`: `r_t = −β k̂l_t + 1[t = T] · clip(score)` (PF-PPO, arXiv 2409.06957, Eq.
    /// 4). The KL is left out where it is a term of the loss.
    fn rewards(&self, samples: &Collected, old_logprobs: &[f32]) -> FormulaResult<Vec<f32>> {
        let (kl_estimator, kl_coefficient) = match self.settings.kl {
            KlPlacement::Reward { estimator, .. } => (estimator, self.kl_coefficient),
            KlPlacement::None | KlPlacement::Loss { .. } => (KlEstimator::K1, 0.0),
        };
        let score_clip = self.config.score_clip.number();
        let tokens = ScoredTokens {
            responses: samples.responses()?,
            old_logprobs,
            ref_logprobs: samples.ref_logprobs.as_deref().unwrap_or(old_logprobs),
            scores: &samples.scores,
        };
        Ok(token_rewards(&RewardShaping { kl_estimator, kl_coefficient, score_clip }, &tokens)?.rewards)
    }

    /// Advantages of every token: GAE with a critic (arXiv 1506.02438, Eq. 16), the return-to-go, or the
    /// response's return against that of its siblings.
    fn advantages(
        &self,
        samples: &Collected,
        rewards: &[f32],
        old_values: Option<Vec<f32>>,
    ) -> FormulaResult<Estimates> {
        let responses = samples.responses()?;
        let advantages = match self.settings.advantage {
            AdvantageEstimator::Gae => {
                let old_values = old_values.expect("an algorithm with GAE has a critic");
                let estimated = gae(self.gae(), responses, rewards, &old_values)?;
                let critic = Some(CriticTargets { old_values, returns: estimated.returns });
                return Ok(Estimates { advantages: estimated.advantages, critic });
            }
            AdvantageEstimator::ReturnToGo => returns_to_go(self.config.gamma, responses, rewards)?,
            AdvantageEstimator::Group(baseline) => {
                let returns = response_returns(responses, rewards)?;
                let members = samples.named(self.config.baseline_on);
                let advantages = advantages_in_groups(baseline, samples, &returns, &members)?;
                broadcast(responses, &advantages)?
            }
        };
        Ok(Estimates { advantages, critic: None })
    }

    fn gae(&self) -> Gae {
        Gae { gamma: self.config.gamma, gae_lambda: self.config.gae_lambda }
    }

    /// `A ← (A − mean) / sqrt(var + 1e-8)` for every token, with the moments of those samples that the
    /// configuration names.
    fn whiten(&self, samples: &Collected, advantages: &mut [f32]) {
        let measured = match self.settings.whiten {
            Whiten::Off => return,
            Whiten::AfterFilter => samples.named(SamplesOn::Filtered),
            Whiten::BeforeFilter => samples.named(SamplesOn::All),
        };
        let places = measured.iter().flat_map(|sample| samples.places(*sample));
        let moments: Moments = places.map(|place| f64::from(advantages[place])).collect();
        whiten(advantages, moments.mean(), moments.variance());
    }
}

/// Advantages of whole responses against the other `members` of their group, `[samples]`; 0 for samples that
/// are no members.
fn advantages_in_groups(
    baseline: GroupBaseline,
    samples: &Collected,
    returns: &[f32],
    members: &[usize],
) -> FormulaResult<Vec<f32>> {
    // Groups of members, numbered in the order of appearance.
    let mut numbers = HashMap::new();
    let mut groups = Vec::with_capacity(members.len());
    for sample in members {
        let next = numbers.len();
        groups.push(*numbers.entry(samples.groups[*sample]).or_insert(next));
    }
    let member_returns: Vec<f32> = members.iter().map(|sample| returns[*sample]).collect();
    let mut advantages = vec![0.0; samples.len()];
    for (sample, advantage) in members.iter().zip(group_advantages(baseline, &member_returns, &groups)?) {
        advantages[*sample] = advantage;
    }
    Ok(advantages)
}
