//! Advantages of whole responses against the other responses of their group: no critic.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, require, require_each, require_non_negative};
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

/// One advantage per response, `[responses]`. `groups[i]` says which group response `i` belongs to: any
/// numbering from 0 to below the number of responses, in any order. A group of one has nothing to be compared
/// with: its score passes through unchanged (divided by 1 + ε for [`GroupBaseline::MeanStd`]), as in verl.
/// Equal scores give exactly 0.
///
/// # Errors
/// A wrong length, a score that is not finite, a group number out of range or a negative ε.
pub fn group_advantages(
    baseline: GroupBaseline,
    scores: &[f32],
    groups: &[usize],
) -> Result<Vec<f32>, Error> {
    require_each("scores", scores, groups.len(), "response")?;
    if let GroupBaseline::MeanStd { epsilon } = baseline {
        require_non_negative("epsilon", epsilon)?;
    }
    let mut members = vec![Vec::new(); groups.len()];
    for (response, &group) in groups.iter().enumerate() {
        require(group < groups.len(), "group", group as f64, "a number below the number of responses")?;
        members[group].push(response);
    }
    let mut advantages = vec![0.0; scores.len()];
    for members in members.iter().filter(|members| !members.is_empty()) {
        let (mean, scale) =
            baseline_of(baseline, members.iter().map(|&response| f64::from(scores[response])));
        for &response in members {
            advantages[response] = ((f64::from(scores[response]) - mean) * scale) as f32;
        }
    }
    Ok(advantages)
}

/// Mean and scale of a group, so that the advantage is `(R_i − mean) · scale`; leave-one-out is `G/(G−1) (R_i
/// − mean)`.
fn baseline_of(baseline: GroupBaseline, scores: impl ExactSizeIterator<Item = f64> + Clone) -> (f64, f64) {
    let size = scores.len() as f64;
    let (mean, std) = if scores.len() < 2 {
        (0.0, 1.0)
    } else {
        let mean = scores.clone().sum::<f64>() / size;
        (mean, (scores.map(|score| (score - mean).powi(2)).sum::<f64>() / (size - 1.0)).sqrt())
    };
    match baseline {
        GroupBaseline::MeanStd { .. } if std == 0.0 => (mean, 0.0),
        GroupBaseline::MeanStd { epsilon } => (mean, 1.0 / (std + epsilon)),
        GroupBaseline::LeaveOneOut if size > 1.0 => (mean, size / (size - 1.0)),
        GroupBaseline::Mean | GroupBaseline::LeaveOneOut => (mean, 1.0),
    }
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

    #[test]
    fn groups_do_not_see_each_other_and_need_not_be_adjacent() {
        let alone = group_advantages(GRPO, &[1.0, 0.0, 0.5, 0.0], &[0; 4]).unwrap();
        let mixed = group_advantages(GRPO, &[1.0, 9.0, 0.0, 0.5, 7.0, 0.0], &[5, 2, 5, 5, 2, 5]).unwrap();
        assert_eq!(alone, [mixed[0], mixed[2], mixed[3], mixed[5]]);
    }

    #[test]
    fn equal_scores_carry_no_signal_and_a_single_one_passes() {
        for baseline in
            [GRPO, GroupBaseline::MeanStd { epsilon: 0.0 }, GroupBaseline::Mean, GroupBaseline::LeaveOneOut]
        {
            assert_eq!(group_advantages(baseline, &[0.3; 3], &[1; 3]).unwrap(), [0.0; 3]);
            let single = group_advantages(baseline, &[0.3], &[0]).unwrap()[0];
            assert!((single - 0.3).abs() < 1e-6);
        }
    }

    #[test]
    fn a_group_of_two_is_a_comparison() {
        let advantages = |baseline| group_advantages(baseline, &[1.0, 0.0], &[1, 1]).unwrap();
        assert_eq!(advantages(GroupBaseline::Mean), [0.5, -0.5]);
        assert_eq!(advantages(GroupBaseline::LeaveOneOut), [1.0, -1.0]);
        let root = std::f32::consts::FRAC_1_SQRT_2;
        assert_eq!(advantages(GroupBaseline::MeanStd { epsilon: 0.0 }), [root, -root]);
    }

    #[test]
    fn bad_input_is_an_error() {
        assert!(group_advantages(GRPO, &[1.0], &[1]).is_err());
        assert!(group_advantages(GRPO, &[1.0], &[0, 0]).is_err());
        assert!(group_advantages(GRPO, &[f32::NAN], &[0]).is_err());
        assert!(group_advantages(GroupBaseline::MeanStd { epsilon: -1.0 }, &[1.0], &[0]).is_err());
        assert!(group_advantages(GRPO, &[], &[]).unwrap().is_empty());
    }

    #[test]
    fn broadcast_skips_tokens_that_do_not_count() {
        let mask = [true, false, true];
        let responses = Responses::new(&[2, 1]).unwrap().with_mask(&mask).unwrap();
        assert_eq!(broadcast(responses, &[2.0, 3.0]).unwrap(), [2.0, 0.0, 3.0]);
    }
}
