//! A number for each response to each problem.

use sandbox::pass_at_k;

use crate::rate::Rate;

/// By problem and response; none where the response could not be judged.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Numbers(pub(super) Vec<Vec<Option<f64>>>);

impl Numbers {
    /// The mean over a problem's responses, of those that have a number.
    fn mean(&self, problem: usize) -> Option<f64> {
        let known: Vec<f64> = self.0.get(problem)?.iter().flatten().copied().collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }

    /// The mean over problems of their means; of outcomes it is pass@1.
    pub(super) fn rate(&self) -> Option<Rate> {
        Rate::of(&(0..self.0.len()).filter_map(|problem| self.mean(problem)).collect::<Vec<f64>>())
    }

    /// The same over some problems.
    pub(super) fn rate_of(&self, problems: &[usize]) -> Option<Rate> {
        Rate::of(&problems.iter().filter_map(|problem| self.mean(*problem)).collect::<Vec<f64>>())
    }

    /// pass@k of outcomes by the unbiased estimator (arXiv 2107.03374), over problems with at least `k`
    /// responses that could be judged; an outcome of 1 has passed.
    pub(super) fn pass_at(&self, k: u64) -> Option<Rate> {
        let rates = self.0.iter().filter_map(|group| {
            let judged = group.iter().flatten().count() as u64;
            let passed = group.iter().flatten().filter(|outcome| **outcome >= 1.0).count() as u64;
            pass_at_k(judged, passed, k)
        });
        Rate::of(&rates.collect::<Vec<f64>>())
    }

    /// How much larger the mean of `after` is, problem by problem: both had the same problems.
    pub(super) fn gain(&self, after: &Self) -> Option<Rate> {
        let gains = (0..self.0.len()).filter_map(|problem| Some(after.mean(problem)? - self.mean(problem)?));
        Rate::of(&gains.collect::<Vec<f64>>())
    }

    /// Responses per problem; to some there may be none.
    pub(super) fn samples(&self) -> usize {
        self.0.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Responses without a number.
    pub(super) fn unknown(&self) -> usize {
        self.0.iter().flatten().filter(|number| number.is_none()).count()
    }

    /// That of one response.
    pub(super) fn of(&self, problem: usize, index: usize) -> Option<f64> {
        *self.0.get(problem)?.get(index)?
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Outcomes written as texts of `+` (passed), `-` (not) and `?` (not judged), one for each problem.
    pub(in super::super) fn outcomes(groups: &[&str]) -> Numbers {
        Numbers(groups.iter().map(|group| group.chars().map(outcome).collect()).collect())
    }

    fn outcome(mark: char) -> Option<f64> {
        match mark {
            '+' => Some(1.0),
            '-' => Some(0.0),
            _ => None,
        }
    }

    #[test]
    fn what_was_not_judged_counts_nowhere() {
        let found = outcomes(&["+?", "--", "??"]);
        let rate = found.rate().unwrap();
        assert_eq!((rate.mean, rate.problems, found.unknown()), (0.5, 2, 3));
        assert_eq!(found.rate_of(&[0, 2]).unwrap().mean, 1.0);
        assert_eq!(found.rate_of(&[2]), None);
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
