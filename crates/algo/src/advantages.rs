//! Advantages of whole responses against the other responses of their group: no critic.
//!
//! Invariant: an advantage is taken against the group as it was drawn. Which of its responses train, and how
//! often, changes neither its sign nor its scale (`docs/decisions.md`, D19).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, require_each, require_non_negative};
use crate::responses::Responses;

/// What a score is compared with. `G` is the size of the group, the mean is the group's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GroupBaseline {
    /// `(R_i − mean) / (std + ε)` with the unbiased standard deviation (GRPO, arXiv 2402.03300, section
    /// 4.1.2).
    MeanStd {
        /// ε: 1e-6 in verl, 1e-4 in TRL.
        epsilon: f64,
    },
    /// `R_i − mean` (Dr.GRPO, arXiv 2503.20783; the first step of REINFORCE++-baseline, arXiv 2501.03262)
    Mean,
    /// `R_i − Σ_{j≠i} R_j / (G − 1)` (RLOO, arXiv 2402.14740)
    LeaveOneOut,
}

/// What the baselines need to know of a group: all its responses that have a score, trained or not.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GroupStatistics {
    /// `G`: how many responses there are.
    pub size: usize,
    /// The mean of their returns.
    pub mean: f64,
    /// Their unbiased standard deviation; exactly 0 where they are equal, and of fewer than two.
    pub std: f64,
}

impl GroupStatistics {
    /// The statistics of the returns of a group.
    pub fn of(returns: &[f64]) -> Self {
        let size = returns.len();
        let Some(&first) = returns.first() else { return Self::default() };
        if returns.iter().all(|value| *value == first) {
            return Self { size, mean: first, std: 0.0 };
        }
        let mean = returns.iter().sum::<f64>() / size as f64;
        let squares: f64 = returns.iter().map(|value| (value - mean).powi(2)).sum();
        Self { size, mean, std: (squares / (size as f64 - 1.0)).sqrt() }
    }
}

impl GroupBaseline {
    /// The advantage of a response with this return. 0 in a group of one, which has nothing to be compared
    /// with, and in a group of equal returns.
    fn advantage(self, value: f64, group: &GroupStatistics) -> f64 {
        if group.size < 2 || group.std == 0.0 {
            return 0.0;
        }
        let centred = value - group.mean;
        match self {
            Self::MeanStd { epsilon } => centred / (group.std + epsilon),
            // R_i − (G mean − R_i) / (G − 1) = G / (G − 1) (R_i − mean)
            Self::LeaveOneOut => centred * group.size as f64 / (group.size as f64 - 1.0),
            Self::Mean => centred,
        }
    }
}

/// One advantage per response, `[responses]`; `groups[i]` describes the group of response `i`, whether or not
/// its other responses are among these.
///
/// # Errors
/// A wrong length, a return that is not finite or a negative ε.
pub fn group_advantages(
    baseline: GroupBaseline,
    returns: &[f32],
    groups: &[GroupStatistics],
) -> Result<Vec<f32>, Error> {
    require_each("returns", returns, groups.len(), "response")?;
    if let GroupBaseline::MeanStd { epsilon } = baseline {
        require_non_negative("epsilon", epsilon)?;
    }
    let each = returns.iter().zip(groups);
    Ok(each.map(|(value, group)| baseline.advantage(f64::from(*value), group) as f32).collect())
}

/// Gives every counted token its response's number: `[responses]` to `[tokens]`, 0 on tokens that do not
/// count.
///
/// # Errors
/// A wrong length or a number that is not finite.
pub fn broadcast(responses: Responses<'_>, per_response: &[f32]) -> Result<Vec<f32>, Error> {
    responses.require_responses("per_response", per_response)?;
    let mut tokens = vec![0.0; responses.tokens()];
    for (span, &value) in responses.spans().zip(per_response) {
        for token in responses.counted(span) {
            tokens[token] = value;
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRPO: GroupBaseline = GroupBaseline::MeanStd { epsilon: 1e-6 };

    /// A sum of equal numbers divided by their count may be another number.
    #[test]
    fn equal_returns_have_exactly_no_deviation() {
        let GroupStatistics { size, mean, std } = GroupStatistics::of(&[0.1; 3]);
        assert_eq!((size, mean.to_bits(), std.to_bits()), (3, 0.1_f64.to_bits(), 0.0_f64.to_bits()));
        assert!(GroupStatistics::of(&[0.1, 0.2]).std > 0.07);
    }

    fn of_whole_group(baseline: GroupBaseline, scores: &[f32]) -> Vec<f32> {
        let returns: Vec<f64> = scores.iter().copied().map(f64::from).collect();
        group_advantages(baseline, scores, &vec![GroupStatistics::of(&returns); scores.len()]).unwrap()
    }

    #[test]
    fn a_part_of_a_group_has_the_advantages_that_it_has_in_the_whole() {
        let group = GroupStatistics::of(&[5.0, 4.0, 3.5, 3.25, 3.0]);
        for baseline in [GRPO, GroupBaseline::Mean, GroupBaseline::LeaveOneOut] {
            let whole = of_whole_group(baseline, &[5.0, 4.0, 3.5, 3.25, 3.0]);
            assert_eq!(group_advantages(baseline, &[3.0], &[group]).unwrap(), [whole[4]]);
            assert!(whole[4] < 0.0, "{whole:?}");
        }
    }

    #[test]
    fn equal_scores_and_a_single_one_carry_no_signal() {
        for baseline in
            [GRPO, GroupBaseline::MeanStd { epsilon: 0.0 }, GroupBaseline::Mean, GroupBaseline::LeaveOneOut]
        {
            assert_eq!(of_whole_group(baseline, &[0.3; 3]), [0.0; 3]);
            assert_eq!(of_whole_group(baseline, &[0.3]), [0.0]);
        }
    }

    #[test]
    fn a_group_of_two_is_a_comparison() {
        let advantages = |baseline| of_whole_group(baseline, &[1.0, 0.0]);
        assert_eq!(advantages(GroupBaseline::Mean), [0.5, -0.5]);
        assert_eq!(advantages(GroupBaseline::LeaveOneOut), [1.0, -1.0]);
        let root = std::f32::consts::FRAC_1_SQRT_2;
        assert_eq!(advantages(GroupBaseline::MeanStd { epsilon: 0.0 }), [root, -root]);
    }

    #[test]
    fn bad_input_is_an_error() {
        let group = GroupStatistics::of(&[1.0, 0.0]);
        assert!(group_advantages(GRPO, &[1.0], &[group; 2]).is_err());
        assert!(group_advantages(GRPO, &[f32::NAN], &[group]).is_err());
        assert!(group_advantages(GroupBaseline::MeanStd { epsilon: -1.0 }, &[1.0], &[group]).is_err());
        assert!(group_advantages(GRPO, &[], &[]).unwrap().is_empty());
        assert_eq!(GroupStatistics::of(&[]), GroupStatistics::default());
    }

    #[test]
    fn broadcast_skips_tokens_that_do_not_count() {
        let mask = [true, false, true];
        let responses = Responses::new(&[2, 1]).unwrap().with_mask(&mask).unwrap();
        assert_eq!(broadcast(responses, &[2.0, 3.0]).unwrap(), [2.0, 0.0, 3.0]);
    }
}
