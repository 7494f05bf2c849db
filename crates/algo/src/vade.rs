//! VADE (arXiv 2511.18902): which prompts to generate for, so that a group is likely to carry signal.
//!
//! Each prompt has counts of right and wrong responses, `α` and `β`. Its chance of a right one is believed to
//! be `p ~ Beta(α + 1, β + 1)`. In each round every prompt draws a `p` (Thompson sampling), and those are
//! selected whose information gain is largest. A selected one's counts become `λ1 α + right` and
//! `λ1 β + wrong`, the others' `λ2 α` and `λ2 β`, so that old results are doubted again.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a group is worth, as a function of the chance of a right response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Gain {
    /// `p (1 - p)²`, largest at 1/3: the paper's, which prefers prompts that are somewhat hard.
    #[default]
    Skewed,
    /// `p (1 - p)`, the variance of one response's result.
    Variance,
}

impl Gain {
    /// What a group with this chance is worth.
    fn of(self, p: f64) -> f64 {
        match self {
            Self::Skewed => p * (1.0 - p) * (1.0 - p),
            Self::Variance => p * (1.0 - p),
        }
    }
}

/// How prompts are selected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vade {
    /// What a group is worth.
    pub gain: Gain,
    /// λ1: what of a selected prompt's counts stays beside the new ones.
    pub selected_decay: f64,
    /// λ2: what of the counts stays after a round in which the prompt was not selected.
    pub unselected_decay: f64,
}

/// What is known of every prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Posteriors {
    /// Rounds of selection so far.
    round: u64,
    /// Prompts that have results; the others are uniform.
    known: BTreeMap<u64, Counts>,
}

/// Right and wrong responses of a prompt, the older ones decayed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Counts {
    right: f64,
    wrong: f64,
    /// The round of the last result.
    round: u64,
}

impl Counts {
    /// The counts in `round`, after the rounds between in which the prompt was not selected.
    fn at(self, round: u64, vade: &Vade) -> Self {
        let passed = round.saturating_sub(self.round + 1);
        let decay = vade.unselected_decay.powi(i32::try_from(passed).unwrap_or(i32::MAX));
        Self { right: self.right * decay, wrong: self.wrong * decay, round }
    }
}

impl Posteriors {
    /// Selects `count` of `prompts` prompts for the next round, the most promising first. The draws depend on
    /// the seed, the round and the results.
    pub fn select(&mut self, vade: &Vade, seed: u64, prompts: u64, count: usize) -> Vec<u64> {
        self.round += 1;
        let mut random = Draws::new(seed, self.round);
        let mut gains: Vec<(f64, u64)> = Vec::new();
        for prompt in 0..prompts {
            let p = match self.known.get(&prompt) {
                None => random.uniform(),
                Some(counts) => {
                    let Counts { right, wrong, .. } = counts.at(self.round, vade);
                    random.beta(right + 1.0, wrong + 1.0)
                }
            };
            gains.push((vade.gain.of(p), prompt));
        }
        let count = count.min(gains.len());
        if (1..gains.len()).contains(&count) {
            gains.select_nth_unstable_by(count - 1, compare);
        }
        gains.truncate(count);
        gains.sort_by(compare);
        gains.into_iter().map(|(_, prompt)| prompt).collect()
    }

    /// A group of a selected prompt is complete.
    pub fn observe(&mut self, vade: &Vade, prompt: u64, right: u64, wrong: u64) {
        let round = self.round;
        let before = self.known.get(&prompt).copied().map(|counts| counts.at(round, vade));
        let Counts { right: old_right, wrong: old_wrong, .. } =
            before.unwrap_or(Counts { right: 0.0, wrong: 0.0, round });
        let counts = Counts {
            right: vade.selected_decay * old_right + right as f64,
            wrong: vade.selected_decay * old_wrong + wrong as f64,
            round,
        };
        self.known.insert(prompt, counts);
    }
}

/// The larger gain first, then the prompt's place.
fn compare(one: &(f64, u64), other: &(f64, u64)) -> std::cmp::Ordering {
    other.0.total_cmp(&one.0).then(one.1.cmp(&other.1))
}

/// The distance of two neighbouring numbers that are drawn: 2^-52.
const DRAW_STEP: f64 = 1.0 / (1_u64 << 52) as f64;

/// Tries of a gamma draw, of which one needs 1.05 in the mean; so many never end but by a fault.
const GAMMA_TRIES: usize = 1000;

/// The random numbers of one round.
struct Draws(ChaCha8Rng);

impl Draws {
    fn new(seed: u64, round: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(round);
        Self(random)
    }

    /// A number between 0 and 1, both excluded.
    fn uniform(&mut self) -> f64 {
        ((self.0.next_u64() >> 12) as f64 + 0.5) * DRAW_STEP
    }

    /// Box and Muller, 1958.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", 2000, for shapes of 1 or more.
    /// A smaller one, of counts that nobody has, is taken for 1.
    fn gamma(&mut self, shape: f64) -> f64 {
        let d = shape.max(1.0) - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        for _ in 0..GAMMA_TRIES {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
        d
    }

    fn beta(&mut self, alpha: f64, beta: f64) -> f64 {
        let (x, y) = (self.gamma(alpha), self.gamma(beta));
        x / (x + y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAPER: Vade = Vade { gain: Gain::Skewed, selected_decay: 0.2, unselected_decay: 0.999 };

    fn counts(posteriors: &Posteriors, prompt: u64) -> (f64, f64) {
        let Counts { right, wrong, .. } = posteriors.known[&prompt];
        (right, wrong)
    }

    #[test]
    fn counts_are_those_of_the_papers_figure() {
        // The framework figure: (0.1, 8.4) with 1 of 8 right, (2.7, 5.3) with 4 of 8.
        let mut posteriors = Posteriors { round: 1, ..Posteriors::default() };
        posteriors.known.insert(0, Counts { right: 0.1, wrong: 8.4, round: 0 });
        posteriors.known.insert(1, Counts { right: 2.7, wrong: 5.3, round: 0 });
        posteriors.observe(&PAPER, 0, 1, 7);
        posteriors.observe(&PAPER, 1, 4, 4);
        for (prompt, (right, wrong)) in [(0, (1.02, 8.68)), (1, (4.54, 5.06))] {
            let (r, w) = counts(&posteriors, prompt);
            assert!((r - right).abs() < 1e-12 && (w - wrong).abs() < 1e-12, "{r}, {w}");
        }
        // Not selected for one round: (9.0, 0.2) becomes (8.991, 0.1998).
        let unselected = Counts { right: 9.0, wrong: 0.2, round: 0 }.at(2, &PAPER);
        assert!((unselected.right - 8.991).abs() < 1e-12 && (unselected.wrong - 0.1998).abs() < 1e-12);
    }

    #[test]
    fn gains_are_the_papers() {
        assert!((Gain::Skewed.of(1.0 / 3.0) - 4.0 / 27.0).abs() < 1e-12);
        assert!((Gain::Skewed.of(0.75) - 0.046_875).abs() < 1e-12);
        assert!((Gain::Variance.of(0.25) - 0.1875).abs() < 1e-12);
    }

    #[test]
    fn beta_draws_have_the_moments_of_the_distribution() {
        let mut draws = Draws::new(1, 1);
        for (alpha, beta) in [(1.0, 1.0), (2.5, 7.0), (30.0, 4.0)] {
            let sample: Vec<f64> = (0..20_000).map(|_| draws.beta(alpha, beta)).collect();
            let mean = sample.iter().sum::<f64>() / sample.len() as f64;
            let variance = sample.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / sample.len() as f64;
            let sum: f64 = alpha + beta;
            assert!((mean - alpha / sum).abs() < 0.01, "{mean}");
            assert!((variance - alpha * beta / (sum * sum * (sum + 1.0))).abs() < 0.003, "{variance}");
        }
    }

    /// Share of groups with signal in the last rounds; chances are uniform and do not change.
    fn share_with_signal(vade: Option<&Vade>) -> f64 {
        let (prompts, count, group, rounds) = (400, 20, 8, 60);
        let mut chances = Draws::new(5, 0);
        // Most prompts are nearly always right or nearly always wrong.
        let chances: Vec<f64> = (0..prompts).map(|_| chances.uniform().powi(6)).collect();
        let (mut posteriors, mut responses) = (Posteriors::default(), Draws::new(6, 0));
        let (mut mixed, mut all) = (0, 0);
        for round in 0..rounds {
            let selected: Vec<u64> = match vade {
                Some(vade) => posteriors.select(vade, 9, prompts, count),
                None => (0..count as u64).map(|place| (round * 20 + place) % prompts).collect(),
            };
            for prompt in selected {
                let chance = chances[usize::try_from(prompt).unwrap()];
                let right = (0..group).filter(|_| responses.uniform() < chance).count() as u64;
                if let Some(vade) = vade {
                    posteriors.observe(vade, prompt, right, group - right);
                }
                if round >= 40 {
                    mixed += u64::from((1..group).contains(&right));
                    all += 1;
                }
            }
        }
        f64::from(u32::try_from(mixed).unwrap()) / f64::from(all)
    }

    #[test]
    fn more_groups_carry_signal_than_in_order() {
        let (in_order, vade) = (share_with_signal(None), share_with_signal(Some(&PAPER)));
        assert!(vade > in_order + 0.1, "{in_order} in order, {vade} with VADE");
    }

    /// Mean and variance of many draws, each within five of its standard errors.
    fn assert_moments(name: &str, mean: f64, variance: f64, draw: impl Fn(&mut Draws) -> f64) {
        const DRAWS: usize = 40_000;
        let mut draws = Draws::new(3, 1);
        let drawn: Vec<f64> = (0..DRAWS).map(|_| draw(&mut draws)).collect();
        let found = drawn.iter().sum::<f64>() / DRAWS as f64;
        let squares: Vec<f64> = drawn.iter().map(|value| (value - mean).powi(2)).collect();
        let spread = squares.iter().sum::<f64>() / DRAWS as f64;
        let fourth = squares.iter().map(|square| (square - variance).powi(2)).sum::<f64>() / DRAWS as f64;
        let errors = [variance, fourth].map(|of| 5.0 * (of / DRAWS as f64).sqrt());
        assert!((found - mean).abs() < errors[0], "{name}: mean {found}, not {mean}");
        assert!((spread - variance).abs() < errors[1], "{name}: variance {spread}, not {variance}");
    }

    #[test]
    fn draws_have_the_moments_of_their_distributions() {
        assert_moments("uniform", 0.5, 1.0 / 12.0, Draws::uniform);
        assert_moments("normal", 0.0, 1.0, Draws::normal);
        for shape in [1.0, 2.5, 40.0] {
            assert_moments("gamma", shape, shape, |draws| draws.gamma(shape));
        }
        assert_moments("beta", 0.25, 3.0 / 80.0, |draws| draws.beta(1.0, 3.0));
    }

    #[test]
    fn a_selection_depends_on_seed_round_and_results_alone() {
        let mut one = Posteriors::default();
        let first = one.select(&PAPER, 3, 50, 7);
        assert_eq!(first.len(), 7);
        assert_eq!(Posteriors::default().select(&PAPER, 3, 50, 7), first);
        assert_ne!(one.select(&PAPER, 3, 50, 7), first, "another round draws anew");
        assert_eq!(Posteriors::default().select(&PAPER, 3, 4, 7).len(), 4, "no more than there are");
    }
}
