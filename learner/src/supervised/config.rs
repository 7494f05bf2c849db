//! Configurations of the supervised objectives. Unknown keys are refused; `problems()` lists everything that
//! is wrong.

use std::path::{Path, PathBuf};

use algo::{Aggregation, Kto, PreferenceObjective};
use model::Architecture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::mixture::{ExampleSource, MixedData};
use crate::config::{ExecutionConfig, OptimizerConfig, Problems};

/// A new network instead of a folder, `[init]`: random weights, the tokenizer of a folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InitConfig {
    /// Folder with `tokenizer.json` and what else belongs to the tokenizer.
    #[schemars(extend("x-kind" = "tokenizer folder"))]
    pub tokenizer: PathBuf,
    /// Family: `llama`, `mistral`, `qwen2`, `qwen3`, or `qwen3_moe` (8 experts of `intermediate_size`, 2 a
    /// token).
    pub architecture: String,
    /// Rows of the embedding; the tokenizer's size where absent.
    pub vocab_size: Option<i64>,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width of the feed-forward layer.
    pub intermediate_size: i64,
    /// Number of decoder blocks.
    pub layers: usize,
    /// Query heads of each block.
    pub heads: i64,
    /// Key and value heads of each block; each serves equally many query heads.
    pub kv_heads: i64,
    /// Longest sequence, in tokens.
    pub max_positions: i64,
    /// Whether the logits use the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Standard deviation of new matrices.
    pub initializer_range: f64,
}

impl Default for InitConfig {
    fn default() -> Self {
        Self {
            tokenizer: PathBuf::new(),
            architecture: "llama".to_owned(),
            vocab_size: None,
            hidden_size: 128,
            intermediate_size: 384,
            layers: 4,
            heads: 4,
            kv_heads: 4,
            max_positions: 1024,
            tie_word_embeddings: true,
            initializer_range: 0.02,
        }
    }
}

impl InitConfig {
    /// The family, if `architecture` names one.
    pub(crate) fn family(&self) -> Option<Architecture> {
        Architecture::ALL.into_iter().find(|family| family.model_type() == self.architecture)
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Problems::default();
        problems.check(self.family().is_some(), || {
            format!(
                "architecture is {:?}, must be llama, mistral, qwen2, qwen3 or qwen3_moe",
                self.architecture
            )
        });
        problems.check(!self.tokenizer.as_os_str().is_empty(), || {
            "tokenizer is missing: name a folder".to_owned()
        });
        problems.into_list()
    }
}

/// What all supervised objectives have in common, `[training]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Passes over the data.
    pub epochs: usize,
    /// Examples (pairs) of one optimizer step. The last of a pass may have fewer.
    pub batch_size: usize,
    /// Most tokens of a prompt and its response; longer examples are left out, and counted.
    pub max_length: usize,
    /// Whether a response given as text ends with the end-of-sequence token.
    pub append_eos: bool,
    /// Whether each pass has an order of its own.
    pub shuffle: bool,
    /// Seed of orders and of new weights.
    pub seed: u64,
    /// Optimizer steps from one checkpoint in `<output>.training` to the next; 0 writes one only when
    /// training is interrupted. The same command goes on from the newest.
    pub save_every: u64,
    /// Optimizer steps from one evaluation to the next, besides those after each pass; the network with the
    /// lowest loss on `eval_data` is then kept as `best/` in the output, beside the last one.
    pub eval_every: u64,
    /// Evaluations in a row without a lower loss on `eval_data` that end training; 0: none do.
    pub stop_after_evals: u64,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 1,
            batch_size: 64,
            max_length: 2048,
            append_eos: true,
            shuffle: true,
            seed: 0,
            save_every: 500,
            eval_every: 0,
            stop_after_evals: 0,
        }
    }
}

impl TrainingConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = Problems::default();
        problems.positive("epochs", self.epochs);
        problems.positive("batch_size", self.batch_size);
        problems
            .check(self.max_length >= 2, || format!("max_length is {}, must be at least 2", self.max_length));
        problems.into_list()
    }
}

/// The sections that every objective has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrainingSections<'a> {
    pub(crate) training: &'a TrainingConfig,
    pub(crate) optimizer: &'a OptimizerConfig,
    pub(crate) execution: &'a ExecutionConfig,
}

impl TrainingSections<'_> {
    fn check(&self, problems: &mut Problems) {
        problems.section("training", self.training.problems());
        problems.section("optimizer", self.optimizer.problems());
        problems.section("execution", self.execution.problems());
    }
}

/// Which turns of the assistant are learnt of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AssistantTurns {
    /// Every one, each up to its end of turn.
    #[default]
    All,
    /// The last one, which has to be the last message.
    Last,
}

/// Supervised fine-tuning: `{"messages"}`, `{"prompt", "response"}` or `{"prompt", "completion"}` (text, or
/// lists
/// of messages) or `{"prompt_tokens", "response_tokens"}` a line.
///
/// Messages are put into the model's chat template. Text is taken as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SftConfig {
    /// The model's folder.
    #[schemars(extend("x-kind" = "model folder"))]
    pub model: Option<PathBuf>,
    /// A new network instead.
    pub init: Option<InitConfig>,
    /// File of examples, JSON lines.
    #[schemars(extend("x-kind" = "file"))]
    pub data: PathBuf,
    /// Several files in the place of one.
    pub mixture: Vec<MixedData>,
    /// Examples on which the loss is measured after each pass.
    #[schemars(extend("x-kind" = "file"))]
    pub eval_data: Option<PathBuf>,
    /// Where the trained model's folder goes; it must not be there.
    pub output: PathBuf,
    /// Which turns of the assistant are learnt of a conversation.
    pub assistant_turns: AssistantTurns,
    /// How token losses become one number.
    pub loss_aggregation: Aggregation,
    /// Passes, batches, lengths.
    pub training: TrainingConfig,
    /// AdamW and its schedule.
    pub optimizer: OptimizerConfig,
    /// Precision, memory, ranks.
    pub execution: ExecutionConfig,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            model: None,
            init: None,
            data: PathBuf::new(),
            mixture: Vec::new(),
            eval_data: None,
            output: PathBuf::new(),
            assistant_turns: AssistantTurns::All,
            loss_aggregation: Aggregation::TokenMean,
            training: TrainingConfig::default(),
            optimizer: OptimizerConfig::default(),
            execution: ExecutionConfig::default(),
        }
    }
}

impl SftConfig {
    /// Where its examples come from.
    pub(crate) fn source(&self) -> ExampleSource<'_> {
        ExampleSource { data: &self.data, mixture: &self.mixture }
    }

    /// Everything that makes the values unusable.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Problems::default();
        self.source().check(&mut problems);
        check_output(&mut problems, &self.output);
        check_held_out(&mut problems, &self.training, self.eval_data.as_deref());
        problems.check(self.model.is_some() != self.init.is_some(), || {
            "model and init: give exactly one, a folder or a new network".to_owned()
        });
        if let Some(init) = &self.init {
            problems.section("init", init.problems());
        }
        self.sections().check(&mut problems);
        problems.into_list()
    }

    /// How training goes.
    pub(crate) fn sections(&self) -> TrainingSections<'_> {
        let Self { training, optimizer, execution, .. } = self;
        TrainingSections { training, optimizer, execution }
    }
}

/// A reward model from pairs (Bradley-Terry): `{"chosen", "rejected"}` as lists of messages that begin with
/// the
/// same prompt, or with `"prompt"` beside them; `{"prompt", "chosen", "rejected"}` as text; or
/// `{"prompt_tokens",
/// "chosen_tokens", "rejected_tokens"}` a line, with `"margin"` where one is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RewardModelConfig {
    /// The folder to start from: a policy gets a new head, a reward model keeps its own.
    #[schemars(extend("x-kind" = "model folder"))]
    pub model: PathBuf,
    /// File of pairs, JSON lines.
    #[schemars(extend("x-kind" = "file"))]
    pub data: PathBuf,
    /// Several files in the place of one.
    pub mixture: Vec<MixedData>,
    /// Pairs on which accuracy, mean and deviation of the scores are measured; the training pairs where
    /// absent.
    #[schemars(extend("x-kind" = "file"))]
    pub eval_data: Option<PathBuf>,
    /// Where the reward model's folder goes; it must not be there.
    pub output: PathBuf,
    /// Passes, batches, lengths.
    pub training: TrainingConfig,
    /// AdamW and its schedule.
    pub optimizer: OptimizerConfig,
    /// Precision, memory, ranks.
    pub execution: ExecutionConfig,
}

impl Default for RewardModelConfig {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            data: PathBuf::new(),
            mixture: Vec::new(),
            eval_data: None,
            output: PathBuf::new(),
            training: TrainingConfig::default(),
            optimizer: OptimizerConfig::default(),
            execution: ExecutionConfig::default(),
        }
    }
}

impl RewardModelConfig {
    /// Where its examples come from.
    pub(crate) fn source(&self) -> ExampleSource<'_> {
        ExampleSource { data: &self.data, mixture: &self.mixture }
    }

    /// Everything that makes the values unusable.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Problems::default();
        self.source().check(&mut problems);
        check_output(&mut problems, &self.output);
        check_held_out(&mut problems, &self.training, self.eval_data.as_deref());
        problems.check(!self.model.as_os_str().is_empty(), || "model is missing: name a folder".to_owned());
        self.sections().check(&mut problems);
        problems.into_list()
    }

    /// How training goes.
    pub(crate) fn sections(&self) -> TrainingSections<'_> {
        let Self { training, optimizer, execution, .. } = self;
        TrainingSections { training, optimizer, execution }
    }
}

/// How preferences become a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PreferenceLoss {
    /// Direct preference optimisation (arXiv 2305.18290).
    #[default]
    Dpo,
    /// DPO where labels are wrong with probability `label_smoothing`.
    Cdpo,
    /// Identity preference optimisation (arXiv 2310.12036).
    Ipo,
    /// Kahneman-Tversky optimisation (arXiv 2402.01306): labelled responses instead of pairs.
    Kto,
}

/// A policy from preferences: pairs as for a reward model, and for KTO `{"prompt", "response", "label"}`,
/// `{"messages", "label"}` or `{"prompt_tokens", "response_tokens", "label"}` a line, the label a bool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PreferenceConfig {
    /// The policy's folder.
    #[schemars(extend("x-kind" = "model folder"))]
    pub model: PathBuf,
    /// The reference's folder; the policy before training where absent.
    #[schemars(extend("x-kind" = "model folder"))]
    pub reference: Option<PathBuf>,
    /// File of preferences, JSON lines.
    #[schemars(extend("x-kind" = "file"))]
    pub data: PathBuf,
    /// Several files in the place of one.
    pub mixture: Vec<MixedData>,
    /// Preferences on which the loss is measured after each pass.
    #[schemars(extend("x-kind" = "file"))]
    pub eval_data: Option<PathBuf>,
    /// Where the trained policy's folder goes; it must not be there.
    pub output: PathBuf,
    /// How preferences become a loss.
    pub objective: PreferenceLoss,
    /// β of DPO, cDPO and KTO.
    pub beta: f64,
    /// ε of cDPO.
    pub label_smoothing: f64,
    /// τ of IPO.
    pub tau: f64,
    /// Whether IPO divides log-ratios by the response's length, as TRL does; the authors of DPO do not.
    pub length_average: bool,
    /// λ_D of KTO.
    pub desirable_weight: f64,
    /// λ_U of KTO.
    pub undesirable_weight: f64,
    /// Passes, batches, lengths.
    pub training: TrainingConfig,
    /// AdamW and its schedule.
    pub optimizer: OptimizerConfig,
    /// Precision, memory, ranks.
    pub execution: ExecutionConfig,
}

impl Default for PreferenceConfig {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            reference: None,
            data: PathBuf::new(),
            mixture: Vec::new(),
            eval_data: None,
            output: PathBuf::new(),
            objective: PreferenceLoss::Dpo,
            beta: 0.1,
            label_smoothing: 0.1,
            tau: 0.1,
            length_average: false,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            training: TrainingConfig::default(),
            optimizer: OptimizerConfig { lr: 1e-6, ..OptimizerConfig::default() },
            execution: ExecutionConfig::default(),
        }
    }
}

impl PreferenceConfig {
    /// Where its examples come from.
    pub(crate) fn source(&self) -> ExampleSource<'_> {
        ExampleSource { data: &self.data, mixture: &self.mixture }
    }

    /// Everything that makes the values unusable.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Problems::default();
        self.source().check(&mut problems);
        check_output(&mut problems, &self.output);
        check_held_out(&mut problems, &self.training, self.eval_data.as_deref());
        problems.check(!self.model.as_os_str().is_empty(), || "model is missing: name a folder".to_owned());
        problems.above_zero("beta", self.beta);
        problems.above_zero("tau", self.tau);
        problems.check((0.0..0.5).contains(&self.label_smoothing), || {
            format!("label_smoothing is {}, must be from 0 to below 0.5", self.label_smoothing)
        });
        problems.not_negative("desirable_weight", self.desirable_weight);
        problems.not_negative("undesirable_weight", self.undesirable_weight);
        self.sections().check(&mut problems);
        problems.into_list()
    }

    /// How training goes.
    pub(crate) fn sections(&self) -> TrainingSections<'_> {
        let Self { training, optimizer, execution, .. } = self;
        TrainingSections { training, optimizer, execution }
    }

    /// The loss on pairs; `None` for KTO.
    pub(crate) fn pair_objective(&self) -> Option<PreferenceObjective> {
        let Self { beta, label_smoothing, tau, length_average, .. } = *self;
        match self.objective {
            PreferenceLoss::Dpo => Some(PreferenceObjective::Dpo { beta }),
            PreferenceLoss::Cdpo => Some(PreferenceObjective::Cdpo { beta, label_smoothing }),
            PreferenceLoss::Ipo => Some(PreferenceObjective::Ipo { tau, length_average }),
            PreferenceLoss::Kto => None,
        }
    }

    /// The parameters of KTO.
    pub(crate) fn kto(&self) -> Kto {
        let Self { beta, desirable_weight, undesirable_weight, .. } = *self;
        Kto { beta, desirable_weight, undesirable_weight }
    }
}

fn check_held_out(problems: &mut Problems, training: &TrainingConfig, eval_data: Option<&Path>) {
    problems.check(training.stop_after_evals == 0 || eval_data.is_some(), || {
        format!(
            "training.stop_after_evals is {}, but there is no eval_data to measure on",
            training.stop_after_evals
        )
    });
}

fn check_output(problems: &mut Problems, output: &Path) {
    problems.check(!output.as_os_str().is_empty(), || "output is missing: name a folder to write".to_owned());
    problems.check(
        !output.exists() || output.read_dir().is_ok_and(|mut entries| entries.next().is_none()),
        || format!("output {} is there already; remove it or name another", output.display()),
    );
}
