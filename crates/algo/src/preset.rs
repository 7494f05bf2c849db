//! The algorithms of the field as data: what each computes, where, and with which defaults. What an algorithm
//! decides outside the learner (filtration, passes) is `crates/cli/src/recipe/preset.rs`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::advantages::GroupBaseline;
use crate::coefficients::Aggregation;
use crate::correction::Correction;
use crate::kl::KlEstimator;
use crate::policy_loss::{ClipRange, PolicyObjective, RatioLevel};

/// An algorithm by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// PPO with a critic on filtered responses (PF-PPO, arXiv 2409.06957): the best and the worst of a group,
    /// three times.
    #[default]
    PfPpo,
    /// The same as the authors' code has it where that differs: draws with replacement, advantages whitened
    /// before them, a mean over responses, top-p 0.9, a cosine after a warm-up.
    PfPpoPaper,
    /// PPO with a critic on every response.
    Ppo,
    /// Group-relative policy optimisation.
    Grpo,
    /// GRPO without its length and difficulty bias.
    DrGrpo,
    /// REINFORCE with a leave-one-out baseline.
    Rloo,
    /// REINFORCE with whitened returns and clipping.
    ReinforcePlusPlus,
    /// The same with the group's mean subtracted first.
    ReinforcePlusPlusBaseline,
    /// GRPO with clip-higher, token-level loss, dynamic sampling and soft overlong punishment.
    Dapo,
    /// Ratios and clipping of whole responses.
    Gspo,
    /// Clipped importance weights instead of clipped updates.
    Cispo,
    /// PPO's clip around a proximal policy, for stale samples.
    DecoupledPpo,
    /// The policy becomes a teacher's, which is the reference: each token it draws is rewarded by how much
    /// likelier the teacher holds it. Scores train nothing.
    OnPolicyDistillation,
}

/// Over which responses advantages are whitened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Whiten {
    /// Over those that train.
    AfterFilter,
    /// Over all that were drawn, as the authors' PF-PPO code does. With a critic those that do not train have
    /// to be sent along, with weight 0.
    BeforeFilter,
    /// Advantages are used as they are.
    Off,
}

/// Where advantages come from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AdvantageEstimator {
    /// [`gae`](crate::gae()) with a critic.
    Gae,
    /// [`returns_to_go`](crate::returns_to_go) of the token rewards.
    ReturnToGo,
    /// [`group_advantages`](crate::group_advantages) of the scores (of the
    /// [`response_returns`](crate::response_returns) where the KL is in the reward), the same for all tokens
    /// of a response.
    Group(GroupBaseline),
    /// The token's own `−β k̂l`: nothing that comes after it counts, nor does the score.
    OwnKl,
}

/// Where the KL to the reference enters. One place only: in both it is counted twice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KlPlacement {
    /// Nowhere; no reference is needed.
    None,
    /// A penalty in the token rewards.
    Reward {
        /// How the divergence is estimated from a drawn token.
        estimator: KlEstimator,
        /// β, the strength of the penalty.
        coefficient: f64,
    },
    /// A term of the loss.
    Loss {
        /// How the divergence is estimated from a drawn token.
        estimator: KlEstimator,
        /// β, the strength of the penalty.
        coefficient: f64,
    },
}

/// What an algorithm does where the configuration does not say otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AlgorithmDefaults {
    /// Where advantages come from.
    pub advantage: AdvantageEstimator,
    /// Over which responses of the batch advantages are whitened.
    pub whiten: Whiten,
    /// Where the KL enters.
    pub kl: KlPlacement,
    /// The policy loss, with ratio level and clip range.
    pub objective: PolicyObjective,
    /// How token losses are aggregated.
    pub aggregation: Aggregation,
    /// The weight of samples another distribution drew.
    pub correction: Correction,
    /// Where the defaults come from.
    pub source: &'static str,
}

impl AlgorithmDefaults {
    /// Whether the algorithm has a critic. One without starts none.
    pub fn needs_critic(&self) -> bool {
        match self.advantage {
            AdvantageEstimator::Gae => true,
            AdvantageEstimator::ReturnToGo | AdvantageEstimator::Group(_) | AdvantageEstimator::OwnKl => {
                false
            }
        }
    }
}

const GRPO_ADVANTAGE: AdvantageEstimator =
    AdvantageEstimator::Group(GroupBaseline::MeanStd { epsilon: 1e-6 });

/// The reference code of PF-PPO: `init_kl_coef 0.01`, k1 per token.
const KL_IN_REWARD: KlPlacement = KlPlacement::Reward { estimator: KlEstimator::K1, coefficient: 0.01 };

const fn clip(level: RatioLevel, low: f64, high: f64) -> PolicyObjective {
    PolicyObjective::Clip { level, range: ClipRange { low, high }, dual_clip: None }
}

const PPO: AlgorithmDefaults = AlgorithmDefaults {
    advantage: AdvantageEstimator::Gae,
    whiten: Whiten::AfterFilter,
    kl: KL_IN_REWARD,
    objective: clip(RatioLevel::Token, 0.2, 0.2),
    aggregation: Aggregation::TokenMean,
    correction: Correction::None,
    source: "arXiv 1707.06347; k1 in the reward with β 0.01, clip 0.2 and λ 0.95 as in OpenRLHF",
};

const PF_PPO: AlgorithmDefaults = AlgorithmDefaults {
    source: "arXiv 2409.06957 and its code (k1 in the reward, β 0.01, clip 0.2); whitened over what trains",
    ..PPO
};

const GRPO: AlgorithmDefaults = AlgorithmDefaults {
    advantage: GRPO_ADVANTAGE,
    whiten: Whiten::Off,
    kl: KlPlacement::Loss { estimator: KlEstimator::K3, coefficient: 0.04 },
    aggregation: Aggregation::SeqMeanTokenMean,
    source: "arXiv 2402.03300 (k3 in the loss, β 0.04); clip 0.2 and ε 1e-6 as in verl",
    ..PPO
};

const WITHOUT_REFERENCE: AlgorithmDefaults = AlgorithmDefaults { kl: KlPlacement::None, ..GRPO };

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::PfPpo,
        Self::PfPpoPaper,
        Self::Ppo,
        Self::Grpo,
        Self::DrGrpo,
        Self::Rloo,
        Self::ReinforcePlusPlus,
        Self::ReinforcePlusPlusBaseline,
        Self::Dapo,
        Self::Gspo,
        Self::Cispo,
        Self::DecoupledPpo,
        Self::OnPolicyDistillation,
    ];

    /// The algorithm's defaults.
    pub fn defaults(self) -> AlgorithmDefaults {
        match self {
            Self::PfPpo => PF_PPO,
            Self::PfPpoPaper => AlgorithmDefaults {
                whiten: Whiten::BeforeFilter,
                aggregation: Aggregation::SeqMeanTokenMean,
                source: "arXiv 2409.06957 as in swtheing/PF-PPO-RLHF (whitened before the draws, mean over responses)",
                ..PF_PPO
            },
            Self::Ppo => PPO,
            Self::Grpo => GRPO,
            Self::DrGrpo => AlgorithmDefaults {
                advantage: AdvantageEstimator::Group(GroupBaseline::Mean),
                aggregation: Aggregation::SeqMeanTokenSumNorm,
                source: "arXiv 2503.20783 (no std, constant norm, no KL)",
                ..WITHOUT_REFERENCE
            },
            Self::Rloo => AlgorithmDefaults {
                advantage: AdvantageEstimator::Group(GroupBaseline::LeaveOneOut),
                whiten: Whiten::Off,
                objective: clip(RatioLevel::SequenceProduct, 0.2, 0.2),
                aggregation: Aggregation::SeqMeanTokenMean,
                source: "arXiv 2402.14740 (the response is one action, KL in its reward); clipped as in TRL's RLOO trainer",
                ..PPO
            },
            Self::ReinforcePlusPlus => AlgorithmDefaults {
                advantage: AdvantageEstimator::ReturnToGo,
                whiten: Whiten::BeforeFilter,
                source: "arXiv 2501.03262 (k1 in the reward, return-to-go, whitened over the global batch)",
                ..PPO
            },
            Self::ReinforcePlusPlusBaseline => AlgorithmDefaults {
                advantage: AdvantageEstimator::Group(GroupBaseline::Mean),
                whiten: Whiten::BeforeFilter,
                kl: KlPlacement::Loss { estimator: KlEstimator::K2, coefficient: 0.01 },
                source: "arXiv 2501.03262, baseline variant (group mean, then whitened over the global batch, k2 in the loss)",
                ..PPO
            },
            Self::Dapo => AlgorithmDefaults {
                objective: PolicyObjective::Clip {
                    level: RatioLevel::Token,
                    range: ClipRange { low: 0.2, high: 0.28 },
                    dual_clip: Some(10.0),
                },
                aggregation: Aggregation::TokenMean,
                source: "arXiv 2503.14476; dual clip 10 as in its recipe",
                ..WITHOUT_REFERENCE
            },
            Self::Gspo => AlgorithmDefaults {
                objective: clip(RatioLevel::SequenceMean, 3e-4, 4e-4),
                source: "arXiv 2507.18071 (clip 3e-4 / 4e-4, no KL)",
                ..WITHOUT_REFERENCE
            },
            Self::Cispo => AlgorithmDefaults {
                objective: PolicyObjective::Cispo { range: ClipRange { low: 1.0, high: 4.0 } },
                aggregation: Aggregation::TokenMean,
                source: "arXiv 2506.13585; no lower bound, upper bound 5 as recommended by AReaL and used by ScaleRL",
                ..WITHOUT_REFERENCE
            },
            Self::DecoupledPpo => AlgorithmDefaults {
                correction: Correction::TokenMask { min: 0.0, max: 5.0 },
                source: "arXiv 2110.00641, 2505.24298 section 5; weights above 5 rejected as in AReaL, the rest as ppo",
                ..PPO
            },
            Self::OnPolicyDistillation => AlgorithmDefaults {
                advantage: AdvantageEstimator::OwnKl,
                whiten: Whiten::Off,
                kl: KlPlacement::Reward { estimator: KlEstimator::K1, coefficient: 1.0 },
                source: "reverse KL on the policy's own responses (arXiv 2306.13649, λ = 1; arXiv 2306.08543), \
                         its gradient by single tokens, undiscounted (Lu et al. 2025, thinkingmachines.ai)",
                ..PPO
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_configuration() {
        let names = [
            "pf-ppo",
            "pf-ppo-paper",
            "ppo",
            "grpo",
            "dr-grpo",
            "rloo",
            "reinforce-plus-plus",
            "reinforce-plus-plus-baseline",
            "dapo",
            "gspo",
            "cispo",
            "decoupled-ppo",
            "on-policy-distillation",
        ];
        for (algorithm, name) in Algorithm::ALL.into_iter().zip(names) {
            assert_eq!(serde_json::to_value(algorithm).unwrap(), name);
        }
    }

    #[test]
    fn only_the_ppo_family_needs_a_critic() {
        let with_critic: Vec<_> =
            Algorithm::ALL.into_iter().filter(|algorithm| algorithm.defaults().needs_critic()).collect();
        let critics = [Algorithm::PfPpo, Algorithm::PfPpoPaper, Algorithm::Ppo, Algorithm::DecoupledPpo];
        assert_eq!(with_critic, critics);
    }
}
