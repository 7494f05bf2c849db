//! Count, sum and sum of squares: what ranks add up so that a mean or a variance is that of the whole batch.
//!
//! Invariant: merging the moments of the parts gives the moments of the whole, in any division.

use crate::error::Error;
use crate::responses::Responses;

/// What whitening adds to the variance inside the square root.
pub const WHITEN_EPSILON: f64 = 1e-8;

/// The first two moments of a set of numbers, as sums, in f64. Ranks all-reduce the three fields by addition.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moments {
    /// How many numbers.
    pub count: f64,
    /// The sum of the numbers.
    pub sum: f64,
    /// The sum of their squares.
    pub sum_of_squares: f64,
}

impl Moments {
    /// Moments of the counted tokens of a `[tokens]` slice.
    ///
    /// # Errors
    /// A wrong length or a counted number that is not finite; `what` names the slice in the message.
    pub fn of_tokens(what: &'static str, responses: Responses<'_>, values: &[f32]) -> Result<Self, Error> {
        responses.require_tokens(what, values)?;
        Ok(responses.counted_tokens().map(|token| f64::from(values[token])).collect())
    }

    /// Adds one number.
    pub fn push(&mut self, value: f64) {
        self.count += 1.0;
        self.sum += value;
        self.sum_of_squares += value * value;
    }

    /// Adds one number `times` times.
    pub fn push_times(&mut self, value: f64, times: usize) {
        let times = times as f64;
        self.count += times;
        self.sum += times * value;
        self.sum_of_squares += times * value * value;
    }

    /// Adds the numbers of another part.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.sum_of_squares += other.sum_of_squares;
    }

    /// The mean; 0 of nothing.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1.0)
    }

    /// The biased variance, `sum((x - mean)^2) / count`; 0 of nothing.
    pub fn variance(&self) -> f64 {
        (self.sum_of_squares / self.count.max(1.0) - self.mean().powi(2)).max(0.0)
    }

    /// The unbiased variance, `sum((x - mean)^2) / (count - 1)`; 0 of fewer than two numbers.
    pub fn unbiased_variance(&self) -> f64 {
        if self.count > 1.0 { self.variance() * self.count / (self.count - 1.0) } else { 0.0 }
    }
}

impl FromIterator<f64> for Moments {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut moments = Self::default();
        values.into_iter().for_each(|value| moments.push(value));
        moments
    }
}

/// Whitening: `A <- (A - mean) / sqrt(variance + 1e-8)`, in place, for `[tokens]` advantages.
///
/// `mean` and `variance` come from the [`Moments`] of the counted tokens of the whole batch, over all ranks.
/// The learner uses the biased variance, as lm-human-preferences (`tf.nn.moments`) and OpenRLHF do; verl uses
/// the unbiased one. The map is applied to every element: those that do not count carry no meaning before or
/// after. Where all advantages are equal the result is 0 (up to rounding of the mean divided by 1e-4).
pub fn whiten(advantages: &mut [f32], mean: f64, variance: f64) {
    let scale = 1.0 / (variance.max(0.0) + WHITEN_EPSILON).sqrt();
    for advantage in advantages {
        *advantage = ((f64::from(*advantage) - mean) * scale) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_nothing_and_of_one_number_are_defined() {
        let nothing = Moments::default();
        assert_eq!((nothing.mean(), nothing.variance(), nothing.unbiased_variance()), (0.0, 0.0, 0.0));
        let one: Moments = [3.0].into_iter().collect();
        assert_eq!((one.mean(), one.variance(), one.unbiased_variance()), (3.0, 0.0, 0.0));
    }

    #[test]
    fn a_number_pushed_many_times_is_so_many_numbers() {
        let (mut at_once, mut by_one) = (Moments::default(), Moments::default());
        at_once.push_times(2.0, 3);
        at_once.push(-4.0);
        [2.0, 2.0, 2.0, -4.0].into_iter().for_each(|value| by_one.push(value));
        assert_eq!(at_once, by_one);
        assert_eq!((at_once.mean(), at_once.variance(), at_once.unbiased_variance()), (0.5, 6.75, 9.0));
    }

    #[test]
    fn whitening_one_token_gives_zero() {
        let one: Moments = [3.0].into_iter().collect();
        let mut advantages = [3.0];
        whiten(&mut advantages, one.mean(), one.variance());
        assert_eq!(advantages, [0.0]);
    }
}
