//! From a head's outputs for a micro-batch to the loss's gradient in them: the formulas of [`algo`] on the
//! micro-batch's slices.
//!
//! Every loss is a sum `Σ_it c_it l_it` over the response tokens. The coefficients `c_it` are settled for the
//! whole minibatch ([`Totals`]), so losses and gradients of micro-batches and ranks add up to those of the
//! minibatch.

use std::ops::Range;

use algo::{
    CovarianceControl, ExplainedVariance, KlEstimator, KlPlacement, KlTokens, PolicyLoss, PolicyTokens,
    PositiveWeight, RatioSums, Responses, Totals, ValueTokens, coefficients, entropy_bonus, kl_loss,
    off_policy_sequence_mask, policy_loss, reweight, value_loss,
};

use super::experience::{Collected, CriticTargets, Experience};
use crate::config::{Bound, PpoConfig, SamplesOn, Settings};
use crate::error::FormulaResult;
use crate::trainable_model::{HeadGradients, HeadOutputs};

/// What a step adds up over micro-batches and ranks.
#[derive(Debug, Clone, Default)]
pub(crate) struct LossSums {
    /// The clipped surrogate.
    pub(crate) policy_loss: f64,
    /// The value loss.
    pub(crate) value_loss: f64,
    /// Ratios of the policy against the old one.
    pub(crate) ratios: RatioSums,
}

impl LossSums {
    /// Adds the sums of another minibatch.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.policy_loss += other.policy_loss;
        self.value_loss += other.value_loss;
        self.ratios.merge(&other.ratios);
    }
}

/// What the losses of a step are computed with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Losses<'a> {
    pub(crate) config: &'a PpoConfig,
    pub(crate) settings: &'a Settings,
    pub(crate) experience: &'a Experience,
    /// β now.
    pub(crate) kl_coefficient: f64,
    /// The weight of tokens with a positive advantage now.
    pub(crate) positive_weight: PositiveWeight,
    /// The constant that `seq-mean-token-sum-norm` divides by, in tokens.
    pub(crate) norm_tokens: usize,
    /// Whether the weights are still those that old log-probs are of: the log-probs are the old ones then.
    pub(crate) is_at_old_weights: bool,
}

/// Some samples of the experience as one sum over tokens.
struct LossTokens<'a> {
    collected: &'a Collected,
    samples: &'a [usize],
    /// `[samples]`.
    lengths: Vec<usize>,
    /// `c_it`, one sample after the other.
    coefficients: Vec<f64>,
}

impl LossTokens<'_> {
    fn responses(&self) -> FormulaResult<Responses<'_>> {
        Responses::new(&self.lengths)
    }

    /// Those places of a slice of all tokens that belong to these samples.
    fn gather(&self, tokens: &[f32]) -> Vec<f32> {
        self.collected.gather(tokens, self.samples)
    }
}

impl Losses<'_> {
    /// The gradient of the policy's loss of `samples` in their log-probs (and entropies):
    /// `L = L_clip + β L_KL + L_cov − κ H`, the last three where the configuration has them.
    ///
    /// # Errors
    /// Log-probs that are no numbers.
    pub(crate) fn policy(
        &self,
        samples: &[usize],
        totals: &Totals,
        outputs: &HeadOutputs,
        sums: &mut LossSums,
    ) -> FormulaResult<HeadGradients> {
        let weights = self.experience.samples.weights_of(samples);
        let tokens = self.tokens(samples, totals, &weights)?;
        let surrogate = self.surrogate(&tokens, &outputs.values)?;
        sums.policy_loss += surrogate.loss;
        sums.ratios.merge(&surrogate.ratios);
        let mut grad_logprobs = surrogate.gradient;
        let others = [
            self.kl_gradient(&tokens, &outputs.values)?,
            self.covariance_gradient(&tokens, &outputs.values)?,
        ];
        for gradient in others.into_iter().flatten() {
            grad_logprobs.iter_mut().zip(gradient).for_each(|(sum, other)| *sum += other);
        }
        let grad_entropies = self.entropy_gradient(&tokens, outputs)?;
        Ok(HeadGradients { values: grad_logprobs, entropies: grad_entropies })
    }

    /// The gradient of the value loss of `samples` in their values:
    /// `L = ½ Σ_it c_it max((V − R)², (clip(V, V_old ± ε) − R)²)`.
    ///
    /// # Errors
    /// Values that are no numbers.
    pub(crate) fn critic(
        &self,
        samples: &[usize],
        targets: &CriticTargets,
        totals: &Totals,
        outputs: &HeadOutputs,
    ) -> FormulaResult<CriticLoss> {
        let weights = match self.config.critic_on {
            SamplesOn::Filtered => self.experience.samples.weights_of(samples),
            SamplesOn::All => vec![1.0; samples.len()],
        };
        let tokens = self.tokens(samples, totals, &weights)?;
        let found = value_loss(
            self.config.value_clip.number(),
            &ValueTokens {
                responses: tokens.responses()?,
                values: &outputs.values,
                old_values: &tokens.gather(&targets.old_values),
                returns: &tokens.gather(&targets.returns),
                coefficients: &tokens.coefficients,
            },
        )?;
        Ok(CriticLoss {
            loss: found.term.loss,
            gradients: HeadGradients { values: found.term.gradient, entropies: None },
        })
    }

    fn tokens<'a>(
        &'a self,
        samples: &'a [usize],
        totals: &Totals,
        weights: &[f32],
    ) -> FormulaResult<LossTokens<'a>> {
        let collected = &self.experience.samples;
        let lengths = collected.lengths_of(samples);
        let responses = Responses::new(&lengths)?;
        let coefficients =
            coefficients(self.settings.aggregation, totals, self.norm_tokens, responses, weights)?;
        Ok(LossTokens { collected, samples, lengths, coefficients })
    }

    /// The clipped surrogate (PPO, arXiv 1707.06347, Eq. 7) or its successor, with off-policy corrections in
    /// its coefficients.
    fn surrogate(&self, tokens: &LossTokens<'_>, logprobs: &[f32]) -> FormulaResult<PolicyLoss> {
        let advantages = tokens.gather(&self.experience.advantages);
        let coefficients = self.corrected(tokens, logprobs, &advantages)?;
        let gathered = (!self.is_at_old_weights).then(|| tokens.gather(&self.experience.old_logprobs));
        policy_loss(
            &self.settings.objective,
            &PolicyTokens {
                responses: tokens.responses()?,
                logprobs,
                old_logprobs: gathered.as_deref().unwrap_or(logprobs),
                advantages: &advantages,
                coefficients: &coefficients,
            },
        )
    }

    /// The coefficients of the surrogate: those of the minibatch times each token's weight for having been
    /// drawn by another distribution, and for its advantage being positive.
    fn corrected(
        &self,
        tokens: &LossTokens<'_>,
        logprobs: &[f32],
        advantages: &[f32],
    ) -> FormulaResult<Vec<f64>> {
        let responses = tokens.responses()?;
        let mut coefficients = tokens.coefficients.clone();
        if let Some(corrections) = &self.experience.corrections {
            let corrections = if self.is_at_old_weights {
                let rollout_logprobs = tokens.gather(&tokens.collected.rollout_logprobs);
                self.settings.correction.weights(responses, logprobs, &rollout_logprobs)?.weights
            } else {
                tokens.gather(corrections)
            };
            reweight(responses, &mut coefficients, &corrections)?;
        }
        if let Some(factors) = self.positive_weight.factors(advantages) {
            reweight(responses, &mut coefficients, &factors)?;
        }
        if let Bound::At(delta) = self.config.off_policy_delta {
            let rollout_logprobs = tokens.gather(&tokens.collected.rollout_logprobs);
            let means = response_means(responses, advantages);
            let mask = off_policy_sequence_mask(delta, responses, &means, logprobs, &rollout_logprobs)?;
            reweight(responses, &mut coefficients, &mask)?;
        }
        if let (CovarianceControl::ClipCov { .. }, Some(held_back)) =
            (self.config.covariance, &self.experience.held_back)
        {
            let trained: Vec<f32> =
                tokens.gather(held_back).iter().map(|held_back| 1.0 - held_back).collect();
            reweight(responses, &mut coefficients, &trained)?;
        }
        Ok(coefficients)
    }

    /// The gradient of KL-Cov's `β Σ_it c_it |log π_θ − log π_old|` over the tokens that are held back, in
    /// the log-probs (arXiv 2505.22617, section 4.3). It is 0 at the old weights.
    fn covariance_gradient(
        &self,
        tokens: &LossTokens<'_>,
        logprobs: &[f32],
    ) -> FormulaResult<Option<Vec<f32>>> {
        let CovarianceControl::KlCov { coefficient, .. } = self.config.covariance else { return Ok(None) };
        let Some(held_back) = self.experience.held_back.as_ref().filter(|_| !self.is_at_old_weights) else {
            return Ok(None);
        };
        let responses = tokens.responses()?;
        let mut coefficients = tokens.coefficients.clone();
        reweight(responses, &mut coefficients, &tokens.gather(held_back))?;
        let old_logprobs = tokens.gather(&self.experience.old_logprobs);
        let kl_tokens =
            KlTokens { responses, logprobs, ref_logprobs: &old_logprobs, coefficients: &coefficients };
        Ok(Some(kl_loss(KlEstimator::Abs, coefficient, &kl_tokens)?.gradient))
    }

    /// The gradient of `β Σ_it c_it k̂l_it` in the log-probs, where the KL is a term of the loss.
    fn kl_gradient(&self, tokens: &LossTokens<'_>, logprobs: &[f32]) -> FormulaResult<Option<Vec<f32>>> {
        let KlPlacement::Loss { estimator, .. } = self.settings.kl else { return Ok(None) };
        let Some(reference) = &tokens.collected.ref_logprobs else { return Ok(None) };
        let kl_tokens = KlTokens {
            responses: tokens.responses()?,
            logprobs,
            ref_logprobs: &tokens.gather(reference),
            coefficients: &tokens.coefficients,
        };
        Ok(Some(kl_loss(estimator, self.kl_coefficient, &kl_tokens)?.gradient))
    }

    /// The gradient of `−κ Σ_it c_it H_it` in the entropies, where there is a bonus.
    fn entropy_gradient(
        &self,
        tokens: &LossTokens<'_>,
        outputs: &HeadOutputs,
    ) -> FormulaResult<Option<Vec<f32>>> {
        let coefficient = self.config.entropy_coefficient;
        match &outputs.entropies {
            Some(entropies) if coefficient > 0.0 => {
                let bonus = entropy_bonus(coefficient, tokens.responses()?, entropies, &tokens.coefficients)?;
                Ok(Some(bonus.gradient))
            }
            _ => Ok(None),
        }
    }
}

/// A micro-batch's value loss and its gradient.
#[derive(Debug)]
pub(crate) struct CriticLoss {
    pub(crate) loss: f64,
    pub(crate) gradients: HeadGradients,
}

/// How much of the returns the values before the update explain, `1 − Var(R − V_old) / Var(R)`, over the
/// samples that the critic trains on. `None` where the returns do not vary.
///
/// # Errors
/// Values or returns that are no numbers.
pub(crate) fn explained_variance(
    samples: &Collected,
    critic_on: SamplesOn,
    targets: &CriticTargets,
) -> FormulaResult<Option<f64>> {
    let measured = samples.named(critic_on);
    let lengths = samples.lengths_of(&measured);
    let values = samples.gather(&targets.old_values, &measured);
    let returns = samples.gather(&targets.returns, &measured);
    Ok(ExplainedVariance::of_tokens(Responses::new(&lengths)?, &values, &returns)?.value())
}

/// The mean over each response, `[responses]`.
fn response_means(responses: Responses<'_>, tokens: &[f32]) -> Vec<f32> {
    responses.spans().map(|span| mean(tokens, span)).collect()
}

fn mean(tokens: &[f32], span: Range<usize>) -> f32 {
    let count = span.len().max(1) as f64;
    (tokens[span].iter().map(|value| f64::from(*value)).sum::<f64>() / count) as f32
}
