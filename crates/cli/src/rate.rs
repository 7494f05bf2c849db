//! Means over problems with their standard errors.

use serde::Serialize;

use crate::decimal::decimal;

/// A mean over problems.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Rate {
    pub(crate) mean: f64,
    /// Standard deviation of the problems' values over the root of their number.
    pub(crate) standard_error: f64,
    pub(crate) problems: usize,
}

impl Rate {
    /// Of one value per problem; none of no problem.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let count = Some(values.len() as f64).filter(|count| *count > 0.0)?;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let variance = squares / (count - 1.0).max(1.0);
        Some(Self { mean, standard_error: (variance / count).sqrt(), problems: values.len() })
    }

    /// Where the rate of all problems of this kind lies, with 95 % confidence: Wilson's score interval
    /// (1927) for as many yes-or-no problems as would have this standard error (Korn and Graubard 1998). It
    /// has a width, too, where no problem was solved, or every one.
    pub(crate) fn interval(self) -> [f64; 2] {
        const QUANTILE: f64 = 1.96;
        let Self { mean, standard_error, problems } = self;
        let variance = mean * (1.0 - mean);
        let equivalent = variance / standard_error.powi(2);
        let count = if equivalent.is_finite() && variance > 0.0 { equivalent } else { problems as f64 };
        let square = QUANTILE.powi(2) / count;
        let middle = (mean + square / 2.0) / (1.0 + square);
        let half = QUANTILE * (variance / count + square / count / 4.0).sqrt() / (1.0 + square);
        [(middle - half).max(0.0), (middle + half).min(1.0)]
    }

    /// How many standard errors the mean is from 0; infinite where all values are the same.
    pub(crate) fn standard_errors(self) -> f64 {
        if self.mean == 0.0 { 0.0 } else { self.mean / self.standard_error }
    }

    /// For people, with one standard error.
    pub(crate) fn number(self) -> String {
        format!("{} ± {:.3}", decimal(self.mean, 3), self.standard_error)
    }

    /// The same for a share.
    pub(crate) fn percent(self) -> String {
        format!("{:.1} ± {:.1} %", 100.0 * self.mean, 100.0 * self.standard_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_over_problems() {
        let rate = Rate::of(&[1.0, 0.0, 0.5, 0.5]).unwrap();
        assert_eq!(rate.mean, 0.5);
        // Sample deviation 0.408, over the root of 4.
        assert!((rate.standard_error - 0.204_124).abs() < 1e-6, "{rate:?}");
        assert!((rate.standard_errors() - 0.5 / 0.204_124).abs() < 1e-4);
        assert_eq!(rate.percent(), "50.0 ± 20.4 %");
        assert!(Rate::of(&[]).is_none());
    }

    fn near(rates: &[f64], expected: [f64; 2]) {
        let interval = Rate::of(rates).unwrap().interval();
        assert!(
            interval.iter().zip(expected).all(|(bound, expected)| (bound - expected).abs() < 1e-4),
            "{rates:?}: {interval:?}, not {expected:?}"
        );
    }

    #[test]
    fn an_interval_is_wilsons() {
        // The variance 1/6 over 4 problems is that of 6 which are solved or not: 0.5 of 6.
        near(&[1.0, 0.0, 0.5, 0.5], [0.187_62, 0.812_38]);
        // Nothing solved of 164, everything of 4.
        near(&[0.0; 164], [0.0, 0.022_887]);
        near(&[1.0; 4], [0.510_10, 1.0]);
    }
}
