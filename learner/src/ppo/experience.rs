//! A batch on its way through a step, in three types of which each consumes the one before:
//!
//! ```text
//! Collected --forward passes of policy and critic--> Evaluated --rewards, advantages, whitening-->
//! Experience
//! ```
//!
//! Every rank holds all of it. What the ranks compute in parts (old log-probs, values) is completed over the
//! ranks; all that follows from it (rewards, advantages, whitening, totals) is then the same arithmetic on
//! every rank, so that it cannot depend on how many there are.
//!
//! Slices named `[tokens]` go over the response tokens of all samples, one response after the other: what the
//! policy drew. What it was given between its turns is in the sequences alone, as context; the turns of a
//! response follow each other without a gap in everything that is computed of its tokens.

use std::ops::Range;

use algo::{Correction, CorrectionSums, Responses, full_support_logprobs};
use types::{Batch, FinishReason, GroupScore, RolloutId, Sample};

use super::siblings::{Siblings, shaped};
use super::turns::SampleTurns;
use crate::config::{Credit, PpoConfig, RolloutSupport, SamplesOn, Settings, Truncated};
use crate::error::{Error, FormulaResult, Result};
use crate::microbatch::{Microbatch, Sequence};
use crate::microbatch_split::SplitItem;
use crate::ranks::Ranks;
use crate::trainable_model::{HeadOutputs, TrainableModel};

/// The samples of a batch that take part in a step, as they came.
#[derive(Debug)]
pub(crate) struct Collected {
    /// By sample: who it is, for errors.
    pub(crate) ids: Vec<RolloutId>,
    /// By sample: what the networks are given.
    pub(crate) sequences: Vec<Sequence>,
    /// By sample: response tokens.
    lengths: Vec<usize>,
    /// By sample: where its response begins in slices of tokens.
    starts: Vec<usize>,
    /// By sample: weight in the policy loss; 0 for one that is only there for others.
    pub(crate) weights: Vec<f32>,
    /// By sample: score, penalties included.
    pub(crate) scores: Vec<f32>,
    /// Their groups, with the responses that are no samples here.
    pub(crate) siblings: Siblings,
    /// Their turns, where advantages go by them.
    pub(crate) turns: Option<SampleTurns>,
    /// Log-probs when the tokens were drawn, over the whole vocabulary, `[tokens]`.
    pub(crate) rollout_logprobs: Vec<f32>,
    /// Log-probs under the reference, `[tokens]`, if the batch has them.
    pub(crate) ref_logprobs: Option<Vec<f32>>,
}

/// Samples with what the models said of them before the update.
#[derive(Debug)]
pub(crate) struct Evaluated {
    pub(crate) samples: Collected,
    /// `log π_old`, `[tokens]`.
    pub(crate) old_logprobs: Vec<f32>,
    /// The entropy of `π_old` where each token was drawn, in nats, `[tokens]`.
    pub(crate) old_entropies: Vec<f32>,
    /// `V_old`, `[tokens]`, where the algorithm has a critic.
    pub(crate) old_values: Option<Vec<f32>>,
    /// Samples of which the policy has not been asked yet. Until then their log-probs are the rollouts', and
    /// their entropies 0.
    pub(crate) pending: Option<Pending>,
}

/// Samples that the first minibatch trains on, and what it finds out about them on the way.
#[derive(Debug)]
pub(crate) struct Pending {
    samples: Vec<usize>,
    /// `[tokens]`; 0 where another rank computes.
    logprobs: Vec<f32>,
    /// `[tokens]`; 0 where another rank computes.
    entropies: Vec<f32>,
}

impl Pending {
    /// Nothing is known yet of these samples.
    pub(crate) fn new(collected: &Collected, samples: Vec<usize>) -> Self {
        let zeros = vec![0.0; collected.tokens()];
        Self { samples, logprobs: zeros.clone(), entropies: zeros }
    }

    /// The policy's outputs for some of them, at the weights that the step begins with; says whether all of
    /// them are finite.
    pub(crate) fn note(&mut self, collected: &Collected, samples: &[usize], outputs: &HeadOutputs) -> bool {
        collected.scatter(&mut self.logprobs, samples, &outputs.values);
        let entropies = outputs.entropies.as_deref().unwrap_or_default();
        if !entropies.is_empty() {
            collected.scatter(&mut self.entropies, samples, entropies);
        }
        outputs.values.iter().chain(entropies).all(|number| number.is_finite())
    }

    /// Brings together what the ranks found out.
    pub(crate) fn complete(&mut self, ranks: &Ranks) -> Result<()> {
        ranks.complete(&mut self.logprobs)?;
        ranks.complete(&mut self.entropies)
    }

    /// The samples of which some number is not finite.
    pub(crate) fn not_finite(&self, collected: &Collected) -> Vec<usize> {
        let slices = [&self.logprobs, &self.entropies];
        let mut found = Vec::new();
        for sample in self.samples.iter().copied() {
            let mut numbers = slices.iter().flat_map(|tokens| &tokens[collected.places(sample)]);
            if numbers.any(|number| !number.is_finite()) {
                found.push(sample);
            }
        }
        found
    }
}

impl Evaluated {
    /// The samples of which some number is not finite.
    pub(crate) fn not_finite(&self) -> Vec<usize> {
        let Self { samples, old_logprobs, old_entropies, old_values, .. } = self;
        let slices = [Some(old_logprobs), Some(old_entropies), old_values.as_ref()];
        let mut found = Vec::new();
        for sample in 0..samples.len() {
            let places = samples.places(sample);
            let mut numbers = slices.iter().flatten().flat_map(|tokens| &tokens[places.clone()]);
            if numbers.any(|number| !number.is_finite()) {
                found.push(sample);
            }
        }
        found
    }
}

/// Samples with everything that the losses are computed from.
#[derive(Debug)]
pub(crate) struct Experience {
    pub(crate) samples: Collected,
    /// `log π_old`, `[tokens]`.
    pub(crate) old_logprobs: Vec<f32>,
    /// The entropy of `π_old` where each token was drawn, in nats, `[tokens]`.
    pub(crate) old_entropies: Vec<f32>,
    /// `A`, `[tokens]`, whitened where that is asked for.
    pub(crate) advantages: Vec<f32>,
    /// What the critic learns from, where the algorithm has one.
    pub(crate) critic: Option<CriticTargets>,
    /// Weights of tokens that another distribution drew, `[tokens]`, where there is a correction.
    pub(crate) corrections: Option<Vec<f32>>,
    /// Tokens that are held back for the sake of the entropy, 1 for each, `[tokens]`, where some are.
    pub(crate) held_back: Option<Vec<f32>>,
    /// How far the tokens' distribution was from `π_old`, with or without a correction.
    pub(crate) correction_sums: CorrectionSums,
    /// Samples whose old numbers the first minibatch finds out.
    pub(crate) pending: Option<Pending>,
}

/// What a critic said, and what it should say.
#[derive(Debug)]
pub(crate) struct CriticTargets {
    /// `V_old`, `[tokens]`.
    pub(crate) old_values: Vec<f32>,
    /// `R = A + V_old`, before whitening, `[tokens]`.
    pub(crate) returns: Vec<f32>,
}

impl Collected {
    /// Takes the samples of a batch that change anything under this configuration.
    ///
    /// # Errors
    /// Samples without reference log-probs where the KL needs them, log-probs that are no numbers.
    pub(crate) fn new(batch: &Batch, config: &PpoConfig, settings: &Settings) -> Result<Self> {
        let takes_all = config.reads_filtered_samples();
        let unmasked = batch.samples().iter().filter(|sample| !is_masked(sample, config));
        let taken: Vec<&Sample> = unmasked.filter(|sample| takes_all || sample.weight() > 0.0).collect();
        let lengths: Vec<usize> =
            taken.iter().map(|sample| sample.rollout().response_tokens().len()).collect();
        let rollout_logprobs = rollout_logprobs(&taken, &lengths, config.rollout_support)
            .map_err(Error::in_batch(batch.id()))?;
        let siblings = Siblings::of(&taken, config).map_err(Error::in_batch(batch.id()))?;
        let mut collected = Self {
            ids: Vec::new(),
            sequences: Vec::new(),
            lengths,
            starts: Vec::new(),
            weights: Vec::new(),
            scores: Vec::new(),
            siblings,
            turns: (config.credit != Credit::Response).then(|| SampleTurns::of(&taken)),
            rollout_logprobs,
            ref_logprobs: ref_logprobs(&taken),
        };
        let mut start = 0;
        for sample in taken {
            let rollout = sample.rollout();
            let length = rollout.response_tokens().len();
            let score =
                shaped(&GroupScore::of(sample.scored()), config).map_err(Error::in_batch(batch.id()))?;
            collected.ids.push(rollout.id());
            let sequence = Sequence::stretches(&rollout.sequence(), &rollout.turns());
            collected.sequences.push(sequence.beginning_at(rollout.beginnings()));
            collected.starts.push(start);
            collected.weights.push(sample.weight());
            collected.scores.push(score as f32);
            start += length;
        }
        if collected.ref_logprobs.is_none() && settings.kl_coefficient() > 0.0 {
            let problem = "its samples have no ref_logprobs, which a KL coefficient above 0 needs: \
                           set kl_coefficient = 0 or run a reference model";
            return Err(Error::Batch { batch: batch.id(), problem: problem.to_owned() });
        }
        Ok(collected)
    }

    /// Number of samples.
    pub(crate) fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Number of response tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// All responses, for formulas.
    pub(crate) fn responses(&self) -> FormulaResult<Responses<'_>> {
        Responses::new(&self.lengths)
    }

    /// Whether the sample trains the policy.
    pub(crate) fn trains(&self, sample: usize) -> bool {
        self.weights[sample] > 0.0
    }

    /// The samples that train the policy.
    pub(crate) fn trained(&self) -> Vec<usize> {
        (0..self.len()).filter(|sample| self.trains(*sample)).collect()
    }

    /// The samples that a key of the configuration names.
    pub(crate) fn named(&self, samples: SamplesOn) -> Vec<usize> {
        match samples {
            SamplesOn::Filtered => self.trained(),
            SamplesOn::All => (0..self.len()).collect(),
        }
    }

    /// The lengths of the responses of `samples`.
    pub(crate) fn lengths_of(&self, samples: &[usize]) -> Vec<usize> {
        samples.iter().map(|sample| self.lengths[*sample]).collect()
    }

    /// The weights of `samples` in the policy loss.
    pub(crate) fn weights_of(&self, samples: &[usize]) -> Vec<f32> {
        samples.iter().map(|sample| self.weights[*sample]).collect()
    }

    /// The places of a sample in slices of tokens.
    pub(crate) fn places(&self, sample: usize) -> Range<usize> {
        self.starts[sample]..self.starts[sample] + self.lengths[sample]
    }

    /// Those places of a slice of tokens that belong to `samples`, one sample after the other.
    pub(crate) fn gather(&self, tokens: &[f32], samples: &[usize]) -> Vec<f32> {
        samples.iter().flat_map(|sample| &tokens[self.places(*sample)]).copied().collect()
    }

    /// Writes `values`, one sample after the other, to the places of `samples` in a slice of tokens.
    pub(crate) fn scatter(&self, tokens: &mut [f32], samples: &[usize], values: &[f32]) {
        let mut rest = values;
        for sample in samples {
            let (own, others) = rest.split_at(self.lengths[*sample]);
            tokens[self.places(*sample)].copy_from_slice(own);
            rest = others;
        }
    }

    /// Samples as items of a [`MicrobatchSplit`](crate::microbatch_split::MicrobatchSplit).
    pub(crate) fn split_items(&self, samples: impl IntoIterator<Item = usize>) -> Vec<SplitItem> {
        let samples = samples.into_iter();
        samples.map(|index| SplitItem { index, tokens: self.sequences[index].tokens() }).collect()
    }

    /// Samples as a micro-batch for this model; `None` without any.
    ///
    /// # Errors
    /// A token outside the model's vocabulary.
    pub(crate) fn microbatch(&self, samples: &[usize], model: &TrainableModel) -> Result<Option<Microbatch>> {
        if samples.is_empty() {
            return Ok(None);
        }
        let sequences: Vec<_> = samples.iter().map(|sample| &self.sequences[*sample]).collect();
        Microbatch::new(&sequences, model.config(), model.device(), |at| {
            format!("rollout {}", self.ids[samples[at]])
        })
        .map(Some)
    }
}

impl Experience {
    /// Takes over what the first minibatch found out, of all ranks.
    pub(crate) fn settle(&mut self, found: &Pending, correction: Correction) -> FormulaResult<()> {
        let Self { samples, old_logprobs, old_entropies, .. } = self;
        for places in found.samples.iter().map(|sample| samples.places(*sample)) {
            old_logprobs[places.clone()].copy_from_slice(&found.logprobs[places.clone()]);
            old_entropies[places.clone()].copy_from_slice(&found.entropies[places]);
        }
        let weights = correction.weights(samples.responses()?, old_logprobs, &samples.rollout_logprobs)?;
        self.corrections = (correction != Correction::None).then_some(weights.weights);
        self.correction_sums = weights.sums;
        Ok(())
    }

    /// The KL of the policy to the reference as responses see it: the mean over the samples that train of
    /// `Σ_t (log π_old − log π_ref)`. `None` without a reference.
    pub(crate) fn kl_to_ref(&self) -> Option<f64> {
        let reference = self.samples.ref_logprobs.as_ref()?;
        let trained = self.samples.trained();
        let places = trained.iter().flat_map(|sample| self.samples.places(*sample));
        let sum: f64 =
            places.map(|place| f64::from(self.old_logprobs[place]) - f64::from(reference[place])).sum();
        (!trained.is_empty()).then(|| sum / trained.len() as f64)
    }
}

/// Whether the sample takes no part because it was cut off and such do not train.
pub(crate) fn is_masked(sample: &Sample, config: &PpoConfig) -> bool {
    config.truncated == Truncated::Mask && is_truncated(sample)
}

/// Whether the response was cut off by the length limit.
pub(crate) fn is_truncated(sample: &Sample) -> bool {
    sample.rollout().finish_reason() == FinishReason::Length
}

/// Log-probs of the drawn tokens over the whole vocabulary. Where the sampler truncated its distribution and
/// says so, the mass that was left is put back.
fn rollout_logprobs(
    samples: &[&Sample],
    lengths: &[usize],
    support: RolloutSupport,
) -> FormulaResult<Vec<f32>> {
    let rollouts = samples.iter().map(|sample| sample.rollout());
    let logprobs: Vec<f32> =
        rollouts.clone().flat_map(|rollout| rollout.rollout_logprobs()).copied().collect();
    if support == RolloutSupport::Full {
        return Ok(logprobs);
    }
    let mut log_masses = Vec::with_capacity(logprobs.len());
    for rollout in rollouts {
        match rollout.surviving_mass() {
            Some(masses) => log_masses.extend(masses.iter().map(|mass| mass.ln().min(0.0))),
            None => log_masses.resize(log_masses.len() + rollout.response_tokens().len(), 0.0),
        }
    }
    full_support_logprobs(Responses::new(lengths)?, &logprobs, &log_masses)
}

/// Log-probs under the reference, if every sample has them.
fn ref_logprobs(samples: &[&Sample]) -> Option<Vec<f32>> {
    let complete = samples
        .iter()
        .all(|sample| sample.scored().ref_logprobs().len() == sample.rollout().response_tokens().len());
    complete.then(|| samples.iter().flat_map(|sample| sample.scored().ref_logprobs()).copied().collect())
}
