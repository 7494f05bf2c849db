//! The minibatches of a pass over the batch, each with its totals and its split into micro-batches.

use algo::{Responses, Totals};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use types::BatchId;

use super::experience::Collected;
use super::trainer::Trainer;
use crate::config::SamplesOn;
use crate::error::{Error, Result};
use crate::microbatch_split::MicrobatchSplit;
use crate::trainable_model::ForwardPass;

/// What one optimizer step of each model is made from.
#[derive(Debug)]
pub(crate) struct Minibatch {
    /// The samples with weight.
    pub(crate) policy: ModelMinibatch,
    /// What the critic trains on.
    pub(crate) critic: ModelMinibatch,
}

/// A minibatch as one model trains on it.
#[derive(Debug)]
pub(crate) struct ModelMinibatch {
    /// Denominators of the loss, over all ranks.
    pub(crate) totals: Totals,
    /// Who computes what.
    pub(crate) split: MicrobatchSplit,
    /// Forward passes of this rank's micro-batches that have been made already, at the weights that train: of
    /// all rounds, or of none.
    pub(crate) kept: Vec<Option<ForwardPass>>,
}

impl Trainer {
    /// The minibatches of one pass over the samples, in the order of training. Each has `minibatch_size`
    /// samples of those that train; the last may have fewer.
    ///
    /// # Errors
    /// Weights that are no numbers.
    pub(super) fn minibatches(
        &self,
        samples: &Collected,
        batch: BatchId,
        pass: usize,
    ) -> Result<Vec<Minibatch>> {
        let trains_critic_on_all = self.config.needs_critic() && self.config.critic_on == SamplesOn::All;
        let mut order =
            samples.named(if trains_critic_on_all { SamplesOn::All } else { SamplesOn::Filtered });
        if self.config.shuffle {
            order.shuffle(&mut pass_rng(self.config.seed, batch, pass));
        }
        let mut minibatches = Vec::new();
        for chunk in order.chunks(self.config.minibatch_size) {
            let trained: Vec<usize> =
                chunk.iter().copied().filter(|sample| samples.trains(*sample)).collect();
            let weights = samples.weights_of(&trained);
            let policy = self.model_minibatch(samples, &trained, &weights)?;
            let critic = if trains_critic_on_all {
                self.model_minibatch(samples, chunk, &vec![1.0; chunk.len()])?
            } else {
                self.model_minibatch(samples, &trained, &weights)?
            };
            minibatches.push(Minibatch { policy, critic });
        }
        Ok(minibatches)
    }

    /// How some samples are split into micro-batches.
    pub(super) fn split(
        &self,
        samples: &Collected,
        chosen: impl IntoIterator<Item = usize>,
    ) -> MicrobatchSplit {
        let items = samples.split_items(chosen);
        MicrobatchSplit::new(&items, self.ranks.world_size(), self.config.microbatch_tokens)
    }

    fn model_minibatch(
        &self,
        samples: &Collected,
        chosen: &[usize],
        weights: &[f32],
    ) -> Result<ModelMinibatch> {
        let lengths = samples.lengths_of(chosen);
        let totals = Responses::new(&lengths).and_then(|responses| Totals::of(responses, weights));
        let totals = totals.map_err(Error::numbers(|| "a minibatch's weights".to_owned()))?;
        let split = self.split(samples, chosen.iter().copied());
        Ok(ModelMinibatch { totals, split, kept: Vec::new() })
    }
}

/// The generator of one pass's order: a function of the seed, the batch and the pass, so that a resumed run
/// goes on with the order it would have had.
fn pass_rng(seed: u64, batch: BatchId, pass: usize) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (place, word) in key.chunks_exact_mut(8).zip([seed, batch.0, pass as u64, 0]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}
