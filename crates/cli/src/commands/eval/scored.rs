//! Responses judged by scorers, as the ring would score them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use coordinator::data::DataConfig;
use engine::generate::DrawOptions;
use reward_server::{Config, NotScored};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use service::BadInput;
use service::jsonl::{self, Line, WrongLines};
use types::{FinishReason, PromptContent};

use super::Arguments;
use super::totals::ScoreTotals;
use crate::judging::{Answer, Judged, ToJudge, drawn_to, judge, read_prompts};
use crate::responses;

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
    judge(config, responses, |Judged { prompt, id, index, text, scored }| {
        let mut row = json!({"id": id, "index": index, "text": text});
        match scored {
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
        writer.as_mut().map_or(Ok(()), |writer| writer.write(&row))
    })?;
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
    let rows = read_prompts(&data, wrong)?;
    let prompts: Vec<PromptContent> = rows.iter().map(|row| row.content.clone()).collect();
    let sampling = arguments.sampling.sampling(0.0, &[])?;
    let draw = DrawOptions { n: arguments.n, seed: arguments.seed, sampling };
    let mut generator = arguments.engine.generator(&arguments.model)?;
    let groups = responses::draw_where_possible(&mut generator, &prompts, &draw)?;
    drop(generator);
    drawn_to(&rows, &groups)
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
