//! The minibatches of a pass over the batch, each with its totals and its division among the ranks.

use algo::{Responses, Totals};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use types::BatchId;

use super::experience::Experience;
use crate::config::{PpoConfig, SamplesOn};
use crate::error::{Error, Result};
use crate::microbatch::Plan;

/// One model's part of a minibatch.
#[derive(Debug)]
pub(crate) struct Part {
    /// Whether there is anything to learn from.
    pub(crate) is_empty: bool,
    /// Denominators of the loss, over all ranks.
    pub(crate) totals: Totals,
    /// Who computes what.
    pub(crate) plan: Plan,
}

/// What one optimizer step of each model is made from.
#[derive(Debug)]
pub(crate) struct Minibatch {
    /// The samples with weight.
    pub(crate) policy: Part,
    /// What the critic trains on.
    pub(crate) critic: Part,
}

/// How a minibatch is divided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Division<'a> {
    pub(crate) config: &'a PpoConfig,
    pub(crate) world_size: usize,
}

impl Division<'_> {
    /// The division of some samples among micro-batches.
    pub(crate) fn plan(&self, experience: &Experience, samples: impl Iterator<Item = usize>) -> Plan {
        Plan::new(&experience.sizes(samples), self.world_size, self.config.microbatch_tokens)
    }

    fn part(&self, experience: &Experience, samples: &[usize], weights: &[f32]) -> Result<Part> {
        let lengths = experience.lengths_of(samples);
        let totals = Responses::new(&lengths).and_then(|responses| Totals::of(responses, weights));
        let totals = totals.map_err(Error::numbers(|| "a minibatch's weights".to_owned()))?;
        let plan = self.plan(experience, samples.iter().copied());
        Ok(Part { is_empty: samples.is_empty(), totals, plan })
    }

    /// The minibatches of one pass, in the order of training.
    pub(crate) fn minibatches(
        &self,
        experience: &Experience,
        batch: BatchId,
        pass: usize,
    ) -> Result<Vec<Minibatch>> {
        let trains_critic_on_all = self.config.needs_critic() && self.config.critic_on == SamplesOn::All;
        let mut order: Vec<usize> =
            if trains_critic_on_all { (0..experience.len()).collect() } else { experience.trained() };
        if self.config.shuffle {
            order.shuffle(&mut rng(self.config.seed, batch, pass));
        }
        let of_chunk = |chunk: &[usize]| {
            let trained: Vec<usize> =
                chunk.iter().copied().filter(|sample| experience.trains(*sample)).collect();
            let weights: Vec<f32> = trained.iter().map(|sample| experience.weights[*sample]).collect();
            let policy = self.part(experience, &trained, &weights)?;
            let critic = if trains_critic_on_all {
                self.part(experience, chunk, &vec![1.0; chunk.len()])?
            } else {
                self.part(experience, &trained, &weights)?
            };
            Ok(Minibatch { policy, critic })
        };
        order.chunks(self.config.minibatch_size).map(of_chunk).collect()
    }
}

/// The generator of one pass's order: a function of the seed, the batch and the pass, so that a resumed run goes on with the
/// order it would have had.
fn rng(seed: u64, batch: BatchId, pass: usize) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (place, word) in key.chunks_exact_mut(8).zip([seed, batch.0, pass as u64, 0]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}
