//! What a step knows before it learns: old log-probs, entropies and values of every sample, at the weights it begins with.
//!
//! The first minibatch trains at the same weights. Its forward passes are kept for that, where there is room.

use std::borrow::Cow;
use std::collections::VecDeque;

use model::LogprobOptions;

use super::experience::Experience;
use super::minibatch::{Division, Minibatch, Part};
use super::trainer::Trainer;
use crate::error::Result;
use crate::microbatch::{Microbatch, Plan};
use crate::trainee::{Numbers, Passed, Request, Trainee};

/// Forward passes that wait for their backward passes, one for each round of a plan from the first on.
pub(super) type KeptPasses = VecDeque<Option<Passed>>;

/// Those of the first minibatch: of all its rounds, or none.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) policy: KeptPasses,
    pub(super) critic: KeptPasses,
}

/// One model's part of every minibatch of the first pass.
struct Parts<'a> {
    trainee: &'a Trainee,
    request: Request,
    parts: Vec<&'a Part>,
}

impl Trainer {
    /// Computes old log-probs, entropies and values, each rank its part. The micro-batches are those of the first pass, so that
    /// the first minibatch sees ratios of exactly 1.
    pub(super) fn prepare(&self, experience: &mut Experience, minibatches: &[Minibatch]) -> Result<Kept> {
        let options = LogprobOptions { temperature: self.temperature, entropy: true };
        let mut logprobs = vec![0.0; experience.old_logprobs.len()];
        let (mut entropies, mut values) = (logprobs.clone(), logprobs.clone());
        let mut kept = Kept::default();
        let mut room = self.config.microbatch_tokens;
        let policy = Parts {
            trainee: &self.policy,
            request: Request::Logprobs(options),
            parts: minibatches.iter().map(|minibatch| &minibatch.policy).collect(),
        };
        kept.policy = self.pass(&policy, experience, &mut room, |samples, numbers| {
            experience.scatter(&mut logprobs, samples, &numbers.values);
            experience.scatter(&mut entropies, samples, numbers.entropies.as_deref().unwrap_or_default());
        })?;
        if let Some(trainee) = &self.critic {
            let parts = minibatches.iter().map(|minibatch| &minibatch.critic).collect();
            let critic = Parts { trainee, request: Request::Scalars, parts };
            kept.critic = self.pass(&critic, experience, &mut room, |samples, numbers| {
                experience.scatter(&mut values, samples, &numbers.values);
            })?;
        }
        self.ranks.complete(&mut [&mut logprobs, &mut entropies, &mut values])?;
        (experience.old_logprobs, experience.old_entropies, experience.old_values) =
            (logprobs, entropies, values);
        Ok(kept)
    }

    /// Passes all samples forward and returns the passes of the first minibatch, where they are kept.
    fn pass(
        &self,
        model: &Parts<'_>,
        experience: &Experience,
        room: &mut usize,
        mut take: impl FnMut(&[usize], &Numbers),
    ) -> Result<KeptPasses> {
        let Parts { trainee, request, ref parts } = *model;
        let keep = model.reserve(experience, room);
        let mut kept = KeptPasses::new();
        for (number, plan) in self.plans(parts, experience).iter().enumerate() {
            for samples in plan.of_rank(self.ranks.rank()) {
                let microbatch = microbatch(trainee, experience, samples)?;
                if keep && number == 0 {
                    let passed = trainee.forward(&self.ranks, microbatch, request)?;
                    if let Some(passed) = &passed {
                        take(samples, &passed.numbers);
                    }
                    kept.push_back(passed);
                } else if let Some(numbers) = trainee.infer(&self.ranks, microbatch, request)? {
                    take(samples, &numbers);
                }
            }
        }
        Ok(kept)
    }

    /// Divisions that cover every sample: those of the minibatches, and one of the samples that are in none of them.
    fn plans<'a>(&self, parts: &[&'a Part], experience: &Experience) -> Vec<Cow<'a, Plan>> {
        let mut plans: Vec<Cow<'a, Plan>> = parts.iter().map(|part| Cow::Borrowed(&part.plan)).collect();
        let mut is_covered = vec![false; experience.len()];
        for sample in plans.iter().flat_map(|plan| plan.items()) {
            is_covered[sample] = true;
        }
        let rest = (0..experience.len()).filter(|sample| !is_covered[*sample]);
        let division = Division { config: &self.config, world_size: self.ranks.world_size() };
        plans.push(Cow::Owned(division.plan(experience, rest)));
        plans
    }
}

impl Parts<'_> {
    /// Takes the room that the first minibatch's passes need, if it is there and they can be kept: what is kept of both models
    /// stays within the tokens of one micro-batch. Says the same on every rank.
    fn reserve(&self, experience: &Experience, room: &mut usize) -> bool {
        let Some(first) = self.parts.first().filter(|_| self.trainee.keeps_graphs()) else { return false };
        let tokens = first.plan.most_of_a_rank(|sample| experience.sequences[sample].tokens());
        let left = room.checked_sub(tokens);
        *room = left.unwrap_or(*room);
        left.is_some()
    }
}

/// Samples as a micro-batch; `None` without any.
pub(super) fn microbatch(
    trainee: &Trainee,
    experience: &Experience,
    samples: &[usize],
) -> Result<Option<Microbatch>> {
    if samples.is_empty() {
        return Ok(None);
    }
    let sequences: Vec<_> = samples.iter().map(|sample| &experience.sequences[*sample]).collect();
    let name = |at: usize| format!("rollout {}", experience.ids[samples[at]]);
    Microbatch::new(&sequences, trainee.config(), trainee.device(), name).map(Some)
}
