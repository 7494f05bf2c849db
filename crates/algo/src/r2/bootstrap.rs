//! R² of the filtered policy with its interval and its ceiling, by drawing from the filtered policy.
//!
//! R² depends on how many responses a bin holds and on the range that a filtration leaves, so that numbers of
//! different strategies do not compare as they are: the paper's best-of-n pool is small and narrow. Here each
//! replicate draws the same number of responses for every strategy, one for each prompt of the window, from
//! the distribution `μ_θ` that the strategy puts on the window's responses (PF-PPO, arXiv 2409.06957, section
//! 4: "sample y ~ μ_θ(·|c)"). Each draw is of another prompt, so the spread over replicates is a bootstrap
//! over prompts.
//!
//! The ceiling is the mean R² over the same draws when the outcomes are drawn anew with the expectation that
//! the least-squares line through all responses gives their score: what a reward would get that is nowhere
//! less reliable than elsewhere. An R² near its ceiling cannot be better with so many prompts.
//!
//! The work is replicates times strategies times groups draws, and for each replicate one outcome drawn for
//! each response.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FilteredError, Outcome, equal_mass_bins, linear_r_squared, rewards};
use crate::error::{Error, require};
use crate::filtration::Filtration;

/// Scores are told apart to so many cells of about equal count; fewer scores than that exactly.
const CELLS: usize = 128;
/// One more than the largest number of 32 bits.
const RANGE: f64 = 4_294_967_296.0;
/// Share of the replicates that must have an R² for there to be an estimate.
const MIN_DEFINED: f64 = 0.5;
/// The interval holds all but this share of the replicates, half of it on each side.
const OUTSIDE: f64 = 0.05;

/// How estimates are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bootstrap {
    /// Seeds the draws.
    pub seed: u64,
    /// How often a pool is drawn.
    pub replicates: usize,
    /// Points of each regression: bins of equal mass.
    pub bins: usize,
}

/// R² of outcome on score for the responses that a filtration would train on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// The mean over replicates.
    pub r_squared: f64,
    /// The lower end of the 95 % interval over prompts.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// What a reward as reliable at each score as at any other would get with as many prompts.
    pub ceiling: f64,
}

/// Estimates for these filtrations over groups of (reward, outcome) pairs; none for one that leaves too
/// little: fewer than 3 bins, or one outcome.
///
/// # Errors
/// As [`r_squared`](super::r_squared) and [`Filtration::expected_weights`].
pub fn estimates(
    filtrations: &[Filtration],
    groups: &[Vec<(f64, f64)>],
    bootstrap: Bootstrap,
) -> Result<Vec<Option<Estimate>>, FilteredError> {
    require(bootstrap.bins >= 3, "bins", bootstrap.bins as f64, "3 or more")?;
    let rewards = rewards(groups)?;
    let window = Window::of(groups)?;
    let mut draws = ChaCha8Rng::seed_from_u64(bootstrap.seed);
    let mut pools = Vec::with_capacity(filtrations.len());
    for filtration in filtrations {
        let weights = filtration.expected_pool(&rewards)?;
        pools.push(Pool::of(groups, weights));
    }
    let mut found = vec![Replicates::default(); filtrations.len()];
    let mut cells = vec![Cell::default(); window.cells];
    for _ in 0..bootstrap.replicates {
        let tossed = window.tossed(&mut draws);
        for (pool, found) in pools.iter().zip(&mut found) {
            let Some(pool) = pool else { continue };
            cells.fill(Cell::default());
            for _ in 0..groups.len() {
                let place = pool.draw(draws.next_u32());
                let Response { reward, outcome, cell, .. } = window.responses[place];
                cells[cell].add(reward, outcome, tossed[place]);
            }
            found.add(&cells, bootstrap.bins);
        }
    }
    Ok(found.into_iter().map(|found| found.estimate(bootstrap.replicates)).collect())
}

/// The responses of all groups, one group behind the other.
struct Window {
    responses: Vec<Response>,
    cells: usize,
    /// How far from that a 0 or a 1 is drawn, so that the outcomes vary as much as they do.
    spread: f64,
}

#[derive(Debug, Clone, Copy)]
struct Response {
    reward: f64,
    outcome: f64,
    /// The outcome that the line through all responses gives.
    expected: f64,
    /// The cell of its reward.
    cell: usize,
}

impl Window {
    fn of(groups: &[Vec<(f64, f64)>]) -> Result<Self, Error> {
        let responses: Vec<(f64, f64)> = groups.iter().flatten().copied().collect();
        if let Some(index) = responses.iter().position(|(_, outcome)| !outcome.is_finite()) {
            return Err(Error::NotFinite { what: "outcome", index, value: responses[index].1 });
        }
        let mut order: Vec<(f64, usize)> = Vec::with_capacity(responses.len());
        order.extend(responses.iter().zip(0..).map(|((reward, _), place)| (*reward, place)));
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let distinct = order.chunk_by(|a, b| a.0 == b.0).count();
        let mut cell = vec![0; responses.len()];
        let mut begun = 0;
        for (level, equal) in order.chunk_by(|a, b| a.0 == b.0).enumerate() {
            let number = if distinct <= CELLS { level } else { begun * CELLS / responses.len() };
            equal.iter().for_each(|(_, place)| cell[*place] = number);
            begun += equal.len();
        }
        let (expected, spread) = line(&responses);
        let pairs = responses.into_iter().zip(cell).zip(expected);
        let responses = pairs
            .map(|(((reward, outcome), cell), expected)| Response { reward, outcome, expected, cell })
            .collect();
        Ok(Self { responses, cells: distinct.min(CELLS), spread })
    }

    /// Outcomes that are what the line says but for chance.
    fn tossed(&self, draws: &mut ChaCha8Rng) -> Vec<f64> {
        let mut outcomes = Vec::with_capacity(self.responses.len());
        for Response { expected, .. } in &self.responses {
            let chance = f64::from(draws.next_u32()) / RANGE;
            let drawn = f64::from(u8::from(chance < *expected));
            outcomes.push(expected + self.spread * (drawn - expected));
        }
        outcomes
    }
}

/// The least-squares line through (reward, outcome) pairs, within 0..1, at each of them; and by how much
/// outcomes vary around it, in deviations of a draw of 0 or 1.
fn line(responses: &[(f64, f64)]) -> (Vec<f64>, f64) {
    let count = responses.len().max(1) as f64;
    let mean_reward = responses.iter().map(|response| response.0).sum::<f64>() / count;
    let mean_outcome = responses.iter().map(|response| response.1).sum::<f64>() / count;
    let (mut xx, mut xy) = (0.0, 0.0);
    for &(reward, outcome) in responses {
        xx += (reward - mean_reward).powi(2);
        xy += (reward - mean_reward) * (outcome - mean_outcome);
    }
    let slope = if xx > 0.0 && (xy / xx).is_finite() { xy / xx } else { 0.0 };
    let on_line = responses.iter().map(|(reward, _)| mean_outcome + slope * (reward - mean_reward));
    let expected: Vec<f64> = on_line.map(|expected| expected.clamp(0.0, 1.0)).collect();
    let residuals: f64 =
        expected.iter().zip(responses).map(|(expected, (_, outcome))| (outcome - expected).powi(2)).sum();
    let of_draws: f64 = expected.iter().map(|expected| expected * (1.0 - expected)).sum();
    let spread = if of_draws > 0.0 { (residuals / of_draws).sqrt().min(1.0) } else { 0.0 };
    (expected, spread)
}

/// What one replicate has drawn of about one reward: sums.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    count: f64,
    reward: f64,
    outcome: f64,
    tossed: f64,
}

impl Cell {
    fn add(&mut self, reward: f64, outcome: f64, tossed: f64) {
        self.count += 1.0;
        self.reward += reward;
        self.outcome += outcome;
        self.tossed += tossed;
    }
}

/// What a filtration draws from, as an alias table (Walker, 1977; Vose, 1991): a draw costs the same whatever
/// the number of responses.
struct Pool(Vec<Alias>);

/// A place of the table.
#[derive(Debug, Clone, Copy)]
struct Alias {
    /// The chance that it stands for its own response.
    chance: f64,
    /// Its own response, and the one that it stands for else.
    own: usize,
    other: usize,
}

impl Pool {
    /// None where nothing can be drawn.
    fn of(groups: &[Vec<(f64, f64)>], weights: Vec<Option<Vec<f64>>>) -> Option<Self> {
        let (mut table, mut masses, mut first) = (Vec::new(), Vec::new(), 0);
        for (group, weights) in groups.iter().zip(weights) {
            for (place, weight) in weights.into_iter().flatten().enumerate() {
                if weight > 0.0 {
                    let own = first + place;
                    table.push(Alias { chance: 1.0, own, other: own });
                    masses.push(weight);
                }
            }
            first += group.len();
        }
        let scale = masses.len() as f64 / masses.iter().sum::<f64>();
        masses.iter_mut().for_each(|mass| *mass *= scale);
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..masses.len()).partition(|&place| masses[place] < 1.0);
        while let (Some(poor), Some(&rich)) = (small.pop(), large.last()) {
            table[poor].chance = masses[poor];
            table[poor].other = table[rich].own;
            masses[rich] -= 1.0 - masses[poor];
            if masses[rich] < 1.0 {
                small.extend(large.pop());
            }
        }
        (!table.is_empty()).then_some(Self(table))
    }

    /// The response that these random bits stand for: the place by the high part of their product with the
    /// table's length, whether it is its own by the low part.
    fn draw(&self, bits: u32) -> usize {
        let product = u64::from(bits) * self.0.len() as u64;
        let Alias { chance, own, other } = self.0[(product >> 32) as usize];
        let rest = (product & u64::from(u32::MAX)) as u32;
        if f64::from(rest) < chance * RANGE { own } else { other }
    }
}

/// What replicates came to, those apart that have no R².
#[derive(Debug, Clone, Default)]
struct Replicates {
    found: Vec<f64>,
    ceilings: Vec<f64>,
}

impl Replicates {
    fn add(&mut self, cells: &[Cell], bins: usize) {
        let drawn = cells.iter().filter(|cell| cell.count > 0.0);
        let (mut found, mut tossed) = (Vec::with_capacity(cells.len()), Vec::with_capacity(cells.len()));
        for cell in drawn {
            let (reward, weight) = (cell.reward / cell.count, cell.count);
            found.push(Outcome { reward, outcome: cell.outcome / cell.count, weight });
            tossed.push(Outcome { reward, outcome: cell.tossed / cell.count, weight });
        }
        let bins = bins.min(found.len());
        self.found.extend(linear_r_squared(&equal_mass_bins(&found, bins)));
        self.ceilings.extend(linear_r_squared(&equal_mass_bins(&tossed, bins)));
    }

    fn estimate(mut self, replicates: usize) -> Option<Estimate> {
        let enough = (replicates as f64 * MIN_DEFINED).max(1.0);
        if (self.found.len() as f64) < enough || self.ceilings.is_empty() {
            return None;
        }
        self.found.sort_by(f64::total_cmp);
        Some(Estimate {
            r_squared: mean(&self.found),
            low: quantile(&self.found, OUTSIDE / 2.0),
            high: quantile(&self.found, 1.0 - OUTSIDE / 2.0),
            ceiling: mean(&self.ceilings),
        })
    }
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// The quantile of sorted numbers, between two of them in proportion.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (at - at.floor()) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewards_whose_squares_overflow_have_a_flat_line() {
        let (expected, spread) = line(&[(-1e200, 0.25), (1e200, 0.75)]);
        assert_eq!(expected, [0.5, 0.5]);
        assert!((spread - 0.5).abs() < 1e-12, "{spread}");
    }

    #[test]
    fn the_line_is_that_of_least_squares_and_outcomes_vary_around_it_as_they_do() {
        // Slope 0.1 around (1.5, 0.5); residuals 0.2 in all where draws of 0 or 1 had 0.95.
        let (expected, spread) = line(&[(0.0, 0.25), (1.0, 0.75), (2.0, 0.25), (3.0, 0.75)]);
        for (expected, by_hand) in expected.iter().zip([0.35, 0.45, 0.55, 0.65]) {
            assert!((expected - by_hand).abs() < 1e-12, "{expected}");
        }
        assert!((spread - (0.2_f64 / 0.95).sqrt()).abs() < 1e-12, "{spread}");
    }

    #[test]
    fn outcomes_that_vary_as_draws_do_are_tossed_as_0_or_1() {
        let group: Vec<(f64, f64)> = (0..400).map(|n| (f64::from(n % 4), f64::from(n % 4 / 2))).collect();
        let mut window = Window::of(&[group]).unwrap();
        window.spread = 1.0;
        let tossed = window.tossed(&mut ChaCha8Rng::seed_from_u64(1));
        assert!(tossed.iter().all(|outcome| outcome.abs() < 1e-12 || (outcome - 1.0).abs() < 1e-12));
        let expected: f64 = window.responses.iter().map(|response| response.expected).sum();
        // The deviation of the sum is below 10.
        assert!((tossed.iter().sum::<f64>() - expected).abs() < 50.0);
    }

    #[test]
    fn draws_hit_responses_in_proportion_to_their_weights() {
        let groups = [vec![(0.0, 0.0); 2], vec![(0.0, 0.0)], vec![(0.0, 0.0); 3]];
        let weights = vec![Some(vec![1.0, 0.0]), None, Some(vec![2.5, 4.0, 0.5])];
        let pool = Pool::of(&groups, weights).unwrap();
        let mut hits = [0.0_f64; 6];
        for step in 0..80_000_u32 {
            hits[pool.draw(step * (u32::MAX / 80_000))] += 1.0;
        }
        for (hits, by_hand) in hits.iter().zip([1.0, 0.0, 0.0, 2.5, 4.0, 0.5]) {
            assert!((hits - 10_000.0 * by_hand).abs() < 10.0, "{hits}");
        }
        assert!(Pool::of(&groups, vec![None, Some(vec![0.0]), None]).is_none());
    }

    #[test]
    fn quantiles_lie_between_two_numbers_in_proportion() {
        let numbers = [1.0, 2.0, 4.0, 8.0];
        for (share, by_hand) in [(0.0, 1.0), (0.25, 1.75), (0.5, 3.0), (1.0, 8.0)] {
            assert!((quantile(&numbers, share) - by_hand).abs() < 1e-12, "{share}");
        }
        assert_eq!(quantile(&[3.0], 0.975), 3.0);
    }
}
