//! Means with their intervals.

use std::fmt;

use serde::Serialize;

/// Two-sided 95 % quantiles of Student's t distribution, by degrees of freedom from 1 on.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];
/// That of the normal distribution, for more.
const NORMAL: f64 = 1.960;

/// A mean and half the width of its 95 % interval, which one number does not have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Half the width of its 95 % interval.
    pub half_width: Option<f64>,
}

impl Interval {
    /// Of these numbers, taken as draws of one normal distribution; none of none.
    pub fn of(numbers: &[f64]) -> Option<Self> {
        let count = numbers.len() as f64;
        if numbers.is_empty() {
            return None;
        }
        let mean = numbers.iter().sum::<f64>() / count;
        let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
        let half_width = (numbers.len() > 1).then(|| {
            let quantile = STUDENT.get(numbers.len() - 2).copied().unwrap_or(NORMAL);
            quantile * (squares / (count - 1.0) / count).sqrt()
        });
        Some(Self { mean, half_width })
    }

    /// The same with everything multiplied, as a share becomes percent.
    pub fn times(self, factor: f64) -> Self {
        Self { mean: self.mean * factor, half_width: self.half_width.map(|half| half * factor.abs()) }
    }
}

/// With as many decimals as are asked for, three otherwise; what rounds to zero has no sign.
impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = f.precision().unwrap_or(3);
        let mean = format!("{:.places$}", self.mean);
        let is_zero = mean.chars().all(|c| matches!(c, '-' | '0' | '.'));
        f.write_str(if is_zero { mean.trim_start_matches('-') } else { &mean })?;
        match self.half_width {
            Some(half_width) => write!(f, " ± {half_width:.places$}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_students() {
        // 1, 2, 3: deviation 1, over the root of 3, times 4.303.
        let interval = Interval::of(&[1.0, 2.0, 3.0]).unwrap();
        assert!((interval.half_width.unwrap() - 4.303 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(interval.to_string(), "2.000 ± 2.484");
        assert_eq!(format!("{:.1}", interval.times(-100.0)), "-200.0 ± 248.4");
        // 1 to 5: deviation the root of 2.5, times 2.776.
        let of_five = Interval::of(&[5.0, 4.0, 3.0, 2.0, 1.0]).unwrap();
        assert!((of_five.half_width.unwrap() - 2.776 * 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(Interval::of(&[0.25]).unwrap().to_string(), "0.250");
        assert_eq!(Interval::of(&[-0.0004]).unwrap().to_string(), "0.000");
        assert_eq!(Interval::of(&[]), None);
    }
}
