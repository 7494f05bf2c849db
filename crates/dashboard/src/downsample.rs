//! A curve of many points as one of few that looks the same.

use serde::Serialize;

/// A curve as a chart draws it. Where several points became one, `y` is their mean and `low` and `high` are
/// their extremes, so that no spike is lost.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Line {
    pub(crate) label: String,
    pub(crate) x: Vec<f64>,
    pub(crate) y: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) low: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) high: Vec<f64>,
}

/// What part of a curve is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Its first and last x.
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// Most points of the answer.
    pub(crate) points: usize,
}

/// The curve within a window. Points without a number are left out.
pub(crate) fn downsample(label: String, x: &[f64], y: &[f64], window: Window) -> Line {
    let all = x.iter().copied().zip(y.iter().copied());
    let points: Vec<(f64, f64)> =
        all.filter(|(x, y)| *x >= window.from && *x <= window.to && y.is_finite()).collect();
    let mut line = Line { label, ..Line::default() };
    if points.len() <= window.points.max(1) {
        (line.x, line.y) = points.into_iter().map(|(x, y)| (x, digits(y))).unzip();
        return line;
    }
    for bucket in 0..window.points.max(1) {
        let bounds = [bucket, bucket + 1].map(|bucket| bucket * points.len() / window.points.max(1));
        let points = &points[bounds[0]..bounds[1]];
        let count = points.len() as f64;
        line.x.push(digits(points.iter().map(|point| point.0).sum::<f64>() / count));
        line.y.push(digits(points.iter().map(|point| point.1).sum::<f64>() / count));
        line.low.push(digits(points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min)));
        line.high.push(digits(points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max)));
    }
    // The newest step is where people look: a point of its own.
    if let (Some(last), Some(x), Some(y)) = (points.last(), line.x.last_mut(), line.y.last_mut()) {
        (*x, *y) = (last.0, digits(last.1));
    }
    line
}

/// Ten digits are more than a chart can show; all seventeen would double the answer.
fn digits(value: f64) -> f64 {
    format!("{value:.9e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Window = Window { from: f64::NEG_INFINITY, to: f64::INFINITY, points: 100 };

    #[test]
    fn few_points_stay_as_they_are() {
        let line = downsample(String::new(), &[1.0, 2.0, 3.0], &[4.0, f64::NAN, 6.0], ALL);
        assert_eq!((line.x, line.y), (vec![1.0, 3.0], vec![4.0, 6.0]));
        assert!(line.low.is_empty());
    }

    #[test]
    fn a_spike_among_many_points_is_seen() {
        let x: Vec<f64> = (0..100_000).map(f64::from).collect();
        let mut y = vec![1.0; x.len()];
        y[54_321] = 99.0;
        let line = downsample(String::new(), &x, &y, ALL);
        assert_eq!((line.x.len(), line.low.len()), (100, 100));
        assert_eq!(line.high.iter().copied().fold(0.0, f64::max), 99.0);
        assert_eq!(line.high.iter().filter(|high| **high > 1.0).count(), 1);
        assert_eq!(line.x.last().copied(), Some(99_999.0), "the newest step is shown");
    }

    #[test]
    fn zooming_in_shows_every_point() {
        let x: Vec<f64> = (0..100_000).map(f64::from).collect();
        let line = downsample(String::new(), &x, &x, Window { from: 500.0, to: 520.0, ..ALL });
        assert_eq!(line.x, (500..=520).map(f64::from).collect::<Vec<_>>());
        assert_eq!(line.y, line.x);
    }
}
