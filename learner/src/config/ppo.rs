//! The configuration of a PPO step, whose semantics are those of [`crate::Trainer::step`].
//!
//! Keys that an algorithm decides are optional: absent means the algorithm's default
//! ([`algo::Algorithm::defaults`]), present means this value. Everything else has the default that is
//! documented here.

use algo::{Aggregation, Algorithm, Correction, CovarianceControl, KlEstimator, Schedule, Whiten};
use model::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bound::Bound;
use super::execution::{LoraConfig, Precision, ZeroStage};
use super::optimizer::{DecayOn, MAX_SKIPPED_STEPS, OptimizerConfig};

/// Which samples of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SamplesOn {
    /// Those that train the policy (weight above 0).
    #[default]
    Filtered,
    /// All, those of weight 0 included.
    All,
}

/// Where the KL to the reference enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KlIn {
    /// In the token rewards.
    Reward,
    /// In the loss.
    Loss,
    /// Nowhere: no reference is needed.
    Off,
}

/// What distribution the rollout log-probs are of, where the sampler truncated it (top-p, top-k, min-p).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutSupport {
    /// The whole distribution, as Sluice's actors report it.
    #[default]
    Full,
    /// The truncated one: the surviving mass of each token is put back (algorithms of trl#6789).
    Truncated,
}

/// DAPO's soft punishment of responses that are nearly too long, added to the score (arXiv 2503.14476).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Overlong {
    /// Response tokens from which on the penalty is 1.
    pub max_length: usize,
    /// Response tokens before that over which it rises from 0; 0 turns the punishment off.
    pub cache: usize,
}

/// What becomes of a response that was cut off by the length limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Truncated {
    /// It trains like any other.
    #[default]
    Train,
    /// It trains neither policy nor critic, but its score counts in the baseline of its group (overlong
    /// filtering: DAPO, arXiv 2503.14476, section 3.4; `mask_truncated_completions` of TRL).
    Mask,
}

/// What an advantage is of, in an episode of several turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Credit {
    /// The score is one number, behind the last token.
    #[default]
    Response,
    /// What the environment gives for a turn stands behind it, and the rest of the score behind the last
    /// one. Advantages are of tokens: GAE and returns-to-go, discounted by `turn_gamma` from turn to turn.
    Token,
    /// Rewards stand as with `token`, and turns are the steps: an advantage is of a turn, and all its tokens
    /// have it. GAE takes the critic's value of a turn from its first token (arXiv 2512.17008). Without a
    /// critic a turn's return-to-go is compared with those of the same turn of its siblings (arXiv
    /// 2505.11821); a turn that no sibling has takes the advantage of its whole response.
    Turn,
}

/// The configuration of a PPO step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PpoConfig {
    /// The algorithm; it decides the defaults of the optional keys.
    pub algorithm: Algorithm,

    /// β of the KL to the reference. Algorithm's default (PPO: 0.01).
    pub kl_coefficient: Option<f64>,
    /// Its estimator. Algorithm's default (PPO: k1).
    pub kl_estimator: Option<KlEstimator>,
    /// Where it enters. Algorithm's default (PPO: reward).
    pub kl_in: Option<KlIn>,
    /// KL per response, in nats, that an adaptive β aims at; absent means that β is fixed.
    pub kl_target: Option<f64>,
    /// Samples over which an adaptive β can change by about a fifth.
    pub kl_horizon: f64,

    /// γ, the discount per token.
    pub gamma: f64,
    /// λ of GAE.
    pub gae_lambda: f64,
    /// What an advantage is of, in an episode of several turns.
    pub credit: Credit,
    /// γ from the last token of a turn to the first one of the next. Default: `gamma` where credit is by
    /// token, 1 where it is by turn.
    pub turn_gamma: Option<f64>,
    /// Over which responses advantages are whitened. Algorithm's default (PPO: after-filter; without a
    /// critic: before-filter).
    pub whiten: Option<Whiten>,
    /// Scores are kept within ± this.
    pub score_clip: Bound,
    /// What becomes of responses that were cut off by the length limit.
    pub truncated: Truncated,
    /// Subtracted from the score of a response that was cut off, before scores are clipped.
    pub missing_eos_penalty: f64,
    /// Soft punishment of responses that are nearly too long. A recipe with `algorithm =
    /// "dapo"` has it, from 4/5 of `max_new_tokens` on.
    pub overlong: Option<Overlong>,
    /// What the critic trains on: the samples that train the policy, with their weights, or all samples, each
    /// with weight 1.
    pub critic_on: SamplesOn,

    /// ε below the ratio of 1. Algorithm's default (PPO: 0.2).
    pub clip_ratio_low: Option<f64>,
    /// ε above the ratio of 1. Algorithm's default (PPO: 0.2).
    pub clip_ratio_high: Option<f64>,
    /// Bounds the loss of bad tokens to this times `-A`. Algorithm's default (PPO: off).
    pub dual_clip: Option<Bound>,
    /// ε of the value clip.
    pub value_clip: Bound,
    /// κ of the entropy bonus.
    pub entropy_coefficient: f64,
    /// What is done with tokens whose log-prob and advantage vary together: they take most of the entropy
    /// away (arXiv 2505.22617). Such as `{ kl-cov = { share = 2e-4, coefficient = 1.0 } }`.
    pub covariance: CovarianceControl,
    /// Weight of tokens with a positive advantage in the policy's loss: below 1, the entropy falls more
    /// slowly (positive-advantage reweighting, arXiv 2511.05993).
    pub positive_weight: f64,
    /// Entropy in nats per token that the weight aims at: it falls, to a tenth of `positive_weight` at most,
    /// while the entropy is below, and rises up to `positive_weight` above. Fixed where absent.
    pub entropy_target: Option<f64>,
    /// How token losses become one number. Algorithm's default (PPO: token-mean).
    pub loss_aggregation: Option<Aggregation>,
    /// The constant that `seq-mean-token-sum-norm` divides by, in tokens; the run's `max_new_tokens` where
    /// absent.
    pub norm_tokens: Option<usize>,

    /// Weight of tokens that another policy or engine drew. Algorithm's default (PPO: none).
    pub correction: Option<Correction>,
    /// δ of the off-policy sequence mask: responses with a negative advantage whose mean log-prob fell by
    /// more than this since they were drawn do not train.
    pub off_policy_delta: Bound,
    /// What distribution the rollout log-probs are of.
    pub rollout_support: RolloutSupport,
    /// Mean |learner − actor| log-prob on fresh rollouts above which the learner warns. The element type's
    /// default: 0.002 for f32, 0.05 for bf16.
    pub logprob_alarm: Option<f64>,

    /// Passes over the batch.
    pub ppo_epochs: usize,
    /// Samples of one optimizer step, of those that train. The last of a pass may have fewer.
    pub minibatch_size: usize,
    /// Most tokens of a micro-batch on one rank; a longer sequence is one of its own. Changes no gradient.
    /// The forward passes of the first minibatch are not computed twice where a rank's part of it, policy's
    /// and critic's, has no more tokens in all, and wherever there is neither a critic nor a KL in the
    /// rewards.
    pub microbatch_tokens: usize,
    /// Whether each pass has an order of its own; otherwise samples are taken in the order of the batch.
    pub shuffle: bool,
    /// Seed of that order.
    pub seed: u64,

    /// Peak learning rate of the policy.
    pub policy_lr: f64,
    /// Peak learning rate of the critic.
    pub critic_lr: f64,
    /// β₁ and β₂ of AdamW.
    pub betas: [f64; 2],
    /// Added to the root of AdamW's second moment.
    pub adam_eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// What weight decay applies to.
    pub weight_decay_on: DecayOn,
    /// Each model's gradient is scaled down to this global norm.
    pub max_grad_norm: Bound,
    /// What the learning rates do after the warm-up.
    pub schedule: Schedule,
    /// Optimizer steps of the policy over which the learning rates rise from 0. Steps are counted as they are
    /// made, whatever the batches' sizes.
    pub warmup_steps: u64,
    /// The same as a share of the run's batches, in place of `warmup_steps`.
    pub warmup_share: f64,
    /// A step of a model whose loss or gradient is no finite number is skipped, counted and logged with its
    /// samples; more than so many in a row end the run with exit code 3.
    pub max_skipped: u64,

    /// Element type of weights and activations; f32 on the CPU and bf16 on a GPU where it is not given.
    pub dtype: Option<Precision>,
    /// Whether a block's activations are computed again in the backward pass instead of kept. Changes no
    /// gradient.
    pub recompute: bool,
    /// What the ranks divide among themselves. Changes no gradient.
    #[schemars(with = "u8", range(max = 3))]
    pub zero_stage: ZeroStage,
    /// Whether optimizer state lives in the host's memory.
    pub offload_optimizer: bool,
    /// Low-rank adaptation of the policy instead of training all its weights.
    pub lora: Option<LoraConfig>,
    /// The same for the critic.
    pub critic_lora: Option<LoraConfig>,
}

impl Default for PpoConfig {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            kl_coefficient: None,
            kl_estimator: None,
            kl_in: None,
            kl_target: None,
            kl_horizon: 10_000.0,
            // The authors' PF-PPO code: γ 1, λ 0.95, scores clipped at 10, value clip 0.2.
            gamma: 1.0,
            gae_lambda: 0.95,
            credit: Credit::default(),
            turn_gamma: None,
            whiten: None,
            score_clip: Bound::At(10.0),
            truncated: Truncated::Train,
            missing_eos_penalty: 0.0,
            overlong: None,
            critic_on: SamplesOn::Filtered,
            clip_ratio_low: None,
            clip_ratio_high: None,
            dual_clip: None,
            value_clip: Bound::At(0.2),
            entropy_coefficient: 0.0,
            covariance: CovarianceControl::Off,
            positive_weight: 1.0,
            entropy_target: None,
            loss_aggregation: None,
            norm_tokens: None,
            correction: None,
            off_policy_delta: Bound::Off,
            rollout_support: RolloutSupport::Full,
            logprob_alarm: None,
            // Each response is used three times (PF-PPO, arXiv 2409.06957, section 5).
            ppo_epochs: 3,
            minibatch_size: 256,
            microbatch_tokens: 16384,
            shuffle: true,
            seed: 0,
            // PF-PPO, for 7B parameters.
            policy_lr: 5e-7,
            critic_lr: 9e-6,
            betas: [0.9, 0.95],
            adam_eps: 1e-8,
            weight_decay: 0.0,
            weight_decay_on: DecayOn::All,
            max_grad_norm: Bound::At(1.0),
            schedule: Schedule::Constant,
            warmup_steps: 0,
            warmup_share: 0.0,
            max_skipped: MAX_SKIPPED_STEPS,
            dtype: None,
            recompute: false,
            zero_stage: ZeroStage::Off,
            offload_optimizer: false,
            lora: None,
            critic_lora: None,
        }
    }
}

impl PpoConfig {
    /// Whether the algorithm trains a critic.
    pub fn needs_critic(&self) -> bool {
        self.algorithm.defaults().needs_critic()
    }

    /// Element type of weights and activations on a device.
    pub fn dtype_on(&self, device: Device) -> Precision {
        self.dtype.unwrap_or(Precision::of_device(device))
    }

    /// [`logprob_alarm`](Self::logprob_alarm), or what fits the element type.
    pub(crate) fn logprob_alarm(&self) -> f64 {
        self.logprob_alarm.unwrap_or(match self.dtype.unwrap_or(Precision::F32) {
            // Twenty times what two implementations of one network differ by.
            Precision::F32 => 2e-3,
            // A network of 135M parameters in bf16 differs by 0.03 from its f32 log-probs.
            Precision::Bf16 => 5e-2,
        })
    }

    /// The optimizer of a model with this peak learning rate.
    pub(crate) fn optimizer(&self, lr: f64) -> OptimizerConfig {
        OptimizerConfig {
            lr,
            betas: self.betas,
            adam_eps: self.adam_eps,
            weight_decay: self.weight_decay,
            weight_decay_on: self.weight_decay_on,
            max_grad_norm: self.max_grad_norm,
            schedule: self.schedule,
            warmup_steps: self.warmup_steps,
            max_skipped: self.max_skipped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_has_no_problems_and_survives_toml() {
        let config = PpoConfig::default();
        assert_eq!(config.problems(), Vec::<String>::new());
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<PpoConfig>(&text).unwrap(), config);
    }

    #[test]
    fn the_alarm_knows_the_element_type() {
        let alarm = |dtype, logprob_alarm| {
            PpoConfig { dtype: Some(dtype), logprob_alarm, ..PpoConfig::default() }.logprob_alarm()
        };
        assert_eq!((alarm(Precision::F32, None), alarm(Precision::Bf16, None)), (2e-3, 5e-2));
        assert_eq!((alarm(Precision::F32, Some(0.1)), alarm(Precision::Bf16, Some(0.1))), (0.1, 0.1));
    }

    #[test]
    fn every_key_of_the_documentation_is_one() {
        let text = r#"
            algorithm = "pf-ppo"
            kl_coefficient = 0.05
            kl_estimator = "k1"
            gamma = 0.99
            gae_lambda = 0.9
            whiten = "before-filter"
            score_clip = 5.0
            clip_ratio_low = 0.2
            clip_ratio_high = 0.28
            dual_clip = 3.0
            value_clip = "off"
            entropy_coefficient = 0.01
            loss_aggregation = "token-mean"
            ppo_epochs = 2
            minibatch_size = 8
            microbatch_tokens = 512
            shuffle = false
            seed = 3
            policy_lr = 1e-4
            critic_lr = 2e-4
            betas = [0.9, 0.999]
            adam_eps = 1e-3
            weight_decay = 0.01
            max_grad_norm = 1.0
            schedule = "cosine"
            warmup_steps = 2
            dtype = "bf16"
            recompute = true
            zero_stage = 2
            critic_on = "all"
            correction = { token-truncate = { max = 2.0 } }
            covariance = { clip-cov = { share = 2e-4, low = 1.0, high = 5.0 } }
            lora = { rank = 8, alpha = 16.0, targets = ["q_proj", "v_proj"] }
        "#;
        let config: PpoConfig = toml::from_str(text).unwrap();
        assert_eq!(config.problems(), Vec::<String>::new());
        assert_eq!((config.zero_stage, config.dtype), (ZeroStage::Gradients, Some(Precision::Bf16)));
        assert_eq!((config.value_clip, config.dual_clip), (Bound::Off, Some(Bound::At(3.0))));
        let error = toml::from_str::<PpoConfig>("gama = 1.0").unwrap_err().to_string();
        assert!(error.contains("unknown field `gama`"), "{error}");
    }
}
