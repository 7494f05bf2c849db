//! The randomness of one group: a stream that depends on the seed, the prompt and its rollouts, and on
//! nothing else.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Random numbers for one group.
pub(super) struct GroupRandom(ChaCha8Rng);

impl GroupRandom {
    /// The stream of this group. `rollout_ids` must come in a canonical order; each field is hashed with its
    /// length, so that no two groups share a stream by the way their ids run together.
    pub(super) fn new<'a>(seed: u64, prompt_id: &'a str, rollout_ids: impl Iterator<Item = &'a str>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("sluice filtration lots 2025");
        hasher.update(&seed.to_le_bytes());
        for id in std::iter::once(prompt_id).chain(rollout_ids) {
            hasher.update(&(id.len() as u64).to_le_bytes());
            hasher.update(id.as_bytes());
        }
        Self(ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()))
    }

    /// A number to break ties with.
    pub(super) fn tie_breaker(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `0..1`, one of 2^53 evenly spaced ones.
    pub(super) fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A place in `0..count`, for `count` of 1 or more; each within 2^-64 of equally likely.
    pub(super) fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.0.next_u64()) * count as u128) >> 64) as usize
    }

    /// A place drawn with these probabilities, which sum to 1 within rounding and are not all 0.
    pub(super) fn categorical(&mut self, probabilities: &[f64]) -> usize {
        let mut left = self.uniform();
        let mut last = 0;
        for (place, &probability) in
            probabilities.iter().enumerate().filter(|(_, probability)| **probability > 0.0)
        {
            if left < probability {
                return place;
            }
            left -= probability;
            last = place;
        }
        last
    }
}
