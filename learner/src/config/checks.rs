//! What cannot be right in the configuration of a PPO step.

use super::bound::Bound;
use super::ppo::PpoConfig;
use super::problems::Problems;
use super::settings::Settings;

impl PpoConfig {
    /// Everything that makes the values unusable, each as one sentence that names the key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Problems::default();
        self.check_numbers(&mut problems);
        problems.not_negative("policy_lr", self.policy_lr);
        problems.not_negative("critic_lr", self.critic_lr);
        let mut list = self.optimizer(0.0).problems();
        list.extend(problems.into_list());
        if let Some(lora) = &self.lora {
            list.extend(lora.problems().into_iter().map(|problem| format!("lora.{problem}")));
        }
        if let Some(lora) = &self.critic_lora {
            list.extend(lora.problems().into_iter().map(|problem| format!("critic_lora.{problem}")));
        }
        if let Err(problem) = self.covariance.validate() {
            list.push(format!("covariance: {problem}"));
        }
        if let Err(conflicts) = Settings::of(self) {
            list.extend(conflicts);
        }
        list
    }

    fn check_numbers(&self, problems: &mut Problems) {
        problems.share("gamma", self.gamma);
        problems.share("gae_lambda", self.gae_lambda);
        if let Some(gamma) = self.turn_gamma {
            problems.share("turn_gamma", gamma);
        }
        problems.not_negative("entropy_coefficient", self.entropy_coefficient);
        problems.not_negative("missing_eos_penalty", self.missing_eos_penalty);
        problems.positive("ppo_epochs", self.ppo_epochs);
        problems.positive("minibatch_size", self.minibatch_size);
        problems.positive("microbatch_tokens", self.microbatch_tokens);
        for (key, value) in [
            ("kl_coefficient", self.kl_coefficient),
            ("logprob_alarm", self.logprob_alarm),
            ("clip_ratio_low", self.clip_ratio_low),
            ("clip_ratio_high", self.clip_ratio_high),
            ("score_clip", self.score_clip.number()),
            ("value_clip", self.value_clip.number()),
            ("off_policy_delta", self.off_policy_delta.number()),
        ] {
            if let Some(value) = value {
                problems.not_negative(key, value);
            }
        }
        if let Some(bound) = self.dual_clip.and_then(Bound::number) {
            problems.check(bound.is_finite() && bound > 1.0, || {
                format!("dual_clip is {bound}, must be above 1 or \"off\"")
            });
        }
        problems.above_zero("kl_horizon", self.kl_horizon);
        if let Some(target) = self.kl_target {
            problems.above_zero("kl_target", target);
        }
        problems.above_zero("positive_weight", self.positive_weight);
        if let Some(target) = self.entropy_target {
            problems.above_zero("entropy_target", target);
        }
        if let Some(overlong) = self.overlong {
            problems.check(overlong.cache <= overlong.max_length, || {
                format!(
                    "overlong.cache is {}, must be at most overlong.max_length {}",
                    overlong.cache, overlong.max_length
                )
            });
        }
        problems.check((0.0..1.0).contains(&self.warmup_share), || {
            format!("warmup_share is {}, must be from 0 to below 1", self.warmup_share)
        });
        problems.check(self.warmup_steps == 0 || self.warmup_share == 0.0, || {
            "warmup_share and warmup_steps are both set: leave one".to_owned()
        });
        problems.check(self.norm_tokens != Some(0), || "norm_tokens is 0, must be at least 1".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use algo::CovarianceControl;

    use super::super::{Credit, LoraConfig, Overlong};
    use super::*;

    #[test]
    fn all_problems_are_listed_at_once() {
        let config = PpoConfig {
            gamma: 1.5,
            turn_gamma: Some(-1.0),
            credit: Credit::Turn,
            minibatch_size: 0,
            policy_lr: -1.0,
            betas: [1.0, 0.9],
            dual_clip: Some(Bound::At(1.0)),
            kl_target: Some(0.0),
            missing_eos_penalty: -1.0,
            max_grad_norm: Bound::At(0.0),
            overlong: Some(Overlong { max_length: 10, cache: 11 }),
            covariance: CovarianceControl::KlCov { share: 2.0, coefficient: 1.0 },
            lora: Some(LoraConfig { rank: 0, ..LoraConfig::default() }),
            ..PpoConfig::default()
        };
        let problems = config.problems();
        for key in [
            "gamma is 1.5",
            "turn_gamma is -1",
            "minibatch_size is 0",
            "policy_lr is -1",
            "betas holds 1",
            "dual_clip is 1",
            "kl_target is 0",
            "missing_eos_penalty is -1",
            "max_grad_norm is 0",
            "overlong.cache is 11",
            "lora.rank is 0",
            "covariance: share is 2",
        ] {
            assert!(problems.iter().any(|problem| problem.starts_with(key)), "{key}: {problems:?}");
        }
        assert_eq!(problems.len(), 12, "{problems:?}");
    }
}
