//! The random numbers of a response.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Number `index` of the stream of `seed`, uniform in [0, 1), with 53 random bits.
///
/// The generator counts (ChaCha with 8 rounds; Bernstein 2008), so a number is a function of seed and index
/// alone: it does not matter what was drawn before, by whom, or whether the response was interrupted.
pub(crate) fn uniform(seed: u64, index: usize) -> f64 {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    // One number is two words of 32 bits.
    generator.set_word_pos(2 * index as u128);
    (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_stream_in_any_order() {
        let mut generator = ChaCha8Rng::seed_from_u64(5);
        let stream: Vec<f64> =
            (0..40).map(|_| (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64).collect();
        for index in [39, 0, 7, 8, 9, 7] {
            assert_eq!(uniform(5, index), stream[index]);
        }
        assert_ne!(uniform(6, 0), stream[0]);
    }

    #[test]
    fn numbers_are_uniform() {
        let count = 20_000;
        let numbers: Vec<f64> = (0..count).map(|seed| uniform(seed, 3)).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        let mean = numbers.iter().sum::<f64>() / count as f64;
        // The deviation of the mean is 1 / sqrt(12 count) = 0.002.
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }
}
