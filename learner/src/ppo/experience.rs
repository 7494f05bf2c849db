//! A batch as the step sees it: the samples that change anything, their numbers flat, response after response.
//!
//! Every rank holds all of it. What the ranks compute in parts (old log-probs, values) is completed over the ranks; all that
//! follows from it (rewards, advantages, whitening, totals) is then the same arithmetic on every rank, so that it cannot
//! depend on how many there are.

use std::collections::HashMap;

use algo::{
    AdvantageEstimator, CorrectionSums, Gae, KlEstimator, KlPlacement, Moments, Responses, RewardShaping,
    ScoredTokens, broadcast, full_support_logprobs, gae, group_advantages, overlong_penalty,
    response_returns, returns_to_go, token_rewards, whiten,
};
use types::{Batch, RolloutId, Sample};

use crate::config::{PpoConfig, RolloutSupport, SamplesOn, Settings, Whiten};
use crate::error::{Error, Result};
use crate::microbatch::Sequence;

/// The samples of a batch that take part in a step. Slices named "of tokens" are `[tokens]` over the responses of all samples.
#[derive(Debug)]
pub(crate) struct Experience {
    /// By sample: who it is, for errors.
    pub(crate) ids: Vec<RolloutId>,
    /// By sample: what the networks are given.
    pub(crate) sequences: Vec<Sequence>,
    /// By sample: response tokens.
    pub(crate) lengths: Vec<usize>,
    /// By sample: where its response begins in slices of tokens.
    starts: Vec<usize>,
    /// By sample: weight in the policy loss; 0 for one that is only there for others.
    pub(crate) weights: Vec<f32>,
    /// By sample: score, overlong penalty included.
    pub(crate) scores: Vec<f32>,
    /// By sample: number of its prompt.
    groups: Vec<usize>,
    /// Of tokens: log-probs when they were drawn.
    pub(crate) rollout_logprobs: Vec<f32>,
    /// Of tokens: log-probs under the reference, if the batch has them.
    pub(crate) ref_logprobs: Option<Vec<f32>>,
    /// Of tokens: log-probs of the policy before the update.
    pub(crate) old_logprobs: Vec<f32>,
    /// Of tokens: entropies of the policy before the update.
    pub(crate) old_entropies: Vec<f32>,
    /// Of tokens: values of the critic before the update.
    pub(crate) old_values: Vec<f32>,
    /// Of tokens: advantages, whitened where that is asked for.
    pub(crate) advantages: Vec<f32>,
    /// Of tokens: what the critic should say.
    pub(crate) returns: Vec<f32>,
    /// Of tokens: weight for having been drawn by another distribution, where there is a correction.
    pub(crate) corrections: Option<Vec<f32>>,
}

impl Experience {
    /// Takes the samples of a batch that change anything under this configuration.
    pub(crate) fn new(batch: &Batch, config: &PpoConfig, settings: &Settings) -> Result<Self> {
        let wrong = |problem: String| Error::Batch { batch: batch.id, problem };
        let takes_all = config.reads_filtered_samples();
        let samples: Vec<&Sample> =
            batch.samples.iter().filter(|sample| takes_all || sample.weight > 0.0).collect();
        let rollouts = || samples.iter().map(|sample| &sample.scored.rollout);
        let lengths: Vec<usize> = rollouts().map(|rollout| rollout.response_tokens.len()).collect();
        let starts = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end - length)
        });
        let scores = samples.iter().zip(&lengths).map(|(sample, length)| {
            let penalty = match config.overlong {
                None => 0.0,
                Some(overlong) => overlong_penalty(*length, overlong.max_length, overlong.cache)
                    .map_err(Error::numbers(|| format!("batch {}", batch.id)))?,
            };
            Ok(sample.scored.score + penalty as f32)
        });
        let tokens = lengths.iter().sum();
        let zeros = vec![0.0; tokens];
        let experience = Self {
            ids: rollouts().map(|rollout| rollout.id).collect(),
            sequences: rollouts()
                .map(|rollout| Sequence::response(&rollout.prompt_tokens, &rollout.response_tokens))
                .collect(),
            starts: starts.collect(),
            weights: samples.iter().map(|sample| sample.weight).collect(),
            scores: scores.collect::<Result<_>>()?,
            groups: group_numbers(&samples),
            rollout_logprobs: rollout_logprobs(&samples, &lengths, config.rollout_support).map_err(wrong)?,
            ref_logprobs: ref_logprobs(&samples),
            lengths,
            old_logprobs: zeros.clone(),
            old_entropies: zeros.clone(),
            old_values: zeros.clone(),
            advantages: zeros.clone(),
            returns: zeros,
            corrections: None,
        };
        if experience.ref_logprobs.is_none() && settings.kl_coefficient() > 0.0 {
            let problem = "its samples have no ref_logprobs, which a KL coefficient above 0 needs: \
                           set kl_coefficient = 0 or run a reference model";
            return Err(Error::Batch { batch: batch.id, problem: problem.to_owned() });
        }
        Ok(experience)
    }

    /// Number of samples.
    pub(crate) fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether the sample trains the policy.
    pub(crate) fn trains(&self, sample: usize) -> bool {
        self.weights[sample] > 0.0
    }

    /// Samples and their numbers of tokens, for [`Plan`](crate::microbatch::Plan).
    pub(crate) fn sizes(&self, samples: impl Iterator<Item = usize>) -> Vec<(usize, usize)> {
        samples.map(|sample| (sample, self.sequences[sample].tokens())).collect()
    }

    /// The places of a sample in slices of tokens.
    fn places(&self, sample: usize) -> std::ops::Range<usize> {
        self.starts[sample]..self.starts[sample] + self.lengths[sample]
    }

    /// Those places of a slice of tokens that belong to `samples`, one sample after the other.
    pub(crate) fn gather(&self, of_tokens: &[f32], samples: &[usize]) -> Vec<f32> {
        samples.iter().flat_map(|sample| &of_tokens[self.places(*sample)]).copied().collect()
    }

    /// The lengths of `samples`.
    pub(crate) fn lengths_of(&self, samples: &[usize]) -> Vec<usize> {
        samples.iter().map(|sample| self.lengths[*sample]).collect()
    }

    /// Writes `values` to the places of `samples`.
    pub(crate) fn scatter(&self, of_tokens: &mut [f32], samples: &[usize], values: &[f32]) {
        let mut rest = values;
        for sample in samples {
            let (own, others) = rest.split_at(self.lengths[*sample]);
            of_tokens[self.places(*sample)].copy_from_slice(own);
            rest = others;
        }
    }

    /// Samples that train the policy.
    pub(crate) fn trained(&self) -> Vec<usize> {
        (0..self.len()).filter(|sample| self.trains(*sample)).collect()
    }

    /// From old log-probs and values to advantages, returns and corrections, with β of now.
    pub(crate) fn estimate(
        &mut self,
        config: &PpoConfig,
        settings: &Settings,
        beta: f64,
    ) -> Formula<CorrectionSums> {
        let lengths = self.lengths.clone();
        let responses = Responses::new(&lengths)?;
        let (estimator, coefficient) = match settings.kl {
            KlPlacement::Reward { estimator, .. } => (estimator, beta),
            KlPlacement::None | KlPlacement::Loss { .. } => (KlEstimator::K1, 0.0),
        };
        let shaping = RewardShaping {
            kl_estimator: estimator,
            kl_coefficient: coefficient,
            score_clip: config.score_clip.number(),
        };
        let rewards = token_rewards(
            &shaping,
            &ScoredTokens {
                responses,
                old_logprobs: &self.old_logprobs,
                ref_logprobs: self.ref_logprobs.as_ref().unwrap_or(&self.old_logprobs),
                scores: &self.scores,
            },
        )?
        .rewards;
        match settings.advantage {
            AdvantageEstimator::Gae => {
                let gae_of = Gae { gamma: config.gamma, gae_lambda: config.gae_lambda };
                let estimated = gae(gae_of, responses, &rewards, &self.old_values)?;
                (self.advantages, self.returns) = (estimated.advantages, estimated.returns);
            }
            AdvantageEstimator::ReturnToGo => {
                self.advantages = returns_to_go(config.gamma, responses, &rewards)?
            }
            AdvantageEstimator::Group(baseline) => {
                let returns = response_returns(responses, &rewards)?;
                let members: Vec<usize> = match config.baseline_on {
                    SamplesOn::Filtered => self.trained(),
                    SamplesOn::All => (0..self.len()).collect(),
                };
                self.advantages = broadcast(responses, &self.against_group(baseline, &returns, &members)?)?;
            }
        }
        let over: Vec<usize> = match settings.whiten {
            Whiten::Off => Vec::new(),
            Whiten::AfterFilter => self.trained(),
            Whiten::BeforeFilter => (0..self.len()).collect(),
        };
        if settings.whiten != Whiten::Off {
            let moments: Moments = over
                .iter()
                .flat_map(|sample| &self.advantages[self.places(*sample)])
                .map(|a| f64::from(*a))
                .collect();
            whiten(&mut self.advantages, moments.mean(), moments.variance());
        }
        let weights = settings.correction.weights(responses, &self.old_logprobs, &self.rollout_logprobs)?;
        if settings.correction != algo::Correction::None {
            self.corrections = Some(weights.weights);
        }
        Ok(weights.sums)
    }

    /// Advantages of whole responses, `[samples]`, 0 for samples outside `members`.
    fn against_group(
        &self,
        baseline: algo::GroupBaseline,
        returns: &[f32],
        members: &[usize],
    ) -> Formula<Vec<f32>> {
        let mut numbers = HashMap::new();
        let groups: Vec<usize> = members
            .iter()
            .map(|sample| {
                let next = numbers.len();
                *numbers.entry(self.groups[*sample]).or_insert(next)
            })
            .collect();
        let of_members: Vec<f32> = members.iter().map(|sample| returns[*sample]).collect();
        let mut advantages = vec![0.0; self.len()];
        for (sample, advantage) in members.iter().zip(group_advantages(baseline, &of_members, &groups)?) {
            advantages[*sample] = advantage;
        }
        Ok(advantages)
    }

    /// Mean over the samples that train of `Σ_t (log π_old − log π_ref)`; `None` without a reference.
    pub(crate) fn kl_to_ref(&self) -> Option<f64> {
        let reference = self.ref_logprobs.as_ref()?;
        let trained = self.trained();
        let difference = |place: usize| f64::from(self.old_logprobs[place]) - f64::from(reference[place]);
        let sum: f64 = trained.iter().flat_map(|sample| self.places(*sample)).map(difference).sum();
        (!trained.is_empty()).then(|| sum / trained.len() as f64)
    }
}

/// The result of a formula.
type Formula<T> = std::result::Result<T, algo::Error>;

/// Prompts numbered in the order of appearance.
fn group_numbers(samples: &[&Sample]) -> Vec<usize> {
    let mut numbers = HashMap::new();
    let number = |sample: &&Sample| {
        let next = numbers.len();
        *numbers.entry(sample.scored.rollout.id.prompt).or_insert(next)
    };
    samples.iter().map(number).collect()
}

/// Log-probs of the drawn tokens over the whole vocabulary.
fn rollout_logprobs(
    samples: &[&Sample],
    lengths: &[usize],
    support: RolloutSupport,
) -> std::result::Result<Vec<f32>, String> {
    let rollouts = samples.iter().map(|sample| &sample.scored.rollout);
    let logprobs: Vec<f32> =
        rollouts.clone().flat_map(|rollout| &rollout.rollout_logprobs).copied().collect();
    if support == RolloutSupport::Full {
        return Ok(logprobs);
    }
    let masses = rollouts.flat_map(|rollout| match &rollout.surviving_mass {
        Some(masses) => masses.iter().map(|mass| mass.ln().min(0.0)).collect(),
        None => vec![0.0; rollout.response_tokens.len()],
    });
    let masses: Vec<f32> = masses.collect();
    let responses = Responses::new(lengths).map_err(|error| error.to_string())?;
    full_support_logprobs(responses, &logprobs, &masses).map_err(|error| error.to_string())
}

/// Log-probs under the reference, if every sample has them.
fn ref_logprobs(samples: &[&Sample]) -> Option<Vec<f32>> {
    let complete = samples
        .iter()
        .all(|sample| sample.scored.ref_logprobs.len() == sample.scored.rollout.response_tokens.len());
    complete.then(|| samples.iter().flat_map(|sample| &sample.scored.ref_logprobs).copied().collect())
}
