//! Responses judged by scorers, as the ring would score them.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use coordinator::data::{DataConfig, prompt_rows};
use engine::generate::{DrawOptions, Response};
use reward_server::{Config, NotScored, score_rollouts};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use service::BadInput;
use service::jsonl::{self, Line, WrongLines};
use types::{FinishReason, PolicyVersion, PromptContent, PromptId, Rollout, RolloutId, RolloutParts, Span};

use super::Arguments;
use super::totals::ScoreTotals;
use crate::bar::Bar;
use crate::commands::on_runtime;
use crate::responses;

/// A response that is to be judged.
struct ToJudge {
    /// Its prompt's place and name.
    prompt: usize,
    id: Value,
    index: usize,
    text: String,
    rollout: Rollout,
}

/// Judges and says what came of it.
///
/// # Errors
/// Names the file and line that cannot be used, the model, or what the scorers lack.
pub(super) fn run(arguments: &Arguments, config: &Config, wrong: &WrongLines) -> anyhow::Result<()> {
    let responses = match (&arguments.responses, &arguments.problems) {
        (Some(path), _) => recorded(path, wrong)?,
        (None, Some(path)) => drawn(arguments, path, wrong)?,
        (None, None) => Vec::new(),
    };
    let mut totals = ScoreTotals::of(responses.iter().map(|response| response.prompt + 1).max().unwrap_or(0));
    let mut writer = arguments.output.as_deref().map(jsonl::Writer::create).transpose()?;
    let (bar, total) = (Bar::new("scores", responses.len() as u64), responses.len() as u64);
    let (mut places, mut rollouts) = (Vec::new(), Vec::new());
    for ToJudge { prompt, id, index, text, rollout } in responses {
        places.push((prompt, json!({"id": id, "index": index, "text": text})));
        rollouts.push(rollout);
    }
    let (mut places, mut done, mut written) = (places.into_iter(), 0, Ok(()));
    let ended = on_runtime(score_rollouts(config, rollouts.into_iter(), |result| {
        let Some((prompt, mut row)) = places.next() else { return };
        match result {
            Ok(scored) => {
                totals.add(prompt, &scored);
                row["score"] = json!(scored.score());
                row["outcome"] = json!(scored.outcome());
                row["scorers"] = json!(scored.remarks().numbers);
            }
            Err(NotScored { reason, detail }) => {
                totals.add_failed(reason, &detail);
                row["not_scored"] = json!({"reason": reason.as_str(), "detail": detail});
            }
        }
        done += 1;
        bar.at(done, total, "");
        if let (Some(writer), Ok(())) = (&mut writer, &written) {
            written = writer.write(&row);
        }
    }));
    bar.finish();
    ended?;
    written?;
    writer.map_or(Ok(()), jsonl::Writer::finish)?;
    let k = &arguments.grading.k;
    arguments.say(&if arguments.grading.json { totals.json(k) } else { totals.table(k) });
    Ok(wrong.finish()?)
}

/// Draws responses to the prompts of a file.
fn drawn(arguments: &Arguments, path: &Path, wrong: &WrongLines) -> anyhow::Result<Vec<ToJudge>> {
    let mut data = DataConfig { path: path.to_owned(), ..DataConfig::default() };
    for column in &arguments.columns {
        let (name, column) = column
            .split_once('=')
            .ok_or_else(|| BadInput(format!("--column is {column:?}, must look like prompt=question")))?;
        data.columns.insert(name.to_owned(), column.to_owned());
    }
    let (mut prompts, mut fields): (Vec<PromptContent>, Vec<Map<String, Value>>) = (Vec::new(), Vec::new());
    for row in prompt_rows(&data).map_err(|error| BadInput(error.to_string()))? {
        // A table that cannot be read any further would say so for ever.
        let is_row = !matches!(&row, Err(coordinator::data::Error::Table { .. }));
        let row = row.map_err(|error| BadInput(error.to_string()));
        let sifted = if is_row { wrong.sift(row) } else { Some(row) };
        if let Some(row) = sifted {
            let row = row?;
            prompts.push(row.content);
            fields.push(row.fields);
        }
    }
    if prompts.is_empty() {
        return Err(BadInput(format!("{} holds no prompt", path.display())).into());
    }
    let sampling = arguments.sampling.sampling(0.0, &[])?;
    let draw = DrawOptions { n: arguments.n, seed: arguments.seed, sampling };
    let mut generator = arguments.engine.generator(&arguments.model)?;
    let groups = responses::draw_where_possible(&mut generator, &prompts, &draw)?;
    drop(generator);
    let mut all = Vec::new();
    for (prompt, (fields, group)) in fields.into_iter().zip(groups).enumerate() {
        let id = fields.get("id").or(fields.get("task_id")).cloned().unwrap_or_else(|| (prompt + 1).into());
        let fields: Arc<str> = Value::Object(fields).to_string().into();
        for (index, response) in group.into_iter().enumerate() {
            let Response { prompt_tokens, tokens, text, logprobs, finish_reason, .. } = response;
            let answer = Answer { prompt_tokens, tokens, logprobs, finish_reason };
            let rollout = answer.rollout(prompt, index, Arc::clone(&fields));
            let rollout = rollout.map_err(|error| anyhow::anyhow!("{error}"))?;
            all.push(ToJudge { prompt, id: id.clone(), index, text, rollout });
        }
    }
    Ok(all)
}

/// What a rollout is made of.
struct Answer {
    prompt_tokens: Arc<[u32]>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    finish_reason: FinishReason,
}

impl Answer {
    fn rollout(self, prompt: usize, sibling: usize, fields: Arc<str>) -> Result<Rollout, types::Invalid> {
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
            rollout_logprobs: self.logprobs,
            surviving_mass: None,
            spans: tokens.map(|tokens| Span { version: PolicyVersion(0), tokens }).into_iter().collect(),
            finish_reason: self.finish_reason,
            fields,
        })
    }
}

/// A line that `sluice generate` has written.
#[derive(Deserialize)]
struct RecordedLine {
    id: Option<Value>,
    prompt_id: Option<Value>,
    prompt_tokens: Vec<u32>,
    response_tokens: Vec<u32>,
    text: Option<String>,
    finish_reason: Option<FinishReason>,
}

/// Responses that a file holds; equal names are one prompt's.
fn recorded(path: &Path, wrong: &WrongLines) -> Result<Vec<ToJudge>, BadInput> {
    let (mut prompts, mut all): (HashMap<String, (usize, usize)>, Vec<ToJudge>) =
        (HashMap::new(), Vec::new());
    for line in jsonl::read(path)? {
        let read = line.and_then(|line| {
            let recorded: RecordedLine = line.parse()?;
            let fields = fields_of(&line)?;
            let id = recorded.prompt_id.or(recorded.id).unwrap_or_else(|| line.number().into());
            let next = (prompts.len(), 0);
            let (prompt, index) = prompts.get(&id.to_string()).copied().unwrap_or(next);
            let answer = Answer {
                prompt_tokens: recorded.prompt_tokens.into(),
                logprobs: vec![0.0; recorded.response_tokens.len()],
                tokens: recorded.response_tokens,
                finish_reason: recorded.finish_reason.unwrap_or(FinishReason::Stop),
            };
            let rollout = answer.rollout(prompt, index, fields);
            let rollout = rollout.map_err(|invalid| line.wrong(&invalid.problem))?;
            prompts.insert(id.to_string(), (prompt, index + 1));
            Ok(ToJudge { prompt, id, index, text: recorded.text.unwrap_or_default(), rollout })
        });
        if let Some(read) = wrong.sift(read) {
            all.push(read?);
        }
    }
    if all.is_empty() { Err(BadInput(format!("{} holds no response", path.display()))) } else { Ok(all) }
}

/// What a line holds of its prompt: not what was drawn.
fn fields_of(line: &Line) -> Result<Arc<str>, BadInput> {
    let mut fields: Map<String, Value> = line.parse()?;
    for drawn in ["prompt_tokens", "response_tokens", "tokens", "text", "logprobs", "ref_logprobs"] {
        fields.remove(drawn);
    }
    Ok(Value::Object(fields).to_string().into())
}
