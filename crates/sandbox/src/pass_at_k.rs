//! The estimator of pass@k.

/// Unbiased estimate of the probability that at least one of `k` responses is correct, from `samples`
/// responses of which `correct` are: `1 - C(n - c, k) / C(n, k)`, computed as a product so that nothing
/// overflows (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, section
/// 2.1).
///
/// `None` where it is not defined: `k` is 0 or larger than `samples`, or `correct` is larger than `samples`.
pub fn pass_at_k(samples: u64, correct: u64, k: u64) -> Option<f64> {
    if k == 0 || k > samples || correct > samples {
        return None;
    }
    if samples - correct < k {
        return Some(1.0);
    }
    #[expect(clippy::cast_precision_loss, reason = "sample counts are far below 2^53")]
    let all_wrong: f64 = (samples - correct + 1..=samples).map(|i| 1.0 - k as f64 / i as f64).product();
    Some(1.0 - all_wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, with exact binomials.
    fn by_definition(samples: u64, correct: u64, k: u64) -> f64 {
        let choose = |n: u64, k: u64| {
            (0..k).fold(1_u128, |product, i| product * u128::from(n.saturating_sub(i)) / u128::from(i + 1))
        };
        1.0 - choose(samples - correct, k) as f64 / choose(samples, k) as f64
    }

    #[test]
    fn equals_the_definition_for_all_small_arguments() {
        for samples in 1..=20 {
            for correct in 0..=samples {
                for k in 1..=samples {
                    let (got, want) =
                        (pass_at_k(samples, correct, k).unwrap(), by_definition(samples, correct, k));
                    assert!((got - want).abs() < 1e-12, "n={samples} c={correct} k={k}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn one_sample_each_is_the_fraction_that_passed() {
        assert_eq!(pass_at_k(200, 50, 1).map(|p| (p * 1e12).round() / 1e12), Some(0.25));
    }

    #[test]
    fn what_is_not_defined_is_none() {
        assert_eq!((pass_at_k(5, 1, 0), pass_at_k(5, 1, 6), pass_at_k(5, 6, 1)), (None, None, None));
    }
}
