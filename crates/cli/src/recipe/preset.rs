//! What the algorithm of a recipe decides outside the loss: which responses train, how often, at which rates
//! (`docs/decisions.md`, D20), and where that comes from. What it decides of the loss is
//! [`algo::Algorithm::defaults`].

use algo::Algorithm;
use toml::Value;

/// What a preset needs to know of the recipe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings {
    /// Longest response, in tokens.
    pub(super) max_new_tokens: i64,
    /// Responses of a group, where the recipe says.
    pub(super) group_size: Option<i64>,
}

/// The keys that an algorithm decides, with their values.
pub(super) fn keys(algorithm: Algorithm, recipe: Surroundings) -> Vec<(&'static str, Value)> {
    match algorithm {
        Algorithm::PfPpo => pf_ppo(3, "select".to_owned()),
        Algorithm::PfPpoPaper => {
            let group_size = recipe.group_size.unwrap_or(PAPER_GROUP_SIZE);
            let mut keys = pf_ppo(1, format!("resample-buffer:{group_size}"));
            keys.extend([
                ("coordinator.group_size", Value::Integer(group_size)),
                ("coordinator.sampling.top_p", Value::Float(0.9)),
                ("learner.ppo.schedule", "cosine".into()),
                ("learner.ppo.warmup_share", Value::Float(0.03)),
            ]);
            keys
        }
        Algorithm::Ppo | Algorithm::DecoupledPpo => {
            let mut keys = every_response_once();
            keys.push(("learner.ppo.critic_lr", Value::Float(1e-5)));
            keys
        }
        Algorithm::Dapo => {
            let mut keys = every_response_once();
            let max_length = recipe.max_new_tokens;
            keys.extend([
                ("coordinator.filtration.no_signal", "always".into()),
                ("coordinator.max_refill_batches", Value::Integer(DAPO_REFILL_BATCHES)),
                ("learner.ppo.overlong.max_length", Value::Integer(max_length)),
                ("learner.ppo.overlong.cache", Value::Integer((max_length / 5).max(1))),
                ("learner.ppo.warmup_steps", Value::Integer(10)),
                ("learner.ppo.weight_decay", Value::Float(0.1)),
            ]);
            keys
        }
        Algorithm::Grpo
        | Algorithm::DrGrpo
        | Algorithm::Rloo
        | Algorithm::ReinforcePlusPlus
        | Algorithm::ReinforcePlusPlusBaseline
        | Algorithm::Gspo
        | Algorithm::Cispo
        | Algorithm::OnPolicyDistillation => every_response_once(),
    }
}

/// Where the keys of an algorithm come from.
pub(super) fn source(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::PfPpo => {
            "arXiv 2409.06957, section 5: N = 5, best-worst, m = 3, learning rates 5e-7 and 9e-6"
        }
        Algorithm::PfPpoPaper => {
            "its code, github.com/swtheing/PF-PPO-RLHF: select_min_max draws as many as there are items, with \
             replacement, from the whole buffer; one epoch; train_ppo.py: top-p 0.9, cosine with 3 % warm-up"
        }
        Algorithm::Ppo | Algorithm::DecoupledPpo => "one epoch, 1e-6 and 1e-5: ppo_trainer.yaml of verl",
        Algorithm::Grpo => "arXiv 2402.03300, section 4.2: a single update, 1e-6",
        Algorithm::DrGrpo => {
            "arXiv 2503.20783; one epoch and 1e-6 as its runs, github.com/sail-sg/understand-r1-zero"
        }
        Algorithm::Rloo => "arXiv 2402.14740; num_iterations 1 and 1e-6 as TRL's RLOO trainer",
        Algorithm::ReinforcePlusPlus | Algorithm::ReinforcePlusPlusBaseline => {
            "arXiv 2501.03262; one epoch and 1e-6 as OpenRLHF"
        }
        Algorithm::Dapo => {
            "arXiv 2503.14476, section 3, and run_dapo_qwen2.5_32b.sh of verl: dynamic sampling with its cap, \
             overlong punishment over the last fifth, 1e-6, weight decay 0.1, 10 steps of warm-up"
        }
        Algorithm::OnPolicyDistillation => {
            "Lu et al. 2025, thinkingmachines.ai/blog/on-policy-distillation: one update; no rate for all of its \
             weights: 1e-6"
        }
        Algorithm::Gspo => "arXiv 2507.18071, which names no rate: 1e-6 and one epoch, as grpo",
        Algorithm::Cispo => "arXiv 2506.13585, which names no rate: 1e-6 and one epoch, as grpo",
    }
}

/// `max_num_gen_batches=10` of three batches each in `run_dapo_qwen2.5_32b.sh`, the first one apart.
const DAPO_REFILL_BATCHES: i64 = 29;

/// N of all experiments of the paper.
const PAPER_GROUP_SIZE: i64 = 5;

fn pf_ppo(epochs: i64, mode: String) -> Vec<(&'static str, Value)> {
    vec![
        ("coordinator.filtration.strategy", "best-worst".into()),
        ("coordinator.filtration.mode", mode.into()),
        ("learner.ppo.ppo_epochs", Value::Integer(epochs)),
        ("learner.ppo.policy_lr", Value::Float(5e-7)),
        ("learner.ppo.critic_lr", Value::Float(9e-6)),
    ]
}

fn every_response_once() -> Vec<(&'static str, Value)> {
    vec![
        ("coordinator.filtration.strategy", "none".into()),
        ("learner.ppo.ppo_epochs", Value::Integer(1)),
        ("learner.ppo.policy_lr", Value::Float(1e-6)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_says_which_responses_train_and_how_often() {
        let recipe = Surroundings { max_new_tokens: 20, group_size: None };
        for algorithm in Algorithm::ALL {
            let keys = keys(algorithm, recipe);
            for wanted in ["coordinator.filtration.strategy", "learner.ppo.ppo_epochs"] {
                assert!(keys.iter().any(|(key, _)| *key == wanted), "{algorithm:?} says no {wanted}");
            }
            let mut names: Vec<&str> = keys.iter().map(|(key, _)| *key).collect();
            names.sort_unstable();
            assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        }
    }
}
