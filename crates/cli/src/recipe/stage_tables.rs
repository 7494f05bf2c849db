//! What the kinds of stages are told that no other crate does: programs, tokenizers, preference pairs,
//! best responses, comparisons.

use std::collections::BTreeMap;
use std::path::PathBuf;

use reward_server::config::ScorerConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Table;
use types::Sampling;

/// A program, such as one that makes data, and what it makes.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CommandStage {
    /// The program and its arguments.
    pub(crate) run: Vec<String>,
    /// What it makes.
    pub(crate) output: PathBuf,
}

/// What a byte-level BPE tokenizer is trained on.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TokenizerStage {
    /// JSON Lines files.
    #[schemars(extend("x-kind" = "files"))]
    pub(crate) data: Vec<PathBuf>,
    /// Fields of a line that hold text.
    pub(crate) fields: Vec<String>,
    /// Most tokens, special ones and the 256 bytes included.
    pub(crate) vocab_size: usize,
    /// The end of a response.
    pub(crate) eos: String,
    /// The beginning of a prompt, if there is to be one.
    pub(crate) bos: Option<String>,
    /// A chat template, if there is to be one.
    #[schemars(extend("x-kind" = "file"))]
    pub(crate) chat_template: Option<PathBuf>,
    /// The tokenizer's folder.
    pub(crate) output: PathBuf,
}

impl Default for TokenizerStage {
    fn default() -> Self {
        Self {
            data: Vec::new(),
            fields: vec!["prompt".to_owned(), "response".to_owned()],
            vocab_size: 4096,
            eos: "<|end|>".to_owned(),
            bos: None,
            chat_template: None,
            output: PathBuf::new(),
        }
    }
}

/// What preference pairs are made of.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PreferencesStage {
    /// The policy's folder.
    #[schemars(extend("x-kind" = "model folder"))]
    pub(crate) model: PathBuf,
    /// Problems with tests.
    #[schemars(extend("x-kind" = "file"))]
    pub(crate) problems: PathBuf,
    /// Problems used, from the first; all where not given.
    pub(crate) max_problems: Option<usize>,
    /// Responses per problem.
    pub(crate) n: usize,
    /// Most pairs of one problem, those of greater edit distance first.
    pub(crate) max_pairs: usize,
    /// How they are drawn.
    pub(crate) sampling: Sampling,
    /// Seeds the draws.
    pub(crate) seed: u64,
    /// Share of the pairs kept apart for evaluating the reward model.
    pub(crate) eval_share: f64,
    /// Folder of `train.jsonl` and `eval.jsonl`.
    pub(crate) output: PathBuf,
}

impl Default for PreferencesStage {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            problems: PathBuf::new(),
            max_problems: None,
            // As the paper's.
            n: 5,
            max_pairs: 1,
            sampling: Sampling::default(),
            seed: 0,
            eval_share: 0.1,
            output: PathBuf::new(),
        }
    }
}

/// What demonstrations are chosen of by a reward model: rejection sampling fine-tuning, RAFT (Dong et al.,
/// arXiv 2304.06767).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BestOfNStage {
    /// The policy's folder.
    #[schemars(extend("x-kind" = "model folder"))]
    pub(crate) model: PathBuf,
    /// The reward model that chooses.
    #[schemars(extend("x-kind" = "model folder"))]
    pub(crate) reward_model: PathBuf,
    /// Prompts (JSON Lines, CSV, TSV, Parquet).
    #[schemars(extend("x-kind" = "file"))]
    pub(crate) data: PathBuf,
    /// Prompts used, from the first; all where not given.
    pub(crate) max_prompts: Option<usize>,
    /// Responses per prompt, of which the one with the highest score is kept.
    pub(crate) n: usize,
    /// How they are drawn.
    pub(crate) sampling: Sampling,
    /// Seeds the draws.
    pub(crate) seed: u64,
    /// Folder of `demonstrations.jsonl`, which a stage `sft` can take as it is.
    pub(crate) output: PathBuf,
}

impl Default for BestOfNStage {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            reward_model: PathBuf::new(),
            data: PathBuf::new(),
            max_prompts: None,
            n: 5,
            sampling: Sampling::default(),
            seed: 0,
            output: PathBuf::new(),
        }
    }
}

/// What is taken of another run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Restored {
    /// Policy and, where there is one, critic. Optimizers begin anew.
    Weights,
    /// The place among the prompts: those that it has used are passed over.
    Cursor,
}

/// What the ring begins with and leaves behind.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RingStage {
    /// Folder that the trained policy is put into.
    pub(crate) output: PathBuf,
    /// Another run that this one begins with: its output folder (or the folder of one of its rings), with
    /// `@1200` behind it for the checkpoint of batch 1200; the newest one where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<String>,
    /// What is taken of it: `weights` (policy and critic; optimizers begin anew), `cursor` (the prompts that
    /// it has used are passed over), or both.
    #[serde(skip_serializing_if = "is_weights_alone")]
    pub(crate) restore: Vec<Restored>,
    /// What this ring is told otherwise than the recipe's sections say, such as
    /// `coordinator.filtration.strategy = "none"`: keys of `coordinator`, `reward_server`, `learner`,
    /// `actor`, `processes`, and `seed`.
    #[serde(skip_serializing_if = "Table::is_empty")]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub(crate) set: Table,
}

impl Default for RingStage {
    fn default() -> Self {
        Self { output: PathBuf::new(), from: None, restore: vec![Restored::Weights], set: Table::new() }
    }
}

fn is_weights_alone(restore: &[Restored]) -> bool {
    *restore == [Restored::Weights]
}

/// What says how good a response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Judge {
    /// The hidden tests of the problems, in the sandbox.
    Tests,
    /// Scorers: the stage's own, else `[[reward_server.scorers]]`.
    Scorers,
}

/// Which policies are compared, and on what.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EvalStage {
    /// Problems, held out from all training: with tests or, where scorers judge, any prompts (JSON Lines,
    /// CSV, TSV, Parquet).
    #[schemars(extend("x-kind" = "file"))]
    pub(crate) problems: PathBuf,
    /// Problems used, from the first; all where not given.
    pub(crate) max_problems: Option<usize>,
    /// What says how good a response is: `tests` (those of the problems) or `scorers` (the stage's own, else
    /// `[[reward_server.scorers]]`). Where not given: scorers where the stage has some, else tests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) judge: Option<Judge>,
    /// Scorers that judge, such as `{kind = "numeric-match", field = "answer"}`. One that is marked by
    /// `yardstick = true`, or is the only one and says 0 to 1, decides pass@1; the weighted sum is the score.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) scorers: Vec<ScorerConfig>,
    /// Other names in the file, where scorers judge, such as `{prompt = "question"}`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) columns: BTreeMap<String, String>,
    /// The policies; the last one is compared with the first.
    pub(crate) policies: Vec<Candidate>,
    /// The reward model they were trained on.
    #[schemars(extend("x-kind" = "model folder"))]
    pub(crate) reward_model: Option<PathBuf>,
    /// The reference that the KL is taken to.
    #[schemars(extend("x-kind" = "model folder"))]
    pub(crate) reference: Option<PathBuf>,
    /// Sampled responses per problem, beside the greedy one.
    pub(crate) n: usize,
    /// The k of pass@k, at the sampling temperature; each at most `n`.
    pub(crate) pass_at: Vec<u64>,
    /// Other problems of the same shape, on which the temperature of each policy is chosen: a policy that has
    /// only become surer of itself is no better than the one before at a lower temperature.
    #[schemars(extend("x-kind" = "file"))]
    pub(crate) validation: Option<PathBuf>,
    /// The temperatures it is chosen of: the one at which the `n` responses to each of the validation
    /// problems are best in the mean.
    pub(crate) temperatures: Vec<f32>,
    /// Field of a problem, a text or a list of texts, that names its kinds: greedy figures are given for
    /// each of them, too.
    pub(crate) kinds: Option<String>,
    /// Draws responses of one turn, though `[reward_server.environment]` is there. Where not given they are
    /// episodes in it, as in the ring.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) one_turn: bool,
    /// How they are drawn.
    pub(crate) sampling: Sampling,
    /// Seeds the draws.
    pub(crate) seed: u64,
    /// Folder of the samples and of `report.json`.
    pub(crate) output: PathBuf,
}

impl Default for EvalStage {
    fn default() -> Self {
        Self {
            problems: PathBuf::new(),
            max_problems: None,
            judge: None,
            scorers: Vec::new(),
            columns: BTreeMap::new(),
            policies: Vec::new(),
            reward_model: None,
            reference: None,
            n: 8,
            pass_at: Vec::new(),
            validation: None,
            temperatures: vec![0.2, 0.4, 0.6, 0.8, 1.0],
            kinds: None,
            one_turn: false,
            sampling: Sampling::default(),
            seed: 0,
            output: PathBuf::new(),
        }
    }
}

impl EvalStage {
    /// What cannot be: the key within the stage, and why.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(k) = self.pass_at.iter().find(|k| **k == 0 || **k > self.n as u64) {
            let n = self.n;
            problems.push(format!(
                "pass_at: pass@{k} cannot be taken of n = {n} responses per problem: from 1 to n"
            ));
        }
        let mut wrong =
            self.temperatures.iter().filter_map(|at| self.sampling.clone().at_temperature(*at).err());
        problems.extend(wrong.next().map(|invalid| format!("temperatures: {invalid}")));
        if self.validation.is_some() && self.temperatures.is_empty() {
            problems.push("temperatures: none is there to choose of on the validation problems".to_owned());
        }
        problems
    }

    /// What says how good a response is.
    pub(crate) fn judge(&self) -> Judge {
        let by_default = if self.scorers.is_empty() { Judge::Tests } else { Judge::Scorers };
        self.judge.unwrap_or(by_default)
    }

    /// The scorers that judge, of those of the stage and of the ring.
    pub(crate) fn judging_scorers<'s>(&'s self, of_ring: &'s [ScorerConfig]) -> &'s [ScorerConfig] {
        if self.scorers.is_empty() { of_ring } else { &self.scorers }
    }
}

/// A policy under comparison.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Candidate {
    /// What the table calls it.
    pub(crate) name: String,
    /// Its folder.
    #[schemars(extend("x-kind" = "model folder"))]
    pub(crate) model: PathBuf,
}
