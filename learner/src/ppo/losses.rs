//! From the numbers of a micro-batch to the gradient in them: the formulas of [`algo`] on the micro-batch's slices.

use algo::{
    ExplainedVariance, KlPlacement, KlTokens, PolicyTokens, RatioSums, Responses, Totals, ValueTokens,
    coefficients, entropy_bonus, kl_loss, off_policy_sequence_mask, policy_loss, reweight, value_loss,
};

use super::experience::Experience;
use crate::config::{Bound, PpoConfig, SamplesOn, Settings};
use crate::trainee::{NumberGradients, Numbers};

/// What a step adds up over micro-batches and ranks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sums {
    /// The clipped surrogate.
    pub(crate) policy_loss: f64,
    /// The value loss.
    pub(crate) value_loss: f64,
    /// Ratios of the policy against the old one.
    pub(crate) ratios: RatioSums,
}

impl Sums {
    /// The numbers that ranks add up.
    pub(crate) fn numbers(&self) -> [f64; 5] {
        [self.policy_loss, self.value_loss, self.ratios.tokens, self.ratios.approx_kl, self.ratios.clipped]
    }
}

/// What the losses of a step are computed with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Losses<'a> {
    pub(crate) config: &'a PpoConfig,
    pub(crate) settings: &'a Settings,
    pub(crate) experience: &'a Experience,
    /// β now.
    pub(crate) beta: f64,
    /// The norm of `seq-mean-token-sum-norm`.
    pub(crate) norm_tokens: usize,
}

impl Losses<'_> {
    /// The gradient of the policy loss of `samples` in their log-probs (and entropies).
    pub(crate) fn of_policy(
        &self,
        samples: &[usize],
        totals: &Totals,
        numbers: &Numbers,
        sums: &mut Sums,
    ) -> Result<NumberGradients, algo::Error> {
        let Self { config, settings, experience, .. } = *self;
        let of = |of_tokens: &[f32]| experience.gather(of_tokens, samples);
        let lengths = experience.lengths_of(samples);
        let responses = Responses::new(&lengths)?;
        let weights: Vec<f32> = samples.iter().map(|sample| experience.weights[*sample]).collect();
        let (advantages, old_logprobs) = (of(&experience.advantages), of(&experience.old_logprobs));
        let plain = coefficients(settings.aggregation, totals, self.norm_tokens, responses, &weights)?;
        let mut corrected = plain.clone();
        if let Some(corrections) = &experience.corrections {
            reweight(responses, &mut corrected, &of(corrections))?;
        }
        if let Bound::At(delta) = config.off_policy_delta {
            let rollout_logprobs = of(&experience.rollout_logprobs);
            let means = means(responses, &advantages);
            let mask =
                off_policy_sequence_mask(delta, responses, &means, &numbers.values, &rollout_logprobs)?;
            reweight(responses, &mut corrected, &mask)?;
        }
        let surrogate = policy_loss(
            &settings.objective,
            &PolicyTokens {
                responses,
                logprobs: &numbers.values,
                old_logprobs: &old_logprobs,
                advantages: &advantages,
                coefficients: &corrected,
            },
        )?;
        sums.policy_loss += surrogate.loss;
        sums.ratios.merge(&surrogate.ratios);
        let mut gradient = surrogate.gradient;
        if let (KlPlacement::Loss { estimator, .. }, Some(reference)) =
            (settings.kl, &experience.ref_logprobs)
        {
            let ref_logprobs = of(reference);
            let tokens = KlTokens {
                responses,
                logprobs: &numbers.values,
                ref_logprobs: &ref_logprobs,
                coefficients: &plain,
            };
            let term = kl_loss(estimator, self.beta, &tokens)?;
            gradient.iter_mut().zip(term.gradient).for_each(|(sum, kl)| *sum += kl);
        }
        let entropies = match &numbers.entropies {
            Some(entropies) if config.entropy_coefficient > 0.0 => {
                Some(entropy_bonus(config.entropy_coefficient, responses, entropies, &plain)?.gradient)
            }
            _ => None,
        };
        Ok(NumberGradients { values: gradient, entropies })
    }

    /// The gradient of the value loss of `samples` in their values.
    pub(crate) fn of_critic(
        &self,
        samples: &[usize],
        totals: &Totals,
        numbers: &Numbers,
        sums: &mut Sums,
    ) -> Result<NumberGradients, algo::Error> {
        let Self { config, settings, experience, .. } = *self;
        let of = |of_tokens: &[f32]| experience.gather(of_tokens, samples);
        let lengths = experience.lengths_of(samples);
        let responses = Responses::new(&lengths)?;
        let weights: Vec<f32> = match config.critic_on {
            SamplesOn::Filtered => samples.iter().map(|sample| experience.weights[*sample]).collect(),
            SamplesOn::All => vec![1.0; samples.len()],
        };
        let plain = coefficients(settings.aggregation, totals, self.norm_tokens, responses, &weights)?;
        let loss = value_loss(
            config.value_clip.number(),
            &ValueTokens {
                responses,
                values: &numbers.values,
                old_values: &of(&experience.old_values),
                returns: &of(&experience.returns),
                coefficients: &plain,
            },
        )?;
        sums.value_loss += loss.term.loss;
        Ok(NumberGradients { values: loss.term.gradient, entropies: None })
    }

    /// How much of the returns the old values explain, over the samples the critic trains on.
    pub(crate) fn explained_variance(&self) -> Result<Option<f64>, algo::Error> {
        let samples = match self.config.critic_on {
            SamplesOn::Filtered => self.experience.trained(),
            SamplesOn::All => (0..self.experience.len()).collect(),
        };
        let lengths = self.experience.lengths_of(&samples);
        let values = self.experience.gather(&self.experience.old_values, &samples);
        let returns = self.experience.gather(&self.experience.returns, &samples);
        Ok(ExplainedVariance::of_tokens(Responses::new(&lengths)?, &values, &returns)?.value())
    }
}

/// The mean over each response, `[responses]`.
fn means(responses: Responses<'_>, of_tokens: &[f32]) -> Vec<f32> {
    let mean = |span: std::ops::Range<usize>| {
        let count = span.len().max(1) as f64;
        (of_tokens[span].iter().map(|value| f64::from(*value)).sum::<f64>() / count) as f32
    };
    responses.spans().map(mean).collect()
}
