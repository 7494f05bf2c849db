//! What a score is worth: the mean outcome of responses with about the same score.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Responses with about the same score.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CalibrationBin {
    /// Their mean score.
    pub score: f64,
    /// Their mean outcome.
    pub outcome: f64,
    /// How many they are.
    pub responses: u64,
}

/// At most `bins` bins of about equal count over (score, outcome) pairs, from the lowest scores to the
/// highest. Equal scores are never divided, so that there are fewer bins than asked for where many are equal.
pub fn calibration(pairs: impl IntoIterator<Item = (f64, f64)>, bins: usize) -> Vec<CalibrationBin> {
    let mut pairs: Vec<(f64, f64)> = pairs.into_iter().collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut calibration: Vec<CalibrationBin> = Vec::new();
    let (mut begun, mut last) = (0, None);
    for equal in pairs.chunk_by(|a, b| a.0 == b.0) {
        // The bin in which the middle of what is equal lies.
        let bin = (2 * begun + equal.len()) * bins / (2 * pairs.len());
        begun += equal.len();
        if last != Some(bin) {
            calibration.push(CalibrationBin::default());
            last = Some(bin);
        }
        if let Some(current) = calibration.last_mut() {
            current.responses += equal.len() as u64;
            current.score += equal.iter().map(|pair| pair.0).sum::<f64>();
            current.outcome += equal.iter().map(|pair| pair.1).sum::<f64>();
        }
    }
    for bin in &mut calibration {
        bin.score /= bin.responses as f64;
        bin.outcome /= bin.responses as f64;
    }
    calibration
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_hold_as_many_responses_and_equal_scores_stay_together() {
        let pairs = (0..100).map(|n| (f64::from(n), f64::from(u8::from(n >= 50))));
        let bins = calibration(pairs, 10);
        assert_eq!(bins.len(), 10);
        assert!(bins.iter().all(|bin| bin.responses == 10));
        assert_eq!((bins[0].score, bins[4].outcome, bins[5].outcome), (4.5, 0.0, 1.0));

        let tied = [(0.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.0, 0.0), (1.0, 1.0)];
        let bins = calibration(tied, 10);
        assert_eq!(bins.iter().map(|bin| bin.responses).collect::<Vec<_>>(), [4, 1]);
        assert_eq!((bins[0].outcome, bins[1].outcome), (0.25, 1.0));
        assert_eq!(calibration([], 10), []);
    }
}
