//! Responses judged by scorers, as the ring would score them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use coordinator::data::DataConfig;
use reward_server::{Config, NotScored};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use service::BadInput;
use service::jsonl::{self, Line, WrongLines};
use types::{FinishReason, PromptContent};

use super::Arguments;
use super::totals::ScoreTotals;
use crate::episodes::{EpisodeTotals, add_turns};
use crate::judging::{Answer, Judged, ToJudge, drawn_to, judge, read_prompts};

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
    let episodes =
        EpisodeTotals::of_played(responses.iter().filter_map(|response| response.played.as_deref()));
    let mut writer = arguments.output.as_deref().map(jsonl::Writer::create).transpose()?;
    judge(config, responses, |Judged { prompt, id, index, text, played, scored }| {
        let mut row = json!({"id": id, "index": index, "text": text});
        add_turns(&mut row, played.as_deref());
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
    let is_json = arguments.grading.json;
    let summary = if is_json { totals.json(k) } else { totals.table(k) };
    arguments.say(&EpisodeTotals::beside(episodes.as_ref(), summary, is_json));
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
    let fields = rows.iter().map(|row| Value::Object(row.fields.clone()).to_string().into());
    let groups = arguments.draw(&prompts, fields.collect(), &[])?;
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
    /// 1 for a response token that was drawn, 0 for one that was given.
    response_mask: Option<Vec<u8>>,
    /// Places among the response tokens with which further sequences begin.
    #[serde(default)]
    sequence_begins: Vec<usize>,
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
            let mask = recorded.response_mask.unwrap_or_else(|| vec![1; recorded.response_tokens.len()]);
            let drawn: Vec<bool> = mask.iter().map(|bit| *bit != 0).collect();
            let split = types::split_by_mask(&recorded.response_tokens, &drawn, &recorded.sequence_begins);
            let (tokens, observations) = split.map_err(|invalid| line.wrong(&invalid.to_string()))?;
            let answer = Answer {
                prompt_tokens: recorded.prompt_tokens.into(),
                logprobs: vec![0.0; tokens.len()],
                tokens,
                finish_reason: recorded.finish_reason.unwrap_or(FinishReason::Stop),
                observations,
                reward: None,
            };
            let rollout = answer.rollout(prompt, index, fields);
            let rollout = rollout.map_err(|invalid| line.wrong(&invalid.problem))?;
            prompts.insert(id.to_string(), (prompt, index + 1));
            let text = recorded.text.unwrap_or_default();
            Ok(ToJudge { prompt, id, index, text, played: None, rollout })
        });
        if let Some(read) = wrong.sift(read) {
            all.push(read?);
        }
    }
    if all.is_empty() { Err(BadInput(format!("{} holds no response", path.display()))) } else { Ok(all) }
}

/// Keys of a line that are no field of its prompt.
const DRAWN_KEYS: [&str; 10] = [
    "prompt_tokens",
    "response_tokens",
    "response_mask",
    "sequence_begins",
    "tokens",
    "text",
    "logprobs",
    "ref_logprobs",
    "turns",
    "end",
];

/// What a line holds of its prompt: not what was drawn.
fn fields_of(line: &Line) -> Result<Arc<str>, BadInput> {
    let mut fields: Map<String, Value> = line.parse()?;
    for drawn in DRAWN_KEYS {
        fields.remove(drawn);
    }
    Ok(Value::Object(fields).to_string().into())
}
