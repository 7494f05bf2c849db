//! Policy filtration (PF-PPO, arXiv 2409.06957): which of a prompt's rollouts the policy learns from, and
//! with what weight.
//!
//! Invariants:
//!
//! 1. A decision depends on the configuration, the seed, and one group's ids and scores: not on the order of
//!    the rollouts, nor on other prompts. (Batch-wide filters keep 2 samples of 1024 where rewards are
//!    continuous.) What is buffer-wide by its definition ([`Filtration::is_buffer_wide`]) depends on all
//!    groups of the buffer, and not on their order.
//! 2. Ties are broken by the seed, never by position.
//! 3. There is no importance correction: the kept samples train as if the unfiltered policy had been asked
//!    for nothing else.

mod buffer;
mod diagnostics;
mod random;
mod strategy;

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::buffer::filter_buffer;
pub use self::diagnostics::Diagnostics;
use self::random::GroupRandom;
pub use self::strategy::{Strategy, rank_weights};

/// How the distribution a strategy puts on a group becomes weights. In text: `select`, `resample` (2 draws),
/// `resample:DRAWS`, `resample-buffer`, `resample-buffer:DRAWS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum Mode {
    /// Without replacement, at the least training compute. best-of-n keeps the best; best-random the best and
    /// one random other; best-worst the best and the worst; thresholds what is beyond them (top-random each
    /// other one with probability 1/2); all with weight 1. `power` keeps all with weight `M |score|^k / Σ
    /// |score|^k`, the sum over the M responses of the buffer; `power-per-prompt` over the N of the prompt.
    #[default]
    Select,
    /// With replacement, as the paper's sampling step: so many draws per prompt; the weight is the number of
    /// times drawn. Threshold strategies draw evenly from what they would keep (top-random: with half the
    /// probability below the threshold).
    Resample {
        /// Draws per prompt; the weights of a group sum to it. Under `power` the draws are from the whole
        /// buffer, and a group's weights sum to it on average.
        draws: u32,
    },
    /// The same with all draws from the whole buffer, as the authors' code has it: a prompt may be drawn more
    /// often than another, or never.
    ResampleBuffer {
        /// Draws per prompt, on average.
        draws: u32,
    },
}

/// Draws per prompt where none is given: the paper's "2 out of the N = 5 responses (on average)".
pub const DEFAULT_DRAWS: u32 = 2;

/// When a group of two or more rollouts with equal scores is set aside as carrying no signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NoSignal {
    /// Under best-worst, which has nothing to contrast there. Every other strategy treats the group like any
    /// other: best-random keeps two at random.
    #[default]
    BestWorst,
    /// Under every strategy: DAPO's dynamic sampling (arXiv 2503.14476) keeps a prompt only if its scores
    /// differ.
    Always,
    /// Never: best-worst then keeps two at random.
    Never,
}

/// What to filter by.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Filtration {
    /// The strategy; best-worst where none is given.
    pub strategy: Strategy,
    /// How the distribution becomes weights.
    pub mode: Mode,
    /// What to do with equal scores.
    pub no_signal: NoSignal,
}

/// One rollout of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<'a> {
    /// Its stable id, unique in the group.
    pub rollout_id: &'a str,
    /// Its score; finite.
    pub score: f64,
}

/// The rollouts of one prompt, in any order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group<'a> {
    /// The stable id of the prompt.
    pub prompt_id: &'a str,
    /// The rollouts that have a score.
    pub rollouts: &'a [Candidate<'a>],
}

/// What becomes of one rollout.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Choice {
    /// Its weight in the losses; above 0 exactly if it is kept.
    pub weight: f64,
    /// Whether it trains.
    pub kept: bool,
}

/// What becomes of a group.
#[derive(Debug, Clone, PartialEq)]
pub enum GroupDecision {
    /// One choice per rollout, in the order they were given. A threshold can leave none kept.
    Choices(Vec<Choice>),
    /// The group carries no signal: its scores are equal (see [`NoSignal`](enum@NoSignal)), or all 0 under
    /// `power`.
    NoSignal,
}

/// Why a group cannot be filtered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// No such strategy, or a parameter outside its range.
    #[error(
        "filtration strategy {given:?} is none of none, best-of-n, best-random, best-worst, power:K (K of 0 or more), \
         power-per-prompt:K, top:T, top-random:T, top-bottom:LOW:HIGH (LOW at most HIGH)"
    )]
    Strategy {
        /// What was given.
        given: String,
    },
    /// No such mode.
    #[error(
        "filtration mode {given:?} is none of select, resample, resample:DRAWS (1 or more), resample-buffer, \
         resample-buffer:DRAWS"
    )]
    Mode {
        /// What was given.
        given: String,
    },
    /// A group without rollouts.
    #[error("prompt {prompt_id}: the group has no rollouts")]
    EmptyGroup {
        /// The id of the group.
        prompt_id: String,
    },
    /// Two rollouts with one id.
    #[error("prompt {prompt_id}: rollout {rollout_id} occurs twice in the group")]
    DuplicateRollout {
        /// The id of the group.
        prompt_id: String,
        /// The id of the rollout.
        rollout_id: String,
    },
    /// A score that is NaN or infinite. A rollout whose scoring failed must not be offered at all.
    #[error("prompt {prompt_id}: the score of rollout {rollout_id} is {score}, expected a finite number")]
    Score {
        /// The id of the group.
        prompt_id: String,
        /// The id of the rollout.
        rollout_id: String,
        /// The score it was offered with.
        score: f64,
    },
}

/// Filters one group: for a filtration that is buffer-wide, a buffer that holds nothing else.
///
/// A group of one is kept by `none` and the best-\* strategies: with weight 1 by [`Mode::Select`], with
/// weight `draws` by [`Mode::Resample`], since every draw hits it.
///
/// # Errors
/// An invalid strategy or mode, an empty group, an id that occurs twice, or a score that is not finite.
pub fn filter_group(filtration: &Filtration, seed: u64, group: &Group<'_>) -> Result<GroupDecision, Error> {
    filtration.validate()?;
    let (ranking, mut random) = rank(seed, group)?;
    let scores: Vec<f64> = ranking.iter().map(|&place| group.rollouts[place].score).collect();
    if filtration.lacks_signal(&scores) {
        return Ok(GroupDecision::NoSignal);
    }
    let weights = match filtration.mode {
        Mode::Select => select(filtration.strategy, &scores, &mut random),
        Mode::Resample { draws } | Mode::ResampleBuffer { draws } => {
            resample(filtration.strategy, draws, &scores, &mut random)
        }
    };
    let mut choices = vec![Choice::default(); scores.len()];
    for (place, weight) in ranking.into_iter().zip(weights) {
        choices[place] = Choice { weight, kept: weight > 0.0 };
    }
    Ok(GroupDecision::Choices(choices))
}

/// Places of the rollouts from best to worst, ties broken at random, and the stream to go on drawing from.
fn rank(seed: u64, group: &Group<'_>) -> Result<(Vec<usize>, GroupRandom), Error> {
    let Group { prompt_id, rollouts } = *group;
    if rollouts.is_empty() {
        return Err(Error::EmptyGroup { prompt_id: prompt_id.to_owned() });
    }
    if let Some(bad) = rollouts.iter().find(|rollout| !rollout.score.is_finite()) {
        let (prompt_id, rollout_id) = (prompt_id.to_owned(), bad.rollout_id.to_owned());
        return Err(Error::Score { prompt_id, rollout_id, score: bad.score });
    }
    let mut by_id: Vec<(usize, &Candidate<'_>)> = rollouts.iter().enumerate().collect();
    by_id.sort_unstable_by_key(|(_, rollout)| rollout.rollout_id);
    for pair in by_id.windows(2) {
        let [(_, one), (_, next)] = pair else { continue };
        if one.rollout_id == next.rollout_id {
            let (prompt_id, rollout_id) = (prompt_id.to_owned(), one.rollout_id.to_owned());
            return Err(Error::DuplicateRollout { prompt_id, rollout_id });
        }
    }
    let ids = by_id.iter().map(|(_, rollout)| rollout.rollout_id);
    let mut random = GroupRandom::new(seed, prompt_id, ids);
    let mut ranking = Vec::with_capacity(rollouts.len());
    for (place, rollout) in by_id {
        // Adding 0 makes -0 a 0, which total_cmp would rank below it.
        ranking.push(Ranked { score: rollout.score + 0.0, tie_breaker: random.tie_breaker(), place });
    }
    ranking.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.tie_breaker.cmp(&b.tie_breaker)));
    Ok((ranking.into_iter().map(|ranked| ranked.place).collect(), random))
}

/// A rollout in the ranking of its group.
struct Ranked {
    score: f64,
    /// Among equal scores the smaller one is ahead.
    tie_breaker: u64,
    /// Where it stands in the group.
    place: usize,
}

/// Weights by rank in [`Mode::Select`].
fn select(strategy: Strategy, ranked_scores: &[f64], random: &mut GroupRandom) -> Vec<f64> {
    let size = ranked_scores.len();
    let last = size - 1;
    let mut weights = vec![0.0; size];
    match strategy {
        Strategy::None => weights.fill(1.0),
        Strategy::BestOfN => weights[0] = 1.0,
        Strategy::BestRandom => {
            weights[0] = 1.0;
            if last > 0 {
                weights[1 + random.below(last)] = 1.0;
            }
        }
        Strategy::BestWorst => {
            weights[0] = 1.0;
            weights[last] = 1.0;
        }
        Strategy::Power { .. } | Strategy::PowerPerPrompt { .. } => {
            let shares = strategy.distribution(ranked_scores).unwrap_or_default();
            weights.iter_mut().zip(shares).for_each(|(weight, share)| *weight = share * size as f64);
        }
        Strategy::Top { .. } | Strategy::TopRandom { .. } | Strategy::TopBottom { .. } => {
            for (weight, &score) in weights.iter_mut().zip(ranked_scores) {
                let kept =
                    strategy.inclusion(score).is_some_and(|probability| random.uniform() < probability);
                *weight = f64::from(u8::from(kept));
            }
        }
    }
    weights
}

/// Weights by rank in [`Mode::Resample`]: how often each was drawn.
fn resample(strategy: Strategy, draws: u32, ranked_scores: &[f64], random: &mut GroupRandom) -> Vec<f64> {
    let mut weights = vec![0.0; ranked_scores.len()];
    if let Some(distribution) = strategy.distribution(ranked_scores) {
        for _ in 0..draws {
            weights[random.categorical(&distribution)] += 1.0;
        }
    }
    weights
}

impl Filtration {
    /// The weight each rollout of a group gets *on average* over seeds, for scores in any order; `None` where
    /// the group carries no signal. Rollouts with equal scores have equal expectations.
    ///
    /// # Errors
    /// An invalid strategy or mode.
    pub fn expected_weights(&self, scores: &[f64]) -> Result<Option<Vec<f64>>, Error> {
        self.validate()?;
        let mut ranking: Vec<usize> = (0..scores.len()).collect();
        ranking.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let ranked: Vec<f64> = ranking.iter().map(|&place| scores[place]).collect();
        if self.lacks_signal(&ranked) {
            return Ok(None);
        }
        let Some(distribution) = self.strategy.distribution(&ranked) else {
            return Ok(Some(vec![0.0; scores.len()]));
        };
        let total = self.expected_total(&ranked);
        let mut weights = vec![0.0; scores.len()];
        let mut start = 0;
        for tied in ranked.chunk_by(|a, b| a == b) {
            let end = start + tied.len();
            let mean = distribution[start..end].iter().sum::<f64>() / tied.len() as f64;
            ranking[start..end].iter().for_each(|&place| weights[place] = mean * total);
            start = end;
        }
        Ok(Some(weights))
    }

    /// The sum of a group's weights, on average.
    fn expected_total(&self, ranked_scores: &[f64]) -> f64 {
        let size = ranked_scores.len();
        match (self.mode, self.strategy) {
            (Mode::Resample { draws } | Mode::ResampleBuffer { draws }, _) => f64::from(draws),
            (Mode::Select, Strategy::BestOfN) => 1.0,
            (Mode::Select, Strategy::BestRandom | Strategy::BestWorst) => size.min(2) as f64,
            (Mode::Select, Strategy::None | Strategy::Power { .. } | Strategy::PowerPerPrompt { .. }) => {
                size as f64
            }
            (
                Mode::Select,
                Strategy::Top { .. } | Strategy::TopRandom { .. } | Strategy::TopBottom { .. },
            ) => ranked_scores.iter().filter_map(|&score| self.strategy.inclusion(score)).sum(),
        }
    }

    /// Checks the strategy's parameters and the number of draws.
    ///
    /// # Errors
    /// Names what was given and what is legal.
    pub fn validate(&self) -> Result<(), Error> {
        self.strategy.validate()?;
        match self.mode {
            Mode::Resample { draws: 0 } | Mode::ResampleBuffer { draws: 0 } => {
                Err(Error::Mode { given: String::from(self.mode) })
            }
            Mode::Select | Mode::Resample { .. } | Mode::ResampleBuffer { .. } => Ok(()),
        }
    }

    fn lacks_signal(&self, ranked_scores: &[f64]) -> bool {
        let equal = ranked_scores.len() > 1 && ranked_scores.windows(2).all(|pair| pair[0] == pair[1]);
        let set_aside = match self.no_signal {
            NoSignal::BestWorst => self.strategy == Strategy::BestWorst,
            NoSignal::Always => true,
            NoSignal::Never => false,
        };
        let powerless = matches!(self.strategy, Strategy::Power { .. } | Strategy::PowerPerPrompt { .. })
            && ranked_scores.iter().all(|&score| score == 0.0);
        (equal && set_aside) || powerless
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, draws) = match text.split_once(':') {
            None => (text, Some(DEFAULT_DRAWS)),
            Some((name, draws)) => (name, draws.parse().ok().filter(|draws| *draws > 0)),
        };
        match (name, draws) {
            ("select", _) if text == name => Ok(Self::Select),
            ("resample", Some(draws)) => Ok(Self::Resample { draws }),
            ("resample-buffer", Some(draws)) => Ok(Self::ResampleBuffer { draws }),
            _ => Err(Error::Mode { given: text.to_owned() }),
        }
    }
}

impl TryFrom<String> for Mode {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        let (name, draws) = match mode {
            Mode::Select => ("select", DEFAULT_DRAWS),
            Mode::Resample { draws } => ("resample", draws),
            Mode::ResampleBuffer { draws } => ("resample-buffer", draws),
        };
        if draws == DEFAULT_DRAWS { name.to_owned() } else { format!("{name}:{draws}") }
    }
}
