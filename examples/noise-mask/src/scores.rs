//! How good a classifier's answers are.

/// Shares of right answers.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct Scores {
    /// The share of images whose class was found.
    pub(crate) accuracy: f64,
    /// The mean over classes of the harmonic mean of precision and recall.
    pub(crate) macro_f1: f64,
}

impl Scores {
    /// Of answers against the truth, one for each image. A class that is neither there nor answered is left
    /// out of the mean of F1, as scikit-learn does; of no images both are 0.
    pub(crate) fn of(answers: &[i64], truth: &[i64]) -> Self {
        let right = answers.iter().zip(truth).filter(|(answer, class)| answer == class).count();
        let mut classes: Vec<i64> = answers.iter().chain(truth).copied().collect();
        classes.sort_unstable();
        classes.dedup();
        let f1: f64 = classes.iter().map(|class| f1_of_class(*class, answers, truth)).sum();
        Self {
            accuracy: right as f64 / truth.len().max(1) as f64,
            macro_f1: f1 / classes.len().max(1) as f64,
        }
    }
}

/// 2 · hits / (answered + there), of a class that is one of the two at least once.
fn f1_of_class(class: i64, answers: &[i64], truth: &[i64]) -> f64 {
    let hits = answers.iter().zip(truth).filter(|pair| *pair == (&class, &class)).count();
    let answered = answers.iter().filter(|answer| **answer == class).count();
    let there = truth.iter().filter(|real| **real == class).count();
    2.0 * hits as f64 / (answered + there) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macro_f1_is_that_of_scikit_learn() {
        // sklearn.metrics.f1_score([0, 1, 2, 0, 1, 2, 3], [0, 2, 1, 0, 0, 1, 3], average="macro") with
        // scikit-learn 1.9.1.
        let scores = Scores::of(&[0, 2, 1, 0, 0, 1, 3], &[0, 1, 2, 0, 1, 2, 3]);
        assert!((scores.macro_f1 - 0.45).abs() < 1e-12, "{scores:?}");
        assert!((scores.accuracy - 3.0 / 7.0).abs() < 1e-12, "{scores:?}");
        assert_eq!(Scores::of(&[], &[]), Scores { accuracy: 0.0, macro_f1: 0.0 });
    }
}
