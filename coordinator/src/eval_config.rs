//! The configuration of evaluations.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use types::{Sampling, SamplingParams};

use crate::data::{DataConfig, DataSet};
use crate::state::{BestBy, EvaluationPlan};

/// Held-out prompts that are asked of the policy now and then. Their responses are scored and tested like
/// others, and train nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Versions from one evaluation to the next. There is one before the first step, too, and one after the
    /// last. A multiple of the learner's `checkpoint_every`, so that the best version has a checkpoint.
    pub every: u64,
    /// Prompts that are asked, the first of the file; 0 for all.
    pub prompts: u64,
    /// Responses to each prompt, at most `group_size`.
    pub samples: u16,
    /// Their temperature; 0 is greedy. What else `sampling` says holds for them, too.
    pub temperature: f32,
    /// What the best version is best by; its checkpoint is kept.
    pub best_by: BestBy,
    /// Evaluations in a row that are not better than the best one, after which the run ends; 0: it goes on.
    pub stop_after: u64,
    /// The prompts, taken in the order of the file.
    pub data: DataConfig,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            every: 10,
            prompts: 0,
            samples: 1,
            temperature: 0.0,
            best_by: BestBy::default(),
            stop_after: 0,
            data: DataConfig::default(),
        }
    }
}

impl EvalConfig {
    /// Everything that makes the values unusable.
    pub(crate) fn problems(&self, group_size: u16) -> Vec<String> {
        let mut problems = Vec::new();
        if self.data.path.as_os_str().is_empty() {
            problems.push("data.path is missing: name a file of held-out prompts".to_owned());
        }
        if self.every == 0 {
            problems.push("every must be at least 1".to_owned());
        }
        if !(1..=group_size).contains(&self.samples) {
            let samples = self.samples;
            problems.push(format!("samples is {samples}, must be between 1 and group_size = {group_size}"));
        }
        if self.samples > 1 && self.temperature == 0.0 {
            let samples = self.samples;
            problems.push(format!("samples is {samples}, but at temperature 0 all of them are equal"));
        }
        if let Err(error) = self.sampling(&Sampling::default()) {
            problems.push(error.to_string());
        }
        problems
    }

    fn sampling(&self, of_run: &Sampling) -> Result<Sampling, types::Invalid> {
        SamplingParams { temperature: self.temperature, ..of_run.clone().into() }.try_into()
    }

    /// What a run does that draws `of_run` for training.
    ///
    /// # Errors
    /// A temperature that is none.
    pub(crate) fn plan(&self, data: &DataSet, of_run: &Sampling) -> Result<EvaluationPlan, types::Invalid> {
        let Self { every, prompts, samples, best_by, stop_after, .. } = *self;
        let all = data.len() as u64;
        Ok(EvaluationPlan {
            prompts: if prompts == 0 { all } else { prompts.min(all) },
            data_hash: data.hash().to_owned(),
            every,
            samples,
            sampling: self.sampling(of_run)?,
            best_by,
            stop_after,
        })
    }
}
