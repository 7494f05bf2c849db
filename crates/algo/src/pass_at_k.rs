//! The unbiased estimate of pass@k.

use crate::error::{Error, require};

/// `pass@k = 1 − C(n − c, k) / C(n, k)` for one problem with `samples` = n programs of which `correct` = c pass: the chance
/// that one of `k` of them, drawn without replacement, passes (Chen et al. 2021, arXiv 2107.03374, Eq. 1), in the product
/// form that does not overflow. Average over problems.
///
/// # Errors
/// `k` of 0, fewer samples than `k`, or more correct programs than samples.
pub fn pass_at_k(samples: u64, correct: u64, k: u64) -> Result<f64, Error> {
    require(k > 0, "k", k as f64, "1 or more")?;
    require(samples >= k, "samples", samples as f64, "at least k: pass@k is not defined for fewer")?;
    require(correct <= samples, "correct", correct as f64, "at most the number of samples")?;
    // Where fewer than k are wrong, the factor at i + 1 = k is 0.
    let all_wrong: f64 = (samples - correct..samples).map(|i| 1.0 - k as f64 / (i + 1) as f64).product();
    Ok(1.0 - all_wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        for (samples, correct, k, expected) in [
            (5, 0, 1, 0.0),
            (5, 2, 1, 0.4),
            (5, 2, 2, 1.0 - 3.0 / 10.0),
            (5, 4, 2, 1.0),
            (10, 3, 5, 1.0 - 21.0 / 252.0),
            (200, 1, 100, 0.5),
        ] {
            let found = pass_at_k(samples, correct, k).unwrap();
            assert!((found - expected).abs() < 1e-12, "pass@{k} of {correct}/{samples}: {found}");
        }
    }

    #[test]
    fn undefined_cases_are_errors() {
        assert!(pass_at_k(5, 2, 0).is_err());
        assert!(pass_at_k(5, 2, 6).is_err());
        assert!(pass_at_k(5, 6, 1).is_err());
    }
}
