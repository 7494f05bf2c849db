//! Which responses to which problems passed.

use sandbox::{Grade, pass_at_k};

use crate::grading;
use crate::rate::Rate;

/// By problem and response: whether it passed the hidden tests, none where it could not be judged.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcomes(Vec<Vec<Option<bool>>>);

impl Outcomes {
    /// Of what the sandbox said.
    pub(super) fn of(grades: &[Vec<Grade>]) -> Self {
        Self(grades.iter().map(|group| group.iter().map(grading::passed).collect()).collect())
    }

    /// The share of one problem's responses that passed, of those that could be judged.
    pub(super) fn share(&self, problem: usize) -> Option<f64> {
        let (judged, passed) = counts(self.0.get(problem)?);
        (judged > 0).then(|| passed as f64 / judged as f64)
    }

    /// The mean over problems of the share that passed: pass@1.
    pub(super) fn rate(&self) -> Option<Rate> {
        Rate::of(&self.shares(0..self.problems()))
    }

    /// The same over some problems.
    pub(super) fn rate_of(&self, problems: &[usize]) -> Option<Rate> {
        Rate::of(&self.shares(problems.iter().copied()))
    }

    fn shares(&self, problems: impl Iterator<Item = usize>) -> Vec<f64> {
        problems.filter_map(|problem| self.share(problem)).collect()
    }

    /// pass@k by the unbiased estimator (arXiv 2107.03374), over problems with at least `k` judged responses.
    pub(super) fn pass_at(&self, k: u64) -> Option<Rate> {
        let rates = self.0.iter().filter_map(|group| {
            let (judged, passed) = counts(group);
            pass_at_k(judged, passed, k)
        });
        Rate::of(&rates.collect::<Vec<f64>>())
    }

    /// How much larger the share of `after` is, problem by problem: both had the same problems.
    pub(super) fn gain(&self, after: &Self) -> Option<Rate> {
        let gains =
            (0..self.problems()).filter_map(|problem| Some(after.share(problem)? - self.share(problem)?));
        Rate::of(&gains.collect::<Vec<f64>>())
    }

    pub(super) fn problems(&self) -> usize {
        self.0.len()
    }

    /// Responses per problem.
    pub(super) fn samples(&self) -> usize {
        self.0.first().map_or(0, Vec::len)
    }

    /// Responses that could not be judged; they count in no figure.
    pub(super) fn unjudged(&self) -> usize {
        self.0.iter().flatten().filter(|outcome| outcome.is_none()).count()
    }

    /// 1 for a response that passed, 0 for one that did not.
    pub(super) fn of_response(&self, problem: usize, index: usize) -> Option<f64> {
        (*self.0.get(problem)?.get(index)?).map(|passed| f64::from(u8::from(passed)))
    }
}

/// Responses that could be judged, and those of them that passed.
fn counts(group: &[Option<bool>]) -> (u64, u64) {
    let judged = group.iter().flatten();
    (judged.clone().count() as u64, judged.filter(|passed| **passed).count() as u64)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Outcomes written as texts of `+` (passed), `-` (not) and `?` (not judged), one for each problem.
    pub(in super::super) fn outcomes(groups: &[&str]) -> Outcomes {
        let outcome = |mark: char| match mark {
            '+' => Some(true),
            '-' => Some(false),
            _ => None,
        };
        Outcomes(groups.iter().map(|group| group.chars().map(outcome).collect()).collect())
    }

    #[test]
    fn what_was_not_judged_counts_nowhere() {
        let found = outcomes(&["+?", "--", "??"]);
        assert_eq!((found.share(0), found.share(1), found.share(2)), (Some(1.0), Some(0.0), None));
        let rate = found.rate().unwrap();
        assert_eq!((rate.mean, rate.problems, found.unjudged()), (0.5, 2, 3));
    }

    #[test]
    fn pass_at_k_is_the_unbiased_estimate() {
        // One of four passes: 1 - C(3, 2) / C(4, 2) = 1/2.
        assert_eq!(outcomes(&["+---"]).pass_at(2).unwrap().mean, 0.5);
        assert!(outcomes(&["+-"]).pass_at(3).is_none());
    }

    #[test]
    fn a_gain_is_taken_problem_by_problem() {
        let gain = outcomes(&["+-", "--"]).gain(&outcomes(&["+?", "+-"])).unwrap();
        assert_eq!((gain.mean, gain.standard_error), (0.5, 0.0));
    }
}
