//! Responses judged by scorers, as the ring would score them: one way for `sluice eval` and for a recipe's
//! stage `eval`.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use coordinator::data::{DataConfig, Error as DataError, PromptRow, prompt_rows};
use engine::generate::{Played, Response};
use reward_server::config::{SandboxConfig, ScorerKind};
use reward_server::{Config, NotScored, score_rollouts};
use serde_json::Value;
use service::jsonl::WrongLines;
use service::{BadInput, Config as _};
use types::{
    FinishReason, Observation, PolicyVersion, PromptId, Rollout, RolloutId, RolloutParts, ScoredRollout, Span,
};

use crate::bar::Bar;
use crate::grading::GradingSetup;
use crate::runtime::on_runtime;

/// A response that is to be judged.
pub(crate) struct ToJudge {
    /// Its prompt's place, from 0.
    pub(crate) prompt: usize,
    /// Its prompt's name.
    pub(crate) id: Value,
    /// Its place among the responses to the prompt.
    pub(crate) index: usize,
    pub(crate) text: String,
    /// What was said in it, where it is an episode.
    pub(crate) played: Option<Box<Played>>,
    pub(crate) rollout: Rollout,
}

/// A reward server's configuration as one that judges a policy's responses and serves nobody. A single scorer
/// whose number is from 0 to 1 is the yardstick where none is marked.
///
/// # Errors
/// Names what cannot be used.
pub(crate) fn judging_config(
    mut config: Config,
    policy: &Path,
    setup: &GradingSetup,
) -> anyhow::Result<Config> {
    config.tokenizer = Some(policy.to_owned());
    config.reference = None;
    config.endpoint.enabled = false;
    // Nobody is connected to; without one it would be no reward server.
    config.coordinator = Some("127.0.0.1:0".to_owned());
    if config.scorers.iter().any(|scorer| matches!(scorer.kind, ScorerKind::UnitTests(_)))
        && config.sandbox.is_none()
    {
        let GradingSetup { grader, limits, extract } = setup.clone();
        config.sandbox = Some(SandboxConfig { grader, limits, extract, ..SandboxConfig::default() });
    }
    if let [only] = &mut config.scorers[..]
        && only.kind.is_zero_to_one()
    {
        only.share.yardstick = true;
    }
    let problems = config.problems();
    if problems.is_empty() { Ok(config) } else { Err(service::config::Error::Unusable { problems }.into()) }
}

/// The prompts of a file.
///
/// # Errors
/// Names the file and line that cannot be used, unless such lines are passed over.
pub(crate) fn read_prompts(data: &DataConfig, wrong: &WrongLines) -> anyhow::Result<Vec<PromptRow>> {
    let mut prompts = Vec::new();
    for row in prompt_rows(data).map_err(|error| BadInput(error.to_string()))? {
        // A table that cannot be read any further would say so for ever.
        let is_row = !matches!(&row, Err(DataError::Table { .. }));
        let row = row.map_err(|error| BadInput(error.to_string()));
        let sifted = if is_row { wrong.sift(row) } else { Some(row) };
        if let Some(row) = sifted {
            prompts.push(row?);
        }
    }
    if prompts.is_empty() {
        return Err(BadInput(format!("{} holds no prompt", data.path.display())).into());
    }
    Ok(prompts)
}

/// Responses that were drawn to prompts, in their order, with what the prompts' rows hold.
///
/// # Errors
/// When a response contradicts itself, which none does that was drawn.
pub(crate) fn drawn_to(rows: &[PromptRow], groups: &[Vec<Response>]) -> anyhow::Result<Vec<ToJudge>> {
    let mut all = Vec::new();
    for (prompt, (row, group)) in rows.iter().zip(groups).enumerate() {
        let named = row.fields.get("id").or(row.fields.get("task_id"));
        let id = named.cloned().unwrap_or_else(|| (prompt + 1).into());
        let fields: Arc<str> = Value::Object(row.fields.clone()).to_string().into();
        for (index, response) in group.iter().enumerate() {
            let answer = Answer {
                prompt_tokens: Arc::clone(&response.prompt_tokens),
                tokens: response.tokens.clone(),
                logprobs: response.logprobs.clone(),
                finish_reason: response.finish_reason,
                observations: response.observations().to_vec(),
                reward: response.played.as_ref().and_then(|played| played.reward),
            };
            let rollout = answer.rollout(prompt, index, Arc::clone(&fields));
            let rollout = rollout.map_err(|error| anyhow::anyhow!("{error}"))?;
            let (text, played) = (response.text.clone(), response.played.clone());
            all.push(ToJudge { prompt, id: id.clone(), index, text, played, rollout });
        }
    }
    Ok(all)
}

/// A response that has been judged, or could not be.
pub(crate) struct Judged {
    pub(crate) prompt: usize,
    pub(crate) id: Value,
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) played: Option<Box<Played>>,
    pub(crate) scored: Result<ScoredRollout, NotScored>,
}

/// Judges responses with a bar; calls `each` in their order.
///
/// # Errors
/// When what the scorers need cannot be used, and those of `each`: after its first nothing more is handed to
/// it.
pub(crate) fn judge(
    config: &Config,
    responses: Vec<ToJudge>,
    mut each: impl FnMut(Judged) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (bar, total) = (Bar::new("scores", responses.len() as u64), responses.len() as u64);
    let (mut places, mut rollouts) = (Vec::new(), Vec::new());
    for ToJudge { prompt, id, index, text, played, rollout } in responses {
        places.push((prompt, id, index, text, played));
        rollouts.push(rollout);
    }
    let (mut places, mut done, mut handed_on) = (places.into_iter(), 0, Ok(()));
    let ended = on_runtime(score_rollouts(config, rollouts.into_iter(), |scored| {
        let Some((prompt, id, index, text, played)) = places.next() else { return };
        done += 1;
        bar.at(done, total, "");
        if handed_on.is_ok() {
            handed_on = each(Judged { prompt, id, index, text, played, scored });
        }
    }));
    bar.finish();
    ended?;
    handed_on
}

/// What a rollout is made of.
pub(crate) struct Answer {
    pub(crate) prompt_tokens: Arc<[u32]>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<f32>,
    pub(crate) finish_reason: FinishReason,
    /// Of an episode: what was given between its turns, and what its environment says that it is worth.
    pub(crate) observations: Vec<Observation>,
    pub(crate) reward: Option<f32>,
}

impl Answer {
    /// The rollout of a prompt's response, with the fields of its row.
    ///
    /// # Errors
    /// When it contradicts itself.
    pub(crate) fn rollout(
        self,
        prompt: usize,
        sibling: usize,
        fields: Arc<str>,
    ) -> Result<Rollout, types::Invalid> {
        let tokens = NonZeroU32::new(u32::try_from(self.tokens.len()).unwrap_or(u32::MAX));
        Rollout::new(RolloutParts {
            id: RolloutId {
                prompt: PromptId { epoch: 0, ordinal: prompt as u64 },
                // Many responses share the last number: nobody tells them apart by it here.
                sibling: u16::try_from(sibling).unwrap_or(u16::MAX),
                attempt: 0,
            },
            prompt_tokens: self.prompt_tokens,
            response_tokens: self.tokens,
            observations: self.observations,
            reward: self.reward,
            rollout_logprobs: self.logprobs,
            surviving_mass: None,
            spans: tokens.map(|tokens| Span { version: PolicyVersion(0), tokens }).into_iter().collect(),
            finish_reason: self.finish_reason,
            fields,
        })
    }
}
