//! Losses on preferences: the reward model's, and those that train a policy from pairs or labels without a
//! reward model.
//!
//! Each takes scores or *summed* log-probs of whole responses and returns the gradient with respect to them.
//! The mean is over `total`, the number of pairs or examples in the global minibatch, so that parts add up.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, require, require_each, require_non_negative, require_positive};
use crate::moments::Moments;

/// A loss over pairs, its gradients and sums for its metrics. Parts of a minibatch add up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PairLoss {
    /// The loss of these pairs.
    pub loss: f64,
    /// With respect to the chosen responses' scores or summed log-probs, `[pairs]`.
    pub chosen_gradient: Vec<f32>,
    /// With respect to the rejected responses' scores or summed log-probs, `[pairs]`.
    pub rejected_gradient: Vec<f32>,
    /// Pairs whose chosen response is ahead; over the number of pairs it is the accuracy. A tie counts one
    /// half.
    pub correct: f64,
    /// Moments of how far the chosen response is ahead: score difference, or `h_w − h_l` of log-ratios.
    pub margins: Moments,
    /// Moments of the chosen responses' side of it: their scores, or their `h_w`.
    pub chosen: Moments,
}

impl PairLoss {
    fn count(&mut self, chosen: f64, rejected: f64) {
        let margin = chosen - rejected;
        self.chosen.push(chosen);
        self.margins.push(margin);
        self.correct += if margin == 0.0 { 0.5 } else { f64::from(u8::from(margin > 0.0)) };
    }
}

/// Scores of pairs for the reward model's loss.
#[derive(Debug, Clone, Copy)]
pub struct ScorePairs<'a> {
    /// Scores of the chosen responses, `[pairs]`.
    pub chosen_scores: &'a [f32],
    /// Scores of the rejected responses, `[pairs]`.
    pub rejected_scores: &'a [f32],
    /// How much better each chosen response is known to be, `[pairs]`; `None` is 0.
    pub margins: Option<&'a [f32]>,
    /// Pairs in the global minibatch.
    pub total: usize,
}

/// The reward model's loss `−log σ(r_w − r_l − margin)`, mean over pairs (Bradley–Terry; PF-PPO, arXiv
/// 2409.06957, Eqs. 1, 2; the margin as in Llama 2, arXiv 2307.09288).
///
/// # Errors
/// A wrong length, a number that is not finite, or a total below the number of pairs at hand.
pub fn bradley_terry(pairs: &ScorePairs<'_>) -> Result<PairLoss, Error> {
    let count = pairs.chosen_scores.len();
    require_each("chosen_scores", pairs.chosen_scores, count, "pair")?;
    require_each("rejected_scores", pairs.rejected_scores, count, "pair")?;
    if let Some(margins) = pairs.margins {
        require_each("margins", margins, count, "pair")?;
    }
    require_total(pairs.total, count)?;
    let mut result = PairLoss::default();
    for pair in 0..count {
        let chosen = f64::from(pairs.chosen_scores[pair]);
        let rejected = f64::from(pairs.rejected_scores[pair]);
        let margin = pairs.margins.map_or(0.0, |margins| f64::from(margins[pair]));
        let ahead = chosen - rejected - margin;
        result.loss += softplus(-ahead) / pairs.total as f64;
        let slope = -sigmoid(-ahead) / pairs.total as f64;
        result.chosen_gradient.push(slope as f32);
        result.rejected_gradient.push(-slope as f32);
        result.count(chosen, rejected);
    }
    Ok(result)
}

/// How the log-ratios `h_w`, `h_l` of a pair become a loss; `h = log π(y) − log π_ref(y)`, summed over the
/// response.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PreferenceObjective {
    /// `−log σ(β (h_w − h_l))` (DPO, arXiv 2305.18290, Eq. 7)
    Dpo {
        /// β, how strongly the policy is held to the reference.
        beta: f64,
    },
    /// `−(1 − ε) log σ(β (h_w − h_l)) − ε log σ(−β (h_w − h_l))`: labels are wrong with probability ε
    /// (conservative DPO)
    Cdpo {
        /// β, how strongly the policy is held to the reference.
        beta: f64,
        /// ε, from 0 to below 1/2.
        label_smoothing: f64,
    },
    /// `(h_w − h_l − 1/(2τ))²` (IPO, arXiv 2310.12036)
    Ipo {
        /// τ, the strength of the regularisation.
        tau: f64,
        /// Whether each `h` is first divided by its response's length, as TRL, HALOs and AReaL do; the DPO
        /// authors' repository and OpenRLHF take the sum.
        length_average: bool,
    },
}

/// Pairs of responses under the policy and the reference; all `[pairs]`, log-probs summed over the response.
#[derive(Debug, Clone, Copy)]
pub struct PreferencePairs<'a> {
    /// `log π_θ(y_w)` of the chosen responses.
    pub chosen_logprobs: &'a [f32],
    /// `log π_θ(y_l)` of the rejected responses.
    pub rejected_logprobs: &'a [f32],
    /// `log π_ref(y_w)` of the chosen responses.
    pub ref_chosen_logprobs: &'a [f32],
    /// `log π_ref(y_l)` of the rejected responses.
    pub ref_rejected_logprobs: &'a [f32],
    /// Tokens of the chosen responses.
    pub chosen_lengths: &'a [usize],
    /// Tokens of the rejected responses.
    pub rejected_lengths: &'a [usize],
    /// Pairs in the global minibatch.
    pub total: usize,
}

/// The loss of a policy on preference pairs, mean over pairs, with gradients with respect to the policy's
/// summed log-probs.
///
/// # Errors
/// A parameter outside its range, a wrong length, a number that is not finite, a length of 0 where it
/// divides, or a total below the number of pairs at hand.
pub fn preference_loss(
    objective: &PreferenceObjective,
    pairs: &PreferencePairs<'_>,
) -> Result<PairLoss, Error> {
    objective.validate()?;
    let count = pairs.chosen_logprobs.len();
    require_each("chosen_logprobs", pairs.chosen_logprobs, count, "pair")?;
    require_each("rejected_logprobs", pairs.rejected_logprobs, count, "pair")?;
    require_each("ref_chosen_logprobs", pairs.ref_chosen_logprobs, count, "pair")?;
    require_each("ref_rejected_logprobs", pairs.ref_rejected_logprobs, count, "pair")?;
    let chosen_scales = objective.scales("chosen_lengths", pairs.chosen_lengths, count)?;
    let rejected_scales = objective.scales("rejected_lengths", pairs.rejected_lengths, count)?;
    require_total(pairs.total, count)?;
    let mut result = PairLoss::default();
    for pair in 0..count {
        let chosen = f64::from(pairs.chosen_logprobs[pair]) - f64::from(pairs.ref_chosen_logprobs[pair]);
        let rejected =
            f64::from(pairs.rejected_logprobs[pair]) - f64::from(pairs.ref_rejected_logprobs[pair]);
        let (chosen, rejected) = (chosen * chosen_scales[pair], rejected * rejected_scales[pair]);
        let (value, slope) = objective.at(chosen - rejected);
        result.loss += value / pairs.total as f64;
        result.chosen_gradient.push((slope * chosen_scales[pair] / pairs.total as f64) as f32);
        result.rejected_gradient.push((-slope * rejected_scales[pair] / pairs.total as f64) as f32);
        result.count(chosen, rejected);
    }
    Ok(result)
}

impl PreferenceObjective {
    /// Value and derivative with respect to `h_w − h_l`.
    fn at(&self, margin: f64) -> (f64, f64) {
        match *self {
            Self::Dpo { beta } => (softplus(-beta * margin), -beta * sigmoid(-beta * margin)),
            Self::Cdpo { beta, label_smoothing } => {
                let logit = beta * margin;
                let value = (1.0 - label_smoothing) * softplus(-logit) + label_smoothing * softplus(logit);
                (value, beta * (sigmoid(logit) - (1.0 - label_smoothing)))
            }
            Self::Ipo { tau, .. } => {
                let error = margin - 0.5 / tau;
                (error * error, 2.0 * error)
            }
        }
    }

    /// What each log-ratio is multiplied by.
    fn scales(&self, what: &'static str, lengths: &[usize], pairs: usize) -> Result<Vec<f64>, Error> {
        if lengths.len() != pairs {
            return Err(Error::Length { what, found: lengths.len(), expected: pairs, unit: "pair" });
        }
        if !matches!(self, Self::Ipo { length_average: true, .. }) {
            return Ok(vec![1.0; pairs]);
        }
        require(!lengths.contains(&0), what, 0.0, "1 token or more")?;
        Ok(lengths.iter().map(|length| 1.0 / *length as f64).collect())
    }

    fn validate(&self) -> Result<(), Error> {
        match *self {
            Self::Dpo { beta } => require_positive("beta", beta),
            Self::Cdpo { beta, label_smoothing } => {
                require_positive("beta", beta)?;
                let valid = (0.0..0.5).contains(&label_smoothing);
                require(valid, "label_smoothing", label_smoothing, "from 0 to below 0.5")
            }
            Self::Ipo { tau, .. } => require_positive("tau", tau),
        }
    }
}

/// The parameters of KTO (arXiv 2402.01306).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Kto {
    /// β, how strongly the policy is held to the reference.
    pub beta: f64,
    /// λ_D, the weight of desirable examples.
    pub desirable_weight: f64,
    /// λ_U, the weight of undesirable examples.
    pub undesirable_weight: f64,
}

/// Labelled responses; slices are `[examples]`, log-probs summed over the response.
#[derive(Debug, Clone, Copy)]
pub struct LabelledResponses<'a> {
    /// `log π_θ(y)` of each response.
    pub logprobs: &'a [f32],
    /// `log π_ref(y)` of each response.
    pub ref_logprobs: &'a [f32],
    /// Whether the response is desirable.
    pub desirable: &'a [bool],
    /// Examples in the global minibatch.
    pub total: usize,
}

/// KTO's loss and its gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct KtoLoss {
    /// The loss; parts of a minibatch add up.
    pub loss: f64,
    /// With respect to `logprobs`, `[examples]`.
    pub gradient: Vec<f32>,
    /// Moments of the implicit reward `β h` of the desirable examples.
    pub desirable_rewards: Moments,
    /// Moments of the implicit reward `β h` of the undesirable examples.
    pub undesirable_rewards: Moments,
}

/// KTO's reference point `z = max(0, mean(log π_θ(y′|x) − log π_ref(y′|x)))` over *mismatched* pairs (each
/// prompt with another prompt's response), from the moments of those log-ratios over all ranks. It is
/// detached: no gradient flows through it.
pub fn kto_reference_point(mismatched_log_ratios: &Moments) -> f64 {
    mismatched_log_ratios.mean().max(0.0)
}

/// KTO: `λ_D (1 − σ(β (h − z)))` for desirable and `λ_U (1 − σ(β (z − h)))` for undesirable responses, mean
/// over examples (arXiv 2402.01306, section 4; HALOs `KTOTrainer`).
///
/// # Errors
/// A parameter outside its range, a wrong length, a number that is not finite, or a total below the number of
/// examples at hand.
pub fn kto_loss(kto: &Kto, reference_point: f64, examples: &LabelledResponses<'_>) -> Result<KtoLoss, Error> {
    require_positive("beta", kto.beta)?;
    require_non_negative("desirable_weight", kto.desirable_weight)?;
    require_non_negative("undesirable_weight", kto.undesirable_weight)?;
    require_non_negative("reference_point", reference_point)?;
    let count = examples.logprobs.len();
    require_each("logprobs", examples.logprobs, count, "example")?;
    require_each("ref_logprobs", examples.ref_logprobs, count, "example")?;
    if examples.desirable.len() != count {
        let found = examples.desirable.len();
        return Err(Error::Length { what: "desirable", found, expected: count, unit: "example" });
    }
    require_total(examples.total, count)?;
    let mut result = KtoLoss {
        loss: 0.0,
        gradient: Vec::new(),
        desirable_rewards: Moments::default(),
        undesirable_rewards: Moments::default(),
    };
    for (example, &desirable) in examples.desirable.iter().enumerate() {
        let log_ratio = f64::from(examples.logprobs[example]) - f64::from(examples.ref_logprobs[example]);
        let (weight, sign, rewards) = if desirable {
            (kto.desirable_weight, 1.0, &mut result.desirable_rewards)
        } else {
            (kto.undesirable_weight, -1.0, &mut result.undesirable_rewards)
        };
        rewards.push(kto.beta * log_ratio);
        let logit = sign * kto.beta * (log_ratio - reference_point);
        result.loss += weight * sigmoid(-logit) / examples.total as f64;
        let slope = -weight * sign * kto.beta * sigmoid(logit) * sigmoid(-logit);
        result.gradient.push((slope / examples.total as f64) as f32);
    }
    Ok(result)
}

fn require_total(total: usize, count: usize) -> Result<(), Error> {
    require(total >= count, "total", total as f64, "at least the number of pairs or examples at hand")
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `log(1 + exp(x)) = −log σ(−x)` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extreme_scores_stay_finite() {
        let pairs = ScorePairs {
            chosen_scores: &[1e30, -1e30, 2.0],
            rejected_scores: &[-1e30, 1e30, 2.0],
            margins: None,
            total: 3,
        };
        let result = bradley_terry(&pairs).unwrap();
        assert!(result.loss.is_finite());
        assert_eq!(result.chosen_gradient[..2], [0.0, -1.0 / 3.0]);
        assert_eq!(result.correct, 1.5);
    }

    #[test]
    fn metrics_count_pairs_and_measure_how_far_the_chosen_is_ahead() {
        let pairs = ScorePairs {
            chosen_scores: &[3.0, 2.0, 0.0],
            rejected_scores: &[1.0, 1.0, 0.5],
            margins: Some(&[2.0, 0.0, 0.0]),
            total: 3,
        };
        let result = bradley_terry(&pairs).unwrap();
        assert_eq!((result.correct, result.margins.count, result.margins.sum), (2.0, 3.0, 2.5));
        // The first pair is ahead by just its margin: probability one half.
        assert!((result.chosen_gradient[0] + 0.5 / 3.0).abs() < 1e-7);
    }

    #[test]
    fn kto_measures_implicit_rewards_by_label() {
        let kto = Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 2.0 };
        let examples = LabelledResponses {
            logprobs: &[-11.5, -12.8],
            ref_logprobs: &[-12.0, -12.0],
            desirable: &[true, false],
            total: 4,
        };
        let result = kto_loss(&kto, 0.3, &examples).unwrap();
        assert!((result.loss - (0.495_000_166_66 + 2.0 * 0.472_527_695_655) / 4.0).abs() < 1e-7);
        assert!((result.desirable_rewards.sum - 0.05).abs() < 1e-7);
        assert!((result.undesirable_rewards.sum + 0.08).abs() < 1e-7);
        for broken in
            [Kto { beta: 0.0, ..kto }, Kto { beta: f64::NAN, ..kto }, Kto { undesirable_weight: -1.0, ..kto }]
        {
            assert!(kto_loss(&broken, 0.3, &examples).is_err(), "{broken:?}");
        }
        assert!(kto_loss(&kto, -0.1, &examples).is_err());
        assert!(kto_loss(&kto, 0.3, &LabelledResponses { total: 1, ..examples }).is_err());
        assert!(kto_loss(&kto, 0.3, &LabelledResponses { desirable: &[true], ..examples }).is_err());
    }

    #[test]
    fn bad_input_is_an_error() {
        let pairs = ScorePairs { chosen_scores: &[1.0], rejected_scores: &[0.0], margins: None, total: 1 };
        assert!(bradley_terry(&ScorePairs { total: 0, ..pairs }).is_err());
        assert!(bradley_terry(&ScorePairs { rejected_scores: &[], ..pairs }).is_err());
        assert!(bradley_terry(&ScorePairs { chosen_scores: &[f32::NAN], ..pairs }).is_err());
        assert!(bradley_terry(&ScorePairs { margins: Some(&[]), ..pairs }).is_err());
        let pairs = PreferencePairs {
            chosen_logprobs: &[-1.0],
            rejected_logprobs: &[-1.0],
            ref_chosen_logprobs: &[-1.0],
            ref_rejected_logprobs: &[-1.0],
            chosen_lengths: &[0],
            rejected_lengths: &[1],
            total: 1,
        };
        assert!(preference_loss(&PreferenceObjective::Dpo { beta: 0.1 }, &pairs).is_ok());
        assert!(preference_loss(&PreferenceObjective::Dpo { beta: 0.0 }, &pairs).is_err());
        assert!(
            preference_loss(&PreferenceObjective::Ipo { tau: 0.1, length_average: true }, &pairs).is_err()
        );
        let half = PreferenceObjective::Cdpo { beta: 0.1, label_smoothing: 0.5 };
        assert!(preference_loss(&half, &pairs).is_err());
    }
}
