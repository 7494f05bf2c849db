//! How far a reward can be trusted where the policy learns from it: R² of the actual outcome on the reward.
//!
//! The paper picks its filter by this number (PF-PPO, arXiv 2409.06957, section 4, "Weight choice"). It
//! groups responses of similar reward and takes one point per group; number and edges of the groups are not
//! given there. Here they are bins of equal mass, which are bins of equal count where all weights are 1.

mod bootstrap;
mod calibration;

use crate::error::{Error, require};
use crate::filtration::{self, Filtration};

pub use self::bootstrap::{Bootstrap, Estimate, estimates};
pub use self::calibration::{CalibrationBin, calibration};

/// Bins where no number is given.
pub const DEFAULT_BINS: usize = 20;

/// With fewer points than this a line fits whatever the reward is worth.
const MIN_POINTS: usize = 3;

/// A response with what the reward said and what was true.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// The score the policy is trained on.
    pub reward: f64,
    /// The actual result, for example the share of unit tests passed.
    pub outcome: f64,
    /// How often the response stands in the pool: its weight after filtration. Without weight it does not
    /// take part.
    pub weight: f64,
}

/// R² and what it stands on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RSquared {
    /// `1 − Σ (s − ŝ)² / Σ (s − s̄)²` over bins, from 0 to 1. `None` where it is not defined: fewer than 3
    /// bins, or the same outcome in every bin, or numbers so large that their squares overflow. 0 where every
    /// bin has the same reward.
    pub r_squared: Option<f64>,
    /// Bins used: the number asked for, or the number of distinct rewards if that is smaller.
    pub bins: usize,
    /// Responses with weight.
    pub responses: usize,
}

/// R² of outcome on reward, one point (mean reward, mean outcome) per bin of equal mass, with a line fitted
/// by least squares.
///
/// Responses are sorted by reward and cut into bins of equal mass; one that lies across an edge counts in
/// both bins by its shares. Responses with the same reward count with their common mean outcome, so that the
/// result does not depend on the order of the input.
///
/// # Errors
/// Fewer than 3 bins asked for, a number that is not finite, or a negative weight.
pub fn r_squared(responses: &[Outcome], bins: usize) -> Result<RSquared, Error> {
    require(bins >= MIN_POINTS, "bins", bins as f64, "3 or more")?;
    for (index, response) in responses.iter().enumerate() {
        for (what, value) in
            [("reward", response.reward), ("outcome", response.outcome), ("weight", response.weight)]
        {
            if !value.is_finite() {
                return Err(Error::NotFinite { what, index, value });
            }
        }
        require(response.weight >= 0.0, "weight", response.weight, "0 or more")?;
    }
    let mut pool: Vec<Outcome> = responses.iter().copied().filter(|response| response.weight > 0.0).collect();
    pool.sort_by(|a, b| a.reward.total_cmp(&b.reward));
    let count = pool.len();
    let blocks: Vec<Outcome> = pool.chunk_by(|a, b| a.reward == b.reward).map(weighted_mean).collect();
    let bins = bins.min(blocks.len());
    let points = equal_mass_bins(&blocks, bins);
    Ok(RSquared { r_squared: linear_r_squared(&points), bins, responses: count })
}

/// R² of the pool a filtration would train on, for groups of (reward, outcome) pairs.
///
/// Each response stands in the pool with its [expected weight](Filtration::expected_weights): the pool of
/// infinitely many draws from the filtered policy, so that no seed has a say. Groups without signal are not
/// in it.
///
/// # Errors
/// As [`r_squared`] and [`Filtration::expected_weights`].
pub fn filtered_r_squared(
    filtration: &Filtration,
    groups: &[Vec<(f64, f64)>],
    bins: usize,
) -> Result<RSquared, FilteredError> {
    let rewards = rewards(groups)?;
    let mut pool = Vec::new();
    for (group, weights) in groups.iter().zip(filtration.expected_pool(&rewards)?) {
        let weights = weights.unwrap_or_default();
        pool.extend(group.iter().zip(weights).map(|(&(reward, outcome), weight)| Outcome {
            reward,
            outcome,
            weight,
        }));
    }
    Ok(r_squared(&pool, bins)?)
}

/// The rewards of each group, which are finite.
fn rewards(groups: &[Vec<(f64, f64)>]) -> Result<Vec<Vec<f64>>, Error> {
    let mut rewards = Vec::with_capacity(groups.len());
    for group in groups {
        let group: Vec<f64> = group.iter().map(|&(reward, _)| reward).collect();
        if let Some(index) = group.iter().position(|reward| !reward.is_finite()) {
            return Err(Error::NotFinite { what: "reward", index, value: group[index] });
        }
        rewards.push(group);
    }
    Ok(rewards)
}

/// Why the R² of a filtered pool cannot be had.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FilteredError {
    /// The numbers cannot be regressed.
    #[error(transparent)]
    Numbers(#[from] Error),
    /// The filtration refuses a group.
    #[error(transparent)]
    Filtration(#[from] filtration::Error),
}

fn weighted_mean(block: &[Outcome]) -> Outcome {
    let weight: f64 = block.iter().map(|response| response.weight).sum();
    let outcome = block.iter().map(|response| response.weight * response.outcome).sum::<f64>() / weight;
    Outcome { reward: block[0].reward, outcome, weight }
}

/// Mean (reward, outcome) of `bins` bins of equal mass; `blocks` are sorted by reward and have weight.
fn equal_mass_bins(blocks: &[Outcome], bins: usize) -> Vec<(f64, f64)> {
    let total: f64 = blocks.iter().map(|block| block.weight).sum();
    let mut points = Vec::with_capacity(bins);
    let (mut next, mut start) = (0, 0.0);
    for bin in 0..bins {
        // The last bin takes what rounding leaves over.
        let high = if bin + 1 == bins { f64::INFINITY } else { total * (bin + 1) as f64 / bins as f64 };
        let low = total * bin as f64 / bins as f64;
        let (mut mass, mut reward, mut outcome) = (0.0, 0.0, 0.0);
        while let Some(block) = blocks.get(next) {
            let end = start + block.weight;
            let share = (end.min(high) - start.max(low)).max(0.0);
            mass += share;
            reward += share * block.reward;
            outcome += share * block.outcome;
            if end > high {
                break;
            }
            start = end;
            next += 1;
        }
        if mass > 0.0 {
            points.push((reward / mass, outcome / mass));
        }
    }
    points
}

/// R² of the least-squares line through the points.
fn linear_r_squared(points: &[(f64, f64)]) -> Option<f64> {
    if points.len() < MIN_POINTS {
        return None;
    }
    let count = points.len() as f64;
    let mean_x = points.iter().map(|point| point.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|point| point.1).sum::<f64>() / count;
    let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
    for &(x, y) in points {
        let (dx, dy) = (x - mean_x, y - mean_y);
        xx += dx * dx;
        xy += dx * dy;
        yy += dy * dy;
    }
    // Outcomes that agree to the last digits are the same outcome: what is left is rounding, which no line
    // explains.
    if yy <= count * (f64::EPSILON * 16.0 * mean_y).powi(2) {
        return None;
    }
    let correlation = if xx > 0.0 { xy / (xx.sqrt() * yy.sqrt()) } else { 0.0 };
    correlation.is_finite().then(|| correlation.powi(2).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn responses(points: &[(f64, f64)]) -> Vec<Outcome> {
        points.iter().map(|&(reward, outcome)| Outcome { reward, outcome, weight: 1.0 }).collect()
    }

    #[test]
    fn a_line_is_explained_whole_and_a_cross_not_at_all() {
        let line: Vec<_> = (0..100).map(|i| (f64::from(i), 3.0 - 0.5 * f64::from(i))).collect();
        let result = r_squared(&responses(&line), 20).unwrap();
        assert_eq!((result.bins, result.responses), (20, 100));
        assert!((result.r_squared.unwrap() - 1.0).abs() < 1e-12);
        let cross = responses(&[(-1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (0.5, 0.0)]);
        assert_eq!(r_squared(&cross, 20).unwrap().r_squared, None);
        let hat = responses(&[(-1.0, 0.0), (0.0, 1.0), (1.0, 0.0)]);
        assert_eq!(r_squared(&hat, 20).unwrap().r_squared, Some(0.0));
    }

    #[test]
    fn degenerate_pools_are_defined() {
        for points in
            [&[][..], &[(0.1, 1.0)], &[(0.1, 1.0), (0.2, 0.0)], &[(0.3, 0.0), (0.3, 1.0), (0.3, 1.0)]]
        {
            let result = r_squared(&responses(points), 20).unwrap();
            assert_eq!(result.r_squared, None, "{points:?}");
            assert_eq!(result.responses, points.len());
        }
        let flat: Vec<_> = (0..97).map(|i| (f64::from(i), 0.3)).collect();
        assert_eq!(r_squared(&responses(&flat), 20).unwrap().r_squared, None);
        let mut heavy = responses(&[(0.0, 0.0), (1.0, 0.5), (2.0, 1.0)]);
        for weight in [1e-300, 1e300, f64::MAX] {
            heavy[1].weight = weight;
            heavy[2].weight = weight;
            assert!(r_squared(&heavy, 20).unwrap().r_squared.is_none_or(f64::is_finite), "{weight}");
        }
        for (scale, defined) in [(1e-120, true), (1e120, true), (1e200, false)] {
            let line: Vec<_> = (0..50).map(|i| (scale * f64::from(i), f64::from(i % 7 + i))).collect();
            let result = r_squared(&responses(&line), 20).unwrap().r_squared;
            assert_eq!(result.is_some_and(|value| value > 0.9), defined, "{scale}: {result:?}");
        }
    }

    #[test]
    fn bad_numbers_are_errors() {
        assert!(r_squared(&responses(&[(f64::NAN, 0.0)]), 20).is_err());
        assert!(r_squared(&responses(&[(0.0, f64::INFINITY)]), 20).is_err());
        assert!(r_squared(&[Outcome { reward: 0.0, outcome: 0.0, weight: -1.0 }], 20).is_err());
        assert!(r_squared(&[], 2).is_err());
    }
}
