//! The strategies of the paper, their names, and the distribution each puts on a group.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Error;

/// Which responses of a group the policy learns from (PF-PPO, arXiv 2409.06957, section 4; thresholds and
/// powers from section 5.6). In text, in configuration and on the command line: the name, then parameters
/// after colons.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum Strategy {
    /// `none`: all responses (PPO-M; with one response per prompt PPO-S).
    None,
    /// `best-of-n`: the best.
    BestOfN,
    /// `best-random`: half the probability on the best, half on the others alike.
    BestRandom,
    /// `best-worst`: half on the best, half on the worst.
    #[default]
    BestWorst,
    /// `power:K`: in proportion to `|score|^K` among all responses of the buffer, that is of the batch: the
    /// paper's PPO-pow-k. A prompt whose scores are small trains less than others.
    Power {
        /// The exponent `k` of PPO-pow-k, 0 or more; 1, 2, 3 in the paper.
        k: f64,
    },
    /// `power-per-prompt:K`: in proportion to `|score|^K` among the responses of the prompt, so that each
    /// prompt trains as much as another.
    PowerPerPrompt {
        /// The exponent, 0 or more.
        k: f64,
    },
    /// `top:T`: scores above the threshold.
    Top {
        /// The score above which a response is kept.
        threshold: f64,
    },
    /// `top-random:T`: scores above the threshold, each other one with probability 1/2.
    TopRandom {
        /// The score above which a response is kept.
        threshold: f64,
    },
    /// `top-bottom:LOW:HIGH`: scores above `HIGH` or below `LOW`.
    TopBottom {
        /// The lower threshold.
        low: f64,
        /// The upper threshold, not below the lower one.
        high: f64,
    },
}

impl Strategy {
    /// The paper's strategies that need no threshold.
    pub const WITHOUT_THRESHOLD: [Self; 7] = [
        Self::None,
        Self::BestOfN,
        Self::BestRandom,
        Self::BestWorst,
        Self::Power { k: 1.0 },
        Self::Power { k: 2.0 },
        Self::Power { k: 3.0 },
    ];

    /// The name without parameters: a closed set, fit for a metric label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::BestOfN => "best-of-n",
            Self::BestRandom => "best-random",
            Self::BestWorst => "best-worst",
            Self::Power { .. } => "power",
            Self::PowerPerPrompt { .. } => "power-per-prompt",
            Self::Top { .. } => "top",
            Self::TopRandom { .. } => "top-random",
            Self::TopBottom { .. } => "top-bottom",
        }
    }

    pub(super) fn validate(&self) -> Result<(), Error> {
        let valid = match *self {
            Self::None | Self::BestOfN | Self::BestRandom | Self::BestWorst => true,
            Self::Power { k } | Self::PowerPerPrompt { k } => k.is_finite() && k >= 0.0,
            Self::Top { threshold } | Self::TopRandom { threshold } => threshold.is_finite(),
            Self::TopBottom { low, high } => low.is_finite() && high.is_finite() && low <= high,
        };
        if valid { Ok(()) } else { Err(Error::Strategy { given: self.to_string() }) }
    }

    /// The probability with which a threshold strategy keeps a response with this score; `None` for the
    /// others.
    pub(super) fn inclusion(&self, score: f64) -> Option<f64> {
        match *self {
            Self::Top { threshold } => Some(if score > threshold { 1.0 } else { 0.0 }),
            Self::TopRandom { threshold } => Some(if score > threshold { 1.0 } else { 0.5 }),
            Self::TopBottom { low, high } => Some(if score > high || score < low { 1.0 } else { 0.0 }),
            Self::None
            | Self::BestOfN
            | Self::BestRandom
            | Self::BestWorst
            | Self::Power { .. }
            | Self::PowerPerPrompt { .. } => None,
        }
    }

    /// The distribution of the filtered policy over a group, given the scores from best to worst. `None`
    /// where the strategy leaves nothing: all scores 0 under `power`, none beyond a threshold.
    pub(super) fn distribution(&self, ranked_scores: &[f64]) -> Option<Vec<f64>> {
        if let Some(weights) = rank_weights(*self, ranked_scores.len()) {
            return Some(weights);
        }
        let mut weights: Vec<f64> = match *self {
            Self::Power { k } | Self::PowerPerPrompt { k } => {
                // Relative to the largest, so that a large power neither overflows nor vanishes.
                let largest = ranked_scores.iter().fold(0.0, |largest: f64, score| largest.max(score.abs()));
                if largest == 0.0 {
                    return None;
                }
                ranked_scores.iter().map(|score| (score.abs() / largest).powf(k)).collect()
            }
            _ => ranked_scores.iter().filter_map(|&score| self.inclusion(score)).collect(),
        };
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        (sum > 0.0).then_some(weights)
    }
}

/// The weights `w` of a strategy that goes by rank, best first, for a group of `size` (PF-PPO, arXiv
/// 2409.06957, section 4): for 5, best-random is `(1/2, 1/8, 1/8, 1/8, 1/8)`. They sum to 1; a group of one
/// has weight 1. `None` for a strategy that goes by score, and for an empty group.
pub fn rank_weights(strategy: Strategy, size: usize) -> Option<Vec<f64>> {
    let last = size.checked_sub(1)?;
    if last == 0 && strategy.is_ranked() {
        return Some(vec![1.0]);
    }
    let mut weights = vec![0.0; size];
    match strategy {
        Strategy::None => weights.fill(1.0 / size as f64),
        Strategy::BestOfN => weights[0] = 1.0,
        Strategy::BestRandom => {
            weights.fill(0.5 / last as f64);
            weights[0] = 0.5;
        }
        Strategy::BestWorst => {
            weights[0] = 0.5;
            weights[last] = 0.5;
        }
        Strategy::Power { .. }
        | Strategy::PowerPerPrompt { .. }
        | Strategy::Top { .. }
        | Strategy::TopRandom { .. }
        | Strategy::TopBottom { .. } => {
            return None;
        }
    }
    Some(weights)
}

impl Strategy {
    fn is_ranked(&self) -> bool {
        matches!(self, Self::None | Self::BestOfN | Self::BestRandom | Self::BestWorst)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())?;
        match *self {
            Self::None | Self::BestOfN | Self::BestRandom | Self::BestWorst => Ok(()),
            Self::Power { k } | Self::PowerPerPrompt { k } => write!(formatter, ":{k}"),
            Self::Top { threshold } | Self::TopRandom { threshold } => write!(formatter, ":{threshold}"),
            Self::TopBottom { low, high } => write!(formatter, ":{low}:{high}"),
        }
    }
}

impl FromStr for Strategy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let parameters: Vec<f64> = match parts.map(str::parse).collect() {
            Ok(parameters) => parameters,
            Err(_) => return Err(Error::Strategy { given: text.to_owned() }),
        };
        let strategy = match (name, parameters.as_slice()) {
            ("none", []) => Self::None,
            ("best-of-n", []) => Self::BestOfN,
            ("best-random", []) => Self::BestRandom,
            ("best-worst", []) => Self::BestWorst,
            ("power", &[k]) => Self::Power { k },
            ("power-per-prompt", &[k]) => Self::PowerPerPrompt { k },
            ("top", &[threshold]) => Self::Top { threshold },
            ("top-random", &[threshold]) => Self::TopRandom { threshold },
            ("top-bottom", &[low, high]) => Self::TopBottom { low, high },
            _ => return Err(Error::Strategy { given: text.to_owned() }),
        };
        strategy.validate()?;
        Ok(strategy)
    }
}

impl TryFrom<String> for Strategy {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Strategy> for String {
    fn from(strategy: Strategy) -> Self {
        strategy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_through_text_and_configuration() {
        for name in [
            "none",
            "best-of-n",
            "best-random",
            "best-worst",
            "power:2",
            "power:0.5",
            "power-per-prompt:2",
            "top:0.8",
            "top-random:-1",
            "top-bottom:-0.8:0.8",
        ] {
            let strategy: Strategy = name.parse().unwrap();
            assert_eq!(strategy.to_string(), name);
            assert_eq!(strategy.name(), name.split(':').next().unwrap());
            let json = format!("\"{name}\"");
            assert_eq!(serde_json::to_string(&strategy).unwrap(), json);
            assert_eq!(serde_json::from_str::<Strategy>(&json).unwrap(), strategy);
        }
    }

    #[test]
    fn what_is_no_strategy_is_refused_with_the_choices() {
        for name in [
            "",
            "best",
            "power",
            "power:x",
            "power:-1",
            "power:NaN",
            "power:1:2",
            "top",
            "top:inf",
            "top-bottom:1",
            "top-bottom:1:0",
            "best-worst:2",
        ] {
            let error = name.parse::<Strategy>().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("best-random"), "{error}");
        }
    }
}
