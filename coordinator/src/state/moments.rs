//! Count, mean and spread of numbers, which add up.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a number counts as, at most: sums of as many as there may be, and of their squares, stay numbers. One
/// that is larger is refused where it comes from; a journal of before may hold some.
const LARGEST: f64 = f32::MAX as f64;

/// Moments of some numbers, added up as in Chan, Golub, LeVeque: "Algorithms for Computing the Sample
/// Variance", 1983: no digits are lost where the mean is large.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// How many.
    pub count: u64,
    /// Their mean; 0 of none.
    pub mean: f64,
    /// The sum of squared distances from the mean.
    squares: f64,
}

/// Mean and deviation of some numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation: the root of the mean squared distance from the mean.
    pub deviation: f64,
}

impl Moments {
    /// Of these numbers.
    pub(super) fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut moments = Self::default();
        numbers.into_iter().for_each(|number| moments.add(number));
        moments
    }

    /// Adds a number.
    pub(super) fn add(&mut self, number: f64) {
        self.merge(&Self { count: 1, mean: bounded(number), squares: 0.0 });
    }

    /// Adds other numbers.
    pub(super) fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        let count = self.count + other.count;
        let share = other.count as f64 / count as f64;
        let distance = other.mean - self.mean;
        self.squares += other.squares + distance * distance * self.count as f64 * share;
        self.mean += distance * share;
        self.count = count;
    }

    /// Of the numbers of both.
    pub(super) fn with(mut self, other: &Self) -> Self {
        self.merge(other);
        self
    }

    /// The standard deviation; 0 of none.
    pub(super) fn deviation(&self) -> f64 {
        (self.squares / self.count.max(1) as f64).sqrt()
    }

    /// Mean and deviation; zeros of none.
    pub(super) fn spread(&self) -> Spread {
        Spread { mean: self.mean, deviation: self.deviation() }
    }
}

/// The number, or the nearest one that sums can be made of.
pub(super) fn bounded(number: f64) -> f64 {
    if number.is_nan() { 0.0 } else { number.clamp(-LARGEST, LARGEST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_add_up_in_any_parts() {
        let numbers = [3.0, -1.0, 4.0, 1e6, 5.0, 9.0];
        let whole = Moments::of(numbers);
        let mean = numbers.iter().sum::<f64>() / 6.0;
        let variance = numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / 6.0;
        assert!((whole.mean - mean).abs() < 1e-9 && (whole.deviation() - variance.sqrt()).abs() < 1e-6);
        for cut in 0..=numbers.len() {
            let parts = Moments::of(numbers[..cut].to_vec()).with(&Moments::of(numbers[cut..].to_vec()));
            assert!((parts.mean - whole.mean).abs() < 1e-9, "{cut}");
            assert!((parts.deviation() - whole.deviation()).abs() < 1e-6, "{cut}");
        }
        assert_eq!(Moments::default().spread(), Spread::default());
    }

    #[test]
    fn moments_of_any_numbers_are_numbers() {
        let ends = [f64::MAX, f64::MIN, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e200, 0.0];
        let mut moments = Moments::of(ends.into_iter().cycle().take(1000));
        moments.merge(&moments.clone());
        let Spread { mean, deviation } = moments.spread();
        assert!(mean.is_finite() && deviation.is_finite(), "{mean} {deviation}");
        assert_eq!(moments.count, 2000);
    }
}
