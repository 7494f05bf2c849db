//! From the scorers' numbers to the score.

use crate::config::{Gate, ScorerConfig, ScorerKind, Share};
use crate::score_error::ScoreError;

/// The rule that turns one number per scorer into the score.
#[derive(Debug, Clone)]
pub(crate) struct Combination {
    parts: Vec<Part>,
    clip: Option<[f64; 2]>,
}

/// What is known of a response beside its reference log-probs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ResponseScore {
    /// The score, finite.
    pub(crate) score: f32,
    /// How right it is, 0 to 1: by the scorer that is marked as yardstick, else by hidden tests.
    pub(crate) outcome: Option<f32>,
    /// Each scorer's own number, as it was before weights and gates.
    pub(crate) numbers: Vec<f64>,
    /// What each scorer added to the score.
    pub(crate) contributions: Vec<f64>,
    /// What the environment's reward of one turn weighs in the score.
    pub(crate) turn_weight: f32,
}

/// What a scorer adds to the score.
#[derive(Debug, Clone)]
struct Part {
    weight: f64,
    share: Share,
    /// Whether its number is the sum of an environment's rewards of turns.
    is_of_turns: bool,
}

impl Combination {
    /// The rule of these scorers, in their order.
    pub(crate) fn new(scorers: &[ScorerConfig], clip: Option<[f64; 2]>) -> Self {
        let parts = scorers.iter().map(|scorer| Part {
            weight: scorer.weight(),
            share: scorer.share.clone(),
            is_of_turns: matches!(scorer.kind, ScorerKind::Environment(_)),
        });
        let parts = parts.collect();
        Self { parts, clip }
    }

    /// What is known of a response with one finite number per scorer, and this outcome.
    pub(crate) fn judge(&self, numbers: Vec<f64>, outcome: Option<f32>) -> Result<ResponseScore, ScoreError> {
        let contributions = self.contributions(&numbers).collect();
        let score = self.score(&numbers)?;
        Ok(ResponseScore { score, outcome, numbers, contributions, turn_weight: self.turn_weight() })
    }

    /// `sum_i w_i / std_i` over the scorers whose number is a sum over turns: what one turn's reward adds to
    /// the score. Means, clips and gates are of whole responses.
    fn turn_weight(&self) -> f32 {
        let of_turns = self.parts.iter().filter(|part| part.is_of_turns);
        of_turns.map(|part| part.weight / part.share.std).sum::<f64>() as f32
    }

    /// `sum_i w_i clip_i((s_i - mean_i) / std_i)`, clipped, then gate by gate in the scorers' order.
    ///
    /// `numbers` has one finite number per scorer.
    pub(crate) fn score(&self, numbers: &[f64]) -> Result<f32, ScoreError> {
        let mut score = clip(self.contributions(numbers).sum(), self.clip);
        for (part, number) in self.parts.iter().zip(numbers) {
            score = gated(&part.share, *number, score);
        }
        let score = score as f32;
        if score.is_finite() {
            Ok(score)
        } else {
            Err(ScoreError::error(format!("the combined score is {score}")))
        }
    }

    /// What each scorer adds to the sum, before it is clipped and the gates decide.
    pub(crate) fn contributions(&self, numbers: &[f64]) -> impl Iterator<Item = f64> {
        let each = self.parts.iter().zip(numbers);
        each.map(|(part, number)| part.weight * standardised(&part.share, *number))
    }
}

fn standardised(share: &Share, number: f64) -> f64 {
    clip((number - share.mean) / share.std, share.clip)
}

fn clip(number: f64, range: Option<[f64; 2]>) -> f64 {
    range.map_or(number, |[low, high]| number.clamp(low, high))
}

fn gated(share: &Share, number: f64, score: f64) -> f64 {
    let passed = share.threshold.is_none_or(|threshold| number >= threshold);
    match (share.gate, share.threshold) {
        (None, _) => score,
        (Some(Gate::Multiply), None) => score * number,
        (Some(Gate::Multiply), Some(_)) => score * f64::from(u8::from(passed)),
        (Some(Gate::Floor), _) if passed => score,
        (Some(Gate::Floor), _) => share.floor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{EnvironmentReward, UnitTests};

    fn scorer(share: Share) -> ScorerConfig {
        ScorerConfig { share, kind: ScorerKind::UnitTests(UnitTests::default()) }
    }

    fn weighted(weight: f64) -> ScorerConfig {
        scorer(Share { weight: Some(weight), ..Share::default() })
    }

    fn score(scorers: &[ScorerConfig], clip: Option<[f64; 2]>, numbers: &[f64]) -> f32 {
        Combination::new(scorers, clip).score(numbers).unwrap()
    }

    #[test]
    fn the_environments_reward_of_a_turn_weighs_what_its_sum_does() {
        let share = Share { weight: Some(0.5), mean: 3.0, std: 2.0, ..Share::default() };
        let environment = ScorerConfig { share, kind: ScorerKind::Environment(EnvironmentReward::default()) };
        let combination = Combination::new(&[weighted(1.0), environment], None);
        let score = |reward: f64| combination.judge(vec![0.25, reward], None).unwrap();
        assert_eq!(score(5.0).turn_weight, 0.25);
        // A turn that brings 4 more moves the score by 4 times that.
        assert_eq!(score(9.0).score - score(5.0).score, 4.0 * 0.25);
        assert_eq!(Combination::new(&[weighted(1.0)], None).judge(vec![0.5], None).unwrap().turn_weight, 0.0);
    }

    #[test]
    fn the_score_is_the_weighted_sum() {
        let scorers = [weighted(1.0), weighted(0.5), weighted(0.0)];
        assert_eq!(score(&scorers, None, &[2.0, -3.0, 100.0]), 0.5);
        let combination = Combination::new(&scorers, None);
        assert_eq!(combination.contributions(&[2.0, -3.0, 100.0]).collect::<Vec<_>>(), [2.0, -1.5, 0.0]);
    }

    #[test]
    fn numbers_are_standardised_then_clipped() {
        let share = Share { mean: 1.0, std: 2.0, clip: Some([-1.0, 1.0]), ..Share::default() };
        let scorers = [scorer(share)];
        assert_eq!(score(&scorers, None, &[2.0]), 0.5);
        assert_eq!(score(&scorers, None, &[9.0]), 1.0);
        assert_eq!(score(&scorers, Some([-0.25, 0.25]), &[2.0]), 0.25);
    }

    fn gate(gate: Gate, threshold: Option<f64>) -> [ScorerConfig; 2] {
        let share = Share { gate: Some(gate), threshold, floor: -2.0, ..Share::default() };
        [weighted(1.0), scorer(share)]
    }

    #[test]
    fn a_gate_multiplies_or_floors() {
        assert_eq!(score(&gate(Gate::Multiply, None), None, &[3.0, 0.5]), 1.5, "by the number");
        assert_eq!(
            score(&gate(Gate::Multiply, Some(0.6)), None, &[3.0, 0.5]),
            0.0,
            "by 0 below the threshold"
        );
        assert_eq!(score(&gate(Gate::Multiply, Some(0.5)), None, &[3.0, 0.5]), 3.0, "by 1 at the threshold");
        assert_eq!(score(&gate(Gate::Floor, Some(0.6)), None, &[3.0, 0.5]), -2.0);
        assert_eq!(score(&gate(Gate::Floor, Some(0.5)), None, &[3.0, 0.5]), 3.0);
    }

    #[test]
    fn a_sum_too_large_for_a_score_is_an_error() {
        let combination = Combination::new(&[weighted(1e30)], None);
        assert!(combination.score(&[1e30]).unwrap_err().detail.contains("inf"));
    }
}
