//! What a chart's x axis counts.

use serde::{Deserialize, Serialize};

/// The x axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Axis {
    /// Batches trained.
    #[default]
    Batch,
    /// Hours since the run began.
    Hours,
    /// Seconds since 1970.
    Time,
    /// Prompt and response tokens trained.
    Tokens,
}

/// The value of a piecewise linear function at `at`; `xs` ascend. Before its first point it has the first
/// value, after its last one the last.
pub(crate) fn interpolate(xs: &[f64], ys: &[f64], at: f64) -> f64 {
    let after = xs.partition_point(|x| *x < at);
    match (after.checked_sub(1), xs.get(after)) {
        (None, _) => ys.first().copied().unwrap_or(f64::NAN),
        (Some(before), None) => ys[before],
        (Some(before), Some(next)) => {
            let share = (at - xs[before]) / (next - xs[before]).max(f64::MIN_POSITIVE);
            ys[before] + share * (ys[after] - ys[before])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_points_it_is_a_line_and_outside_it_stays() {
        let (xs, ys) = ([1.0, 2.0, 4.0], [10.0, 20.0, 40.0]);
        for (at, expected) in [(0.0, 10.0), (1.5, 15.0), (2.0, 20.0), (3.0, 30.0), (9.0, 40.0)] {
            assert_eq!(interpolate(&xs, &ys, at), expected, "at {at}");
        }
        assert!(interpolate(&[], &[], 1.0).is_nan());
    }
}
