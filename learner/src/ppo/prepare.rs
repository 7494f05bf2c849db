//! What a step knows before it learns: old log-probs, entropies and values of every sample, at the weights it
//! begins with.
//!
//! The first minibatch trains at the same weights. Where no advantage depends on what the policy says (no
//! critic, no KL in the rewards), its own forward passes are all that is needed, and it is not asked before.
//! Elsewhere they are kept for it, where there is room.

use algo::KlPlacement;
use model::LogprobOptions;

use super::experience::{Collected, Evaluated, Pending};
use super::minibatch::{Minibatch, ModelMinibatch};
use super::trainer::Trainer;
use crate::error::Result;
use crate::microbatch_split::MicrobatchSplit;
use crate::ranks::Ranks;
use crate::trainable_model::{ForwardPass, HeadOutputs, HeadRequest, TrainableModel};

/// The forward passes of all samples through one model.
struct Evaluation<'a> {
    ranks: &'a Ranks,
    model: &'a TrainableModel,
    request: HeadRequest,
    samples: &'a Collected,
    /// Whether the first minibatch's are made when it trains.
    is_first_deferred: bool,
    /// The outputs so far, `[tokens]`; 0 where another rank computes.
    values: Vec<f32>,
    /// The entropies so far, `[tokens]`; 0 where another rank computes, or none are asked for.
    entropies: Vec<f32>,
}

/// Tokens whose forward passes may still be kept: those of one micro-batch, over both models.
struct KeepBudget {
    tokens: usize,
}

/// What becomes of the forward passes of the first minibatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstPasses {
    /// They wait for their backward passes.
    Kept,
    /// They are made again.
    Dropped,
    /// They are made when it trains.
    Deferred,
}

impl Trainer {
    /// Computes old log-probs, entropies and values, each rank its micro-batches. These are those of the
    /// first pass, so that the first minibatch sees ratios of exactly 1; it is given its forward passes where
    /// they are kept, and makes them itself where nothing needs them before.
    ///
    /// # Errors
    /// A token outside the vocabulary, a rank that is lost.
    pub(super) fn prepare(&self, samples: Collected, minibatches: &mut [Minibatch]) -> Result<Evaluated> {
        let mut budget = KeepBudget { tokens: self.config.microbatch_tokens };
        let options = LogprobOptions { temperature: self.temperature, entropy: true };
        let mut policy = self.evaluation(&self.policy, HeadRequest::Logprobs(options), &samples);
        policy.is_first_deferred = !self.estimates_from_old_logprobs();
        let deferred = minibatches.first().filter(|_| policy.is_first_deferred);
        let deferred = deferred.map(|first| first.policy.split.sorted_indices());
        let policy_minibatches = minibatches.iter_mut().map(|minibatch| &mut minibatch.policy).collect();
        self.evaluate(&mut policy, policy_minibatches, &mut budget)?;
        let (mut old_logprobs, mut old_entropies) = (policy.values, policy.entropies);
        let mut old_values = None;
        if let Some(critic) = &self.critic {
            let mut critic = self.evaluation(critic, HeadRequest::Scalars, &samples);
            let critic_minibatches = minibatches.iter_mut().map(|minibatch| &mut minibatch.critic).collect();
            self.evaluate(&mut critic, critic_minibatches, &mut budget)?;
            old_values = Some(critic.values);
        }
        self.ranks.complete(&mut old_logprobs)?;
        self.ranks.complete(&mut old_entropies)?;
        if let Some(values) = &mut old_values {
            self.ranks.complete(values)?;
        }
        for places in deferred.iter().flatten().map(|sample| samples.places(*sample)) {
            old_logprobs[places.clone()].copy_from_slice(&samples.rollout_logprobs[places]);
        }
        let pending = deferred.map(|deferred| Pending::new(&samples, deferred));
        Ok(Evaluated { samples, old_logprobs, old_entropies, old_values, pending })
    }

    /// Whether rewards or advantages need what the policy says before the update. Corrections do not: each
    /// token's or response's is its own.
    fn estimates_from_old_logprobs(&self) -> bool {
        let is_kl_in_rewards = matches!(self.settings.kl, KlPlacement::Reward { .. });
        self.critic.is_some() || (is_kl_in_rewards && self.controller.coefficient() != 0.0)
    }

    fn evaluation<'a>(
        &'a self,
        model: &'a TrainableModel,
        request: HeadRequest,
        samples: &'a Collected,
    ) -> Evaluation<'a> {
        let zeros = vec![0.0; samples.tokens()];
        Evaluation {
            ranks: &self.ranks,
            model,
            request,
            samples,
            is_first_deferred: false,
            values: zeros.clone(),
            entropies: zeros,
        }
    }

    /// Passes all samples forward: those of the minibatches, and those that are in none of them.
    fn evaluate(
        &self,
        evaluation: &mut Evaluation<'_>,
        minibatches: Vec<&mut ModelMinibatch>,
        budget: &mut KeepBudget,
    ) -> Result<()> {
        let mut is_covered = vec![false; evaluation.samples.len()];
        for sample in minibatches.iter().flat_map(|minibatch| minibatch.split.indices()) {
            is_covered[sample] = true;
        }
        let rest = (0..is_covered.len()).filter(|sample| !is_covered[*sample]);
        let rest = self.split(evaluation.samples, rest);

        let mut minibatches = minibatches.into_iter();
        if let Some(first) = minibatches.next() {
            match evaluation.first_passes(&first.split, budget) {
                FirstPasses::Kept => first.kept = evaluation.forward(&first.split)?,
                FirstPasses::Dropped => evaluation.infer(&first.split)?,
                FirstPasses::Deferred => {}
            }
        }
        for minibatch in minibatches {
            evaluation.infer(&minibatch.split)?;
        }
        evaluation.infer(&rest)
    }
}

impl Evaluation<'_> {
    /// Whether the first minibatch's passes are kept: if the model keeps graphs, and there is room for all of
    /// them. Says the same on every rank.
    fn first_passes(&self, split: &MicrobatchSplit, budget: &mut KeepBudget) -> FirstPasses {
        if self.is_first_deferred {
            return FirstPasses::Deferred;
        }
        if !self.model.keeps_graphs() {
            return FirstPasses::Dropped;
        }
        let needed = split.max_rank_tokens(|sample| self.samples.sequences[sample].tokens());
        match budget.tokens.checked_sub(needed) {
            Some(left) => {
                budget.tokens = left;
                FirstPasses::Kept
            }
            None => FirstPasses::Dropped,
        }
    }

    /// Computes the outputs of this rank's micro-batches alone.
    fn infer(&mut self, split: &MicrobatchSplit) -> Result<()> {
        for samples in split.of_rank(self.ranks.rank()) {
            let microbatch = self.samples.microbatch(samples, self.model)?;
            if let Some(outputs) = self.model.infer(self.ranks, microbatch, self.request)? {
                self.note(samples, &outputs);
            }
        }
        Ok(())
    }

    /// Computes the outputs of this rank's micro-batches and returns their forward passes, one for each
    /// round.
    fn forward(&mut self, split: &MicrobatchSplit) -> Result<Vec<Option<ForwardPass>>> {
        let mut passes = Vec::new();
        for samples in split.of_rank(self.ranks.rank()) {
            let microbatch = self.samples.microbatch(samples, self.model)?;
            let pass = self.model.forward(self.ranks, microbatch, self.request)?;
            if let Some(pass) = &pass {
                self.note(samples, &pass.outputs);
            }
            passes.push(pass);
        }
        Ok(passes)
    }

    fn note(&mut self, samples: &[usize], outputs: &HeadOutputs) {
        self.samples.scatter(&mut self.values, samples, &outputs.values);
        if let Some(entropies) = &outputs.entropies {
            self.samples.scatter(&mut self.entropies, samples, entropies);
        }
    }
}
